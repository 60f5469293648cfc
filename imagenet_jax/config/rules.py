"""Checks of a config: each value against its entry in `fields`, and combinations of fields."""

import re
import reprlib
from typing import Any

from ml_collections import ConfigDict

from imagenet_jax.config.fields import ADAM, ON, SCHEDULE_FREE, Field
from imagenet_jax.errors import UserError, check_choice

Values = dict[str, Any]  # every field of a config by its dotted name, with lists as tuples

# Largest values of the types that compute with them: int32 and float32.
_INT, _FLOAT = 2**31 - 1, 3.4028234663852886e38
_MAX_RATES = 100_000  # size of the table of learning rates if they change by epoch


def check_fields(value: Values, fields: dict[str, Field], model: object) -> None:
    """Check that `value` has exactly the `fields` of the `model`, with allowed values.

    Raises UserError, naming the field and its allowed values.
    """
    for name in value:
        if name not in fields:
            from imagenet_jax.config.help import unknown_field

            raise UserError(unknown_field(name, fields, model))
    for name, field in fields.items():
        if name not in value:
            raise UserError(f"config.{name} is missing; start from imagenet_jax.config.fields")
        _check_type(name, field, value[name])
        _check_range(name, field, value[name])
        if field.choices:
            check_choice(f"config.{name}", value[name], field.choices)
    for name, field in fields.items():
        if value[name] != field.default:
            _check_read(name, fields, value)


def _check_type(name: str, field: Field, value: Any) -> None:
    kind = type(field.default)
    same = _is_number(value) if kind is float else type(value) is kind
    if not same or (kind is tuple and not all(map(_is_number, value))):
        raise UserError(
            f"config.{name} = {value!r} should be {field.kind()}, like {field.default!r}"
        )
    if field.length and len(value) != field.length:
        raise UserError(f"config.{name} = {value!r} must have {field.length} values: {field.doc}")


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool)


def _check_range(name: str, field: Field, value: Any) -> None:
    for number in value if isinstance(value, tuple) else (value,):
        if not _is_number(number):
            continue
        largest = max(_INT if isinstance(number, int) else _FLOAT, field.at_most or 0)
        if not -largest <= number <= largest:  # also if it is NaN; Python integers have no limit
            short = isinstance(number, float) or number.bit_length() < 200
            shown = number if short else f"an integer of {number.bit_length()} bits"
            raise UserError(f"config.{name} = {shown} must be a number of at most {largest}")
        if not (
            (field.above is None or number > field.above)
            and (field.at_least is None or number >= field.at_least)
            and (field.below is None or number < field.below)
            and (field.at_most is None or number <= field.at_most)
        ):
            each = ": every value" if isinstance(value, tuple) else ""
            default = str(field.default).replace(" ", "")
            raise UserError(
                f"config.{name} = {reprlib.repr(value)}{each} must be {field.range()}; the default "
                f"is --config.{name}={default}"
            )


def _check_read(name: str, fields: dict[str, Field], value: Values) -> None:
    for other, readers in fields[name].read_by.items():
        if value[other] if readers is ON else value[other] in readers:
            continue
        on = f"set --config.{other}={fields[other].example}"
        use = on if readers is ON else f"use {' | '.join(readers)}"
        raise UserError(
            f"config.{name} = {value[name]!r} does nothing with config.{other} = "
            f"{value[other]!r}: leave it at {fields[name].default!r}, or {use}"
        )


def check_across(value: Values) -> None:
    """Check combinations of fields, in a config that passed `check_fields`.

    Raises UserError if a combination cannot work, or if one of the fields has no effect.
    """
    for check in (_check_augment, _check_batch, _check_loss, _check_run, _check_schedule):
        check(value)


