"""Which values of a config can be meant, one by one and together."""

import difflib
import re
from typing import Any

from ml_collections import ConfigDict

from imagenet_jax.errors import UserError

_CHOICES = {
    "data.source": ("auto", "tfds", "folder", "digits", "synthetic"),
    "data.interpolation": ("bilinear", "bicubic"),
    "data.resampling": ("antialias", "fast"),
    "data.undecodable": ("stop", "skip"),
    "data.balance": ("none", "over", "under"),
    "data.remainder": ("carry", "drop"),
    "augment.auto_augment": ("none", "randaugment", "randaugment_timm", "trivialaugment"),
    "augment.auto_interpolation": ("nearest", "bilinear"),
    "augment.random_erase_fill": ("zero", "noise"),
    "optim.name": ("sgd", "adam", "adamw", "lars", "lamb"),
    "loss.name": ("softmax", "bce"),
    "ema.form": ("constant", "torchvision", "timm"),
    "loss.bce_reduction": ("mean", "sum"),
    "optim.lr_scaling": ("auto", "linear", "sqrt", "none"),
    "optim.schedule": ("step", "cosine", "polynomial", "constant"),
    "optim.schedule_by": ("step", "epoch"),
    "optim.weight_decay_form": ("l2", "decoupled"),
    "checkpoint.best_metric": ("top1", "top5", "loss"),
    "nonfinite.policy": ("stop", "rewind"),
}
_POSITIVE = (
    "batch_size", "epochs", "augment.image_size", "augment.size_multiple", "data.repeated_aug",
    "optim.layer_decay", "ema.every_steps", "ema.gamma", "ema.power",
    "optim.base_batch_size", "optim.grad_accum_steps", "mesh.fsdp", "eval.batch_size",
    "eval.resize", "eval.image_size", "checkpoint.keep", "log.every_steps", "data.prefetch_mb",
    "nonfinite.max_rewinds", "nonfinite.skip_steps", "data.synthetic.images",
    "data.synthetic.classes", "data.synthetic.height", "data.synthetic.width",
)  # fmt: skip
_NOT_NEGATIVE = (
    "optim.base_lr", "optim.warmup_epochs", "optim.warmup_start_lr", "optim.end_lr",
    "optim.decay_factor", "optim.power", "optim.eps",
    "optim.weight_decay", "optim.freeze_epochs", "optim.grad_clip_norm", "optim.l1",
    "optim.trust_coefficient", "eval.every_epochs", "checkpoint.every_epochs",
    "data.threads", "data.workers", "seed", "augment.lighting", "augment.mixup", "augment.cutmix",
    "augment.auto_magnitude_std", "log.watchdog_seconds", "log.images",
    "log.histograms_every_epochs", "debug.determinism",
)  # fmt: skip
_SHARES = ("augment.random_erase", "augment.mix_prob", "augment.mix_switch_prob")
_BELOW_ONE = (
    "data.holdout", "loss.label_smoothing", "loss.bce_threshold", "ema.decay", "optim.momentum",
    "optim.b1", "optim.b2",
)  # fmt: skip

# Largest values: of the type that computes with them, or that the system takes.
_INT, _FLOAT = 2**31 - 1, 3.4028234663852886e38  # of int32 and float32
_LARGEST = {
    "seed": 2**32 - 1,  # jax.random.key ignores the bits above
    "log.watchdog_seconds": 1e9,
}

_MOST_RATES = 100_000  # of a schedule by epoch, which is a table
_ADAM = ("adam", "adamw", "lamb")

# field: (the choice it belongs to, the values of it that read it); with others it must stay at its
# default.
_READ_BY = {
    "optim.nesterov": ("optim.name", ("sgd", "lars")),
    "optim.trust_coefficient": ("optim.name", ("lars",)),
    "optim.b1": ("optim.name", _ADAM),
    "optim.b2": ("optim.name", _ADAM),
    "optim.eps": ("optim.name", _ADAM),
    "optim.weight_decay_form": ("optim.name", ("sgd", "adam", "adamw")),
    "optim.freeze_epochs": ("optim.name", ("sgd", "adam", "adamw")),
    "optim.decay_from": ("optim.schedule", ("cosine", "polynomial")),
    "loss.bce_reduction": ("loss.name", ("bce",)),
    "loss.bce_threshold": ("loss.name", ("bce",)),
    "ema.gamma": ("ema.form", ("timm",)),
    "ema.power": ("ema.form", ("timm",)),
    "nonfinite.max_rewinds": ("nonfinite.policy", ("rewind",)),
    "nonfinite.skip_steps": ("nonfinite.policy", ("rewind",)),
}


