"""A config as the table of the paper that it reproduces, and its learning rate as a picture."""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from imagenet_jax.config import fields, flatten

_BARS = " ▁▂▃▄▅▆▇█"
_WIDTH, _HEIGHT = 60, 5  # characters of the picture

# Fields that the rows of `recipe_rows` show, or that say how a run is carried out.
_SHOWN = (
    "seed", "epochs", "batch_size", "resume_with_changes", "model.name", "model.dtype",
    "model.num_classes", "data.", "augment.image_size", "augment.start_size", "augment.size_ramp",
    "optim.name", "optim.base_lr", "optim.base_batch_size", "optim.lr_scaling",
    "optim.schedule", "optim.warmup_epochs", "optim.momentum", "optim.nesterov", "optim.b1",
    "optim.b2", "optim.eps", "optim.weight_decay", "optim.decay_bias_and_norm",
    "eval.", "checkpoint.", "log.", "mesh.",
)  # fmt: skip
_DATA_SHOWN = ("data.repeated_aug", "data.balance", "data.interpolation", "data.resampling")


def recipe_rows(
    config: ConfigDict,
    *,
    images: int | None,
    steps: int | None,
    peak_lr: float,
    parameters: int,
    decayed: int,
) -> list[tuple[str, str]]:
    """(name, value) of what a paper's table states, then every other field that is not as default.

    Args:
      images: of the training split; None where the data is not at hand.
      steps: of the whole run; None where nobody knows.
      peak_lr: at config.batch_size.
      parameters, decayed: trainable numbers, and those of them that weight decay shrinks.
    """
    optim, augment, evaluation = config.optim, config.augment, config.eval
    side = f"{augment.image_size}"
    if augment.start_size:
        low, high = augment.size_ramp
        side = f"{augment.start_size} to {side}, growing over epochs {low:g} to {high:g}"
    scaling = f"{optim.lr_scaling} scaling of {optim.base_lr:g} at {optim.base_batch_size}"
    if optim.lr_scaling == "none":
        scaling = "at any batch size"
    warmup = f", {optim.warmup_epochs:g} of warm-up" if optim.warmup_epochs else ""
    of_images = "" if images is None else f"{images:,} in "
    in_steps = " in" if steps is None else f" = {steps:,}"
    form = "" if optim.name in ("adamw", "lamb", "lars") else f" ({optim.weight_decay_form})"
    rows = [
        ("model", f"{config.model.name}, {parameters:,} parameters, {config.model.dtype}"),
        ("training images", f"{of_images}{config.model.num_classes:,} classes"),
        (
            "length",
            f"{config.epochs:g} epochs{warmup}{in_steps} steps of {config.batch_size:,} images",
        ),
        ("training crop", f"{side} pixels, {config.data.interpolation}, {config.data.resampling}"),
        ("evaluation", _evaluation(evaluation)),
        ("optimizer", _optimizer(optim)),
        ("learning rate", f"{peak_lr:g} ({scaling}), {optim.schedule}"),
        (
            "weight decay",
            f"{optim.weight_decay:g}{form} on {decayed:,} parameters, none on "
            f"{parameters - decayed:,}"
            if optim.weight_decay
            else "none",
        ),
    ]
    shown = dict(rows)
    for field, value in _unusual(config).items():
        shown[field] = f"{value:g}" if isinstance(value, float) else str(value)
    return list(shown.items())


def _optimizer(optim: ConfigDict) -> str:
    if optim.name in ("sgd", "lars"):
        nesterov = " (Nesterov)" if optim.nesterov else ""
        return f"{optim.name}, momentum {optim.momentum:g}{nesterov}"
    return f"{optim.name}, betas {optim.b1:g} and {optim.b2:g}, epsilon {optim.eps:g}"


def _evaluation(evaluation: ConfigDict) -> str:
    flip = ", mean with the mirror image" if evaluation.flip else ""
    return f"shorter side {evaluation.resize}, centre {evaluation.image_size}{flip}"


def _unusual(config: ConfigDict) -> dict[str, Any]:
    """Fields that differ from their defaults and have no row of their own."""
    usual = flatten(fields.defaults(config.model.name))
    return {
        field: value
        for field, value in flatten(config).items()
        if value != usual.get(field) and (field in _DATA_SHOWN[:2] or not field.startswith(_SHOWN))
    }


def schedule_picture(schedule: Callable[[int], Any], steps: int, epochs: float) -> list[str]:
    """Lines that draw the learning rate over the run, linear from 0 to its largest value."""
    rates = [float(schedule(int(i * (steps - 1) / (_WIDTH - 1)))) for i in range(_WIDTH)]
    # A warm-up may peak between two columns.
    top = max(rates) or 1.0
    levels = [round(rate / top * _HEIGHT * (len(_BARS) - 1)) for rate in rates]
    lines = []
    for row in reversed(range(_HEIGHT)):
        low = row * (len(_BARS) - 1)
        bars = "".join(_BARS[min(max(level - low, 0), len(_BARS) - 1)] for level in levels)
        label = f"{top:.3g}" if row == _HEIGHT - 1 else "0" if row == 0 else ""
        lines.append(f"{label:>9} |{bars}")
    end = f"epoch {epochs:g}"
    return [*lines, f"{'':>9}  0{end:>{_WIDTH - 1}}"]