def _check_augment(value: Values) -> None:
    for name in ("augment.crop_scale", "augment.crop_ratio"):
        if value[name][0] > value[name][1]:
            raise UserError(f"config.{name} = {value[name]!r} must be (low, high), low <= high")
    jitter = value["augment.color_jitter"]
    if jitter[3] > 0.5:
        raise UserError(
            f"config.augment.color_jitter = {jitter!r} must be (brightness, contrast, saturation, "
            "hue), with a hue of at most 0.5"
        )
    magnitude, policy = value["augment.auto_magnitude"], value["augment.auto_augment"]
    if policy in ("randaugment_timm", "randaugment_plain") and magnitude > 10:
        raise UserError(
            f"config.augment.auto_magnitude = {magnitude} must be from 0 to 10 for {policy}"
        )
    mixes = value["augment.mixup"] or value["augment.cutmix"]
    if not mixes and value["augment.mix_prob"] != 1:
        raise UserError(
            f"config.augment.mix_prob = {value['augment.mix_prob']} does nothing while "
            "config.augment.mixup and config.augment.cutmix are 0; set --config.augment.mix_prob=1"
        )
    if mixes and not value["augment.mix_prob"]:
        raise UserError(
            "config.augment.mix_prob = 0 turns mixup and CutMix off; set "
            "--config.augment.mixup=0 --config.augment.cutmix=0 --config.augment.mix_prob=1"
        )
    start, final, ramp = (value[f"augment.{f}"] for f in ("start_size", "image_size", "size_ramp"))
    if start and not (start <= final and ramp[0] < ramp[1]):
        raise UserError(
            f"config.augment.start_size = {start} must be at most image_size = {final}, and "
            f"size_ramp = {ramp!r} must be (first epoch, last epoch) of the growth"
        )
    if value["eval.image_size"] > value["eval.resize"]:
        raise UserError(
            f"config.eval.image_size = {value['eval.image_size']} is larger than "
            f"config.eval.resize = {value['eval.resize']}: the center crop would leave the image; "
            f"set --config.eval.resize={value['eval.image_size']} or more"
        )


def check_sides(value: Values, multiple: int) -> None:
    """Raise UserError unless image sides are multiples of `multiple`, which the model needs."""
    sides = ["augment.image_size", "augment.start_size", "eval.image_size", "model.image_size"]
    if value["augment.start_size"]:
        sides.append("augment.size_multiple")
    for leaf in sides:
        side = value.get(leaf, 0)
        if side % multiple:
            raise UserError(
                f"config.{leaf} = {side} is not a multiple of {multiple}, as "
                f"{value['model.name']} needs; {use_multiple(leaf, side, multiple)}"
            )


def _check_batch(value: Values) -> None:
    size, parts = value["batch_size"], value["optim.grad_accum_steps"]
    if size % parts:
        raise UserError(
            f"config.batch_size = {size} is not divisible by config.optim.grad_accum_steps = "
            f"{parts}; {use_multiple('batch_size', size, parts)}"
        )
    group = value.get("model.bn_group", 0)
    if group and size // parts % group:
        raise UserError(
            f"config.model.bn_group = {group} does not divide the {size // parts} images that the "
            f"model sees at once; {use_multiple('batch_size', size, group * parts)}"
        )
    if size < 2 and (value["augment.mixup"] or value["augment.cutmix"]):
        raise UserError(
            "config.batch_size = 1 leaves mixup and CutMix no second image; set "
            "--config.batch_size=2 or more"
        )


def _check_loss(value: Values) -> None:
    weights, classes = value["loss.class_weights"], value["model.num_classes"]
    if weights and len(weights) != classes:
        raise UserError(
            f"config.loss.class_weights must be {classes} numbers above 0, one for each class of "
            f"config.model.num_classes, or (); it has {len(weights)}"
        )
    softened = ("loss.label_smoothing", "augment.mixup", "augment.cutmix")
    if value["loss.bce_threshold"] and not any(value[name] for name in softened):
        raise UserError(
            f"config.loss.bce_threshold = {value['loss.bce_threshold']} has no effect on targets "
            "of 0 and 1; set --config.loss.bce_threshold=0, or one of config."
            f"{', config.'.join(softened)}"
        )