def check_values(value: dict[str, Any], default: dict[str, Any]) -> None:
    """UserError for a value that nothing can be made of, or that would silently do nothing.

    Args:
      value: every field of a config by its dotted name, of the right type.
      default: the same of the defaults.
    """
    for field, values in value.items():
        for number in values if isinstance(values, tuple) else (values,):
            _check_number(field, number)
    for field, choices in _CHOICES.items():
        if value[field] not in choices:
            near = difflib.get_close_matches(value[field], choices, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(f"config.{field} = {value[field]!r}: use {' | '.join(choices)}{hint}")
    for field in _POSITIVE:
        if not value[field] > 0:
            raise UserError(f"config.{field} = {value[field]!r} must be above 0")
    for field in _NOT_NEGATIVE:
        if not value[field] >= 0:
            raise UserError(f"config.{field} = {value[field]!r} must not be negative")
    for field in _BELOW_ONE:
        if not 0 <= value[field] < 1:
            raise UserError(f"config.{field} = {value[field]!r} must be at least 0 and below 1")
    _check_augment(value, default)
    for field in ("augment.crop_scale", "augment.crop_ratio"):
        if len(value[field]) != 2 or not 0 < value[field][0] <= value[field][1]:
            raise UserError(
                f"config.{field} = {value[field]!r} must be (low, high), 0 < low <= high"
            )
    if value["augment.crop_scale"][1] > 1:
        raise UserError("config.augment.crop_scale: a crop cannot be larger than its image (1.0)")
    _check_resolution(value)
    if value["log.histograms_every_epochs"] and not (
        value["log.tensorboard"] or value["log.wandb"]
    ):
        raise UserError(
            f"config.log.histograms_every_epochs = {value['log.histograms_every_epochs']} does "
            "nothing with config.log.tensorboard = False and no config.log.wandb: nothing shows "
            "them; set --config.log.tensorboard=true"
        )
    step_window(value["profile.steps"])
    if value["debug.nans"] and value["nonfinite.policy"] == "rewind":
        raise UserError(
            "config.debug.nans = True stops at the first NaN, so that config.nonfinite.policy = "
            "'rewind' does nothing; set --config.debug.nans=false or --config.nonfinite.policy=stop"
        )
    for field in ("data.mean", "data.std"):
        if len(value[field]) != 3:
            raise UserError(f"config.{field} = {value[field]!r} must have 3 values, for R, G and B")
    for field, least in (("data.std", "above 0"), ("optim.milestones", "at least 0")):
        if any(v < 0 or (v == 0 and least == "above 0") for v in value[field]):
            raise UserError(f"config.{field} = {value[field]!r}: every value must be {least}")
    weights = value["loss.class_weights"]
    if weights and (len(weights) != value["model.num_classes"] or min(weights) <= 0):
        raise UserError(
            f"config.loss.class_weights must be {value['model.num_classes']} numbers above 0, one "
            f"for each class of config.model.num_classes, or (); it has {len(weights)}, the "
            f"smallest {min(weights)}"
        )
    for field in ("ema.form", "ema.every_steps"):
        if not value["ema.decay"] and value[field] != default[field]:
            raise UserError(
                f"config.{field} = {value[field]!r} does nothing with config.ema.decay = 0; "
                f"set --config.{field}={default[field]} or --config.ema.decay=0.9999"
            )
    softened = ("loss.label_smoothing", "augment.mixup", "augment.cutmix")
    if (
        value["loss.name"] == "bce"
        and value["loss.bce_threshold"]
        and not any(value[field] for field in softened)
    ):
        raise UserError(
            f"config.loss.bce_threshold = {value['loss.bce_threshold']} does nothing to targets of "
            f"0 and 1; set --config.loss.bce_threshold=0, or one of config."
            f"{', config.'.join(softened)}"
        )
    for field, (choice, readers) in _READ_BY.items():
        if value[choice] not in readers and value[field] != default[field]:
            raise UserError(
                f"config.{field} = {value[field]!r} does nothing with config.{choice} = "
                f"{value[choice]!r}: leave it at {default[field]!r}, or use {' | '.join(readers)}"
            )
    if value["batch_size"] % value["optim.grad_accum_steps"]:
        raise UserError(
            f"config.batch_size = {value['batch_size']} is not divisible by "
            f"config.optim.grad_accum_steps = {value['optim.grad_accum_steps']}; "
            f"{use_multiple('batch_size', value['batch_size'], value['optim.grad_accum_steps'])}"
        )
    group, parts = value.get("model.bn_group", 0), value["optim.grad_accum_steps"]
    if group and value["batch_size"] // parts % group:
        raise UserError(
            f"config.model.bn_group = {group} does not divide the {value['batch_size'] // parts} "
            "images that the model sees at once; "
            f"{use_multiple('batch_size', value['batch_size'], group * parts)}"
        )
    if value["init.weights"] and value.get("model.zero_init_residual"):
        raise UserError(
            "config.model.zero_init_residual = True does nothing where config.init.weights gives "
            "the weights; set --config.model.zero_init_residual=false"
        )
    if value["init.new_head"] and not value["init.weights"]:
        raise UserError(
            "config.init.new_head = True does nothing without --weights=FILE; set "
            "--config.init.new_head=false"
        )
    if value["eval.image_size"] > value["eval.resize"]:
        raise UserError(
            f"config.eval.image_size = {value['eval.image_size']} is larger than "
            f"config.eval.resize = {value['eval.resize']}: the center crop would leave the image; "
            f"set --config.eval.resize={value['eval.image_size']} or more"
        )
    if value["init.weights_key"] and not value["init.weights"]:
        raise UserError(
            f"config.init.weights_key = {value['init.weights_key']!r} does nothing without "
            "config.init.weights; give --weights=FILE"
        )
    if value["optim.freeze_epochs"] and not value["init.weights"]:
        raise UserError(
            f"config.optim.freeze_epochs = {value['optim.freeze_epochs']} would freeze random "
            "weights; give --weights=FILE, or set --config.optim.freeze_epochs=0"
        )
    for field in ("optim.warmup_epochs", "optim.decay_from"):
        if value[field] >= value["epochs"]:
            raise UserError(
                f"config.{field} = {value[field]} leaves nothing of config.epochs = "
                f"{value['epochs']}; set --config.{field}={default[field]} or less than the epochs"
            )
    if value["optim.schedule_by"] == "epoch" and value["epochs"] > _MOST_RATES:
        raise UserError(
            f"config.epochs = {value['epochs']} is more than the {_MOST_RATES:,} epochs that "
            "config.optim.schedule_by = 'epoch' can have; set --config.optim.schedule_by=step"
        )
    if value["optim.decay_from"] < 0 and value["optim.decay_from"] != -1:
        raise UserError(
            f"config.optim.decay_from = {value['optim.decay_from']} must be an epoch, or -1 for "
            "the end of the warm-up"
        )


def use_multiple(field: str, batch_size: int, unit: int) -> str:
    """Return the advice to use a multiple of `unit` near `batch_size`."""
    below = batch_size // unit * unit
    above = f"--config.{field}={below + unit}"
    return f"set --config.{field}={below} or {above}" if below else f"set {above}"


def lr_scaling_of(optimizer: str, rule: str = "auto") -> str:
    """Return config.optim.lr_scaling = `rule` without "auto": papers on Adam give the rate itself.

    "auto" is "none" for the optimizers that are forms of Adam, and "linear" for others.
    """
    if rule != "auto":
        return rule
    return "none" if optimizer in _ADAM else "linear"


def warnings(config: ConfigDict) -> list[str]:
    """Return a line for each choice that works but is rarely meant."""
    trained, evaluated = config.augment.image_size, config.eval.image_size
    if evaluated < 2 * trained:
        return []
    resize = max(trained, round(trained * config.eval.resize / evaluated))
    return [
        f"config.eval.image_size = {evaluated} does not follow config.augment.image_size = "
        f"{trained}; set --config.eval.image_size={trained} --config.eval.resize={resize}"
    ]


def _check_number(field: str, number: Any) -> None:
    if isinstance(number, bool | str):
        return
    largest = _LARGEST.get(field, _INT if isinstance(number, int) else _FLOAT)
    if not -largest <= number <= largest:  # NaN too; a Python integer may be of any size
        short = isinstance(number, float) or number.bit_length() < 200
        shown = number if short else f"an integer of {number.bit_length()} bits"
        raise UserError(f"config.{field} = {shown} must be a number of at most {largest}")


def step_window(text: str) -> tuple[int, int] | None:
    """(A, B) of config.profile.steps = "A:B"; None of "". UserError unless 1 <= A <= B."""
    if not text:
        return None
    match = re.fullmatch(r"(\d{1,12}):(\d{1,12})", text, re.ASCII)
    window = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= window[0] <= window[1]:
        raise UserError(
            f"config.profile.steps = {text!r} should be A:B with 1 <= A <= B, the first and the "
            "last step of the trace, such as 100:105"
        )
    return window


def _check_augment(value: dict[str, Any], default: dict[str, Any]) -> None:
    for field in _SHARES:
        if not 0 <= value[field] <= 1:
            raise UserError(f"config.{field} = {value[field]!r} must be from 0 to 1")
    if not value["augment.auto_num_ops"] > 0:
        raise UserError(
            f"config.augment.auto_num_ops = {value['augment.auto_num_ops']} must be above 0; "
            "to turn RandAugment off, set --config.augment.auto_augment=none "
            f"--config.augment.auto_num_ops={default['augment.auto_num_ops']}"
        )
    auto = value["augment.auto_augment"]
    magnitude, highest = value["augment.auto_magnitude"], 10 if auto == "randaugment_timm" else 30
    if not 0 <= magnitude <= highest:
        raise UserError(f"config.augment.auto_magnitude = {magnitude} must be from 0 to {highest}")
    jitter = value["augment.color_jitter"]
    if len(jitter) != 4 or min(jitter) < 0 or jitter[3] > 0.5:
        raise UserError(
            f"config.augment.color_jitter = {jitter!r} must be (brightness, contrast, saturation, "
            "hue), none negative and the hue at most 0.5"
        )
    mixes = (value["augment.mixup"] > 0) + (value["augment.cutmix"] > 0)
    rand = auto.startswith("randaugment")
    for field, works, reason in (
        ("auto_interpolation", auto != "none", "augment.auto_augment is none"),
        ("auto_num_ops", rand, "augment.auto_augment is not randaugment"),
        ("auto_magnitude", rand, "augment.auto_augment is not randaugment"),
        (
            "auto_magnitude_std",
            auto == "randaugment_timm",
            "augment.auto_augment is not randaugment_timm",
        ),
        ("random_erase_fill", value["augment.random_erase"] > 0, "augment.random_erase is 0"),
        ("mix_prob", mixes > 0, "augment.mixup and augment.cutmix are 0"),
        ("mix_switch_prob", mixes == 2, "augment.mixup and augment.cutmix are not both on"),
    ):
        field = f"augment.{field}"
        if not works and value[field] != default[field]:
            raise UserError(
                f"config.{field} = {value[field]!r} would do nothing: {reason}; set "
                f"--config.{field}={default[field]}"
            )
    if mixes and not value["augment.mix_prob"] > 0:
        raise UserError(
            "config.augment.mix_prob = 0 turns mixup and cutmix off; set "
            "--config.augment.mixup=0 --config.augment.cutmix=0 --config.augment.mix_prob=1"
        )
    if mixes and value["batch_size"] < 2:
        raise UserError(
            "config.batch_size = 1 leaves mixup and cutmix no second image; set "
            "--config.batch_size=2 or more"
        )


def _check_resolution(value: dict[str, Any]) -> None:
    start, final, ramp = (value[f"augment.{f}"] for f in ("start_size", "image_size", "size_ramp"))
    if not start and any(ramp):
        raise UserError(
            f"config.augment.size_ramp = {ramp!r} does nothing with config.augment.start_size = 0; "
            "set --config.augment.size_ramp='(0,0)'"
        )
    if start and not (0 < start <= final and len(ramp) == 2 and 0 <= ramp[0] < ramp[1]):
        raise UserError(
            f"config.augment.start_size = {start} must be above 0, at most image_size = {final}, "
            f"and size_ramp = {ramp!r} must be (first epoch, last epoch) of the growth"
        )