def _check_run(value: Values) -> None:
    step_window(value["profile.steps"])
    histograms = value["log.histograms_every_epochs"]
    if histograms and not (value["log.tensorboard"] or value["log.wandb"]):
        raise UserError(
            f"config.log.histograms_every_epochs = {histograms} does nothing with "
            "config.log.tensorboard = False and no config.log.wandb, which show them; set "
            "--config.log.tensorboard=true"
        )
    if value["debug.nans"] and value["nonfinite.policy"] == "rewind":
        raise UserError(
            "config.debug.nans = True stops at the first NaN, so config.nonfinite.policy = "
            "'rewind' does nothing; set --config.debug.nans=false or --config.nonfinite.policy=stop"
        )
    if value["init.weights"] and value.get("model.zero_init_residual"):
        raise UserError(
            "config.model.zero_init_residual = True does nothing with config.init.weights, which "
            "replaces initial weights; set --config.model.zero_init_residual=false"
        )
    if value["optim.freeze_epochs"] and not value["init.weights"]:
        raise UserError(
            f"config.optim.freeze_epochs = {value['optim.freeze_epochs']} would freeze random "
            "weights; give --weights=FILE, or set --config.optim.freeze_epochs=0"
        )


def _check_schedule(value: Values) -> None:
    epochs, decay_from = value["epochs"], value["optim.decay_from"]
    if decay_from < 0 and decay_from != -1:
        raise UserError(
            f"config.optim.decay_from = {decay_from} must be an epoch, or -1 for the end of the "
            "warm-up"
        )
    if value["optim.name"] in SCHEDULE_FREE and not value["optim.b1"]:
        raise UserError(
            f"config.optim.b1 = 0 does not work with config.optim.name = {value['optim.name']!r}; "
            "set --config.optim.b1=0.9"
        )
    for name, usual in (("optim.warmup_epochs", 0.0), ("optim.decay_from", -1.0)):
        if value[name] >= epochs:
            raise UserError(
                f"config.{name} = {value[name]} must be less than config.epochs = {epochs}; set "
                f"--config.{name}={usual} or train for more epochs"
            )
    every = value["optim.decay_every_epochs"]
    if value["optim.schedule"] == "exponential" and epochs > _MAX_RATES * every:
        raise UserError(
            f"config.optim.decay_every_epochs = {every} makes more than {_MAX_RATES:,} milestones "
            f"in config.epochs = {epochs}; set --config.optim.decay_every_epochs=1"
        )
    if value["optim.schedule_by"] == "epoch" and epochs > _MAX_RATES:
        raise UserError(
            f"config.epochs = {epochs} is more than the {_MAX_RATES:,} epochs that "
            "config.optim.schedule_by = 'epoch' can have; set --config.optim.schedule_by=step"
        )


def use_multiple(field: str, number: int, unit: int) -> str:
    """Return advice to set `field` to a multiple of `unit` near `number`."""
    below = number // unit * unit
    above = f"--config.{field}={below + unit}"
    return f"set --config.{field}={below} or {above}" if below else f"set {above}"


def resolve_lr_scaling(optimizer: str, rule: str = "auto") -> str:
    """Return `rule`, a value of config.optim.lr_scaling, with "auto" resolved.

    "auto" is "none" for Lion, Muon and forms of Adam, whose papers do not scale the learning rate
    with the batch size, and "linear" for other optimizers.
    """
    if rule != "auto":
        return rule
    return "none" if optimizer in (*ADAM, "lion", "muon") else "linear"


def step_window(text: str) -> tuple[int, int] | None:
    """Return (A, B) for config.profile.steps = "A:B", or None for "".

    Raises UserError unless 1 <= A <= B.
    """
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


def warnings(config: ConfigDict) -> list[str]:
    """Return a line for each setting that works but is probably a mistake."""
    found = []
    trained, evaluated = config.augment.image_size, config.eval.image_size
    if evaluated >= 2 * trained:
        resize = max(trained, round(trained * config.eval.resize / evaluated))
        found.append(
            f"config.eval.image_size = {evaluated} does not follow config.augment.image_size = "
            f"{trained}; set --config.eval.image_size={trained} --config.eval.resize={resize}"
        )
    optim = config.optim
    if optim.name in SCHEDULE_FREE and optim.schedule != "constant":
        found.append(
            f"config.optim.name = {optim.name!r} averages the weights instead of lowering the "
            f"learning rate, as config.optim.schedule = {optim.schedule!r} does; set "
            "--config.optim.schedule=constant"
        )
    return found
