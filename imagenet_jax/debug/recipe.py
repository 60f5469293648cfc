"""A config as a table like those in papers, for the dry run, model cards and reports."""

import jax
from ml_collections import ConfigDict

from imagenet_jax.config import fields, flatten
from imagenet_jax.training import optim, schedules
from imagenet_jax.training.state import abstract_params, count_parameters

# Fields and groups that are part of a row, or that do not change what is trained.
_SHOWN = (
    "seed", "epochs", "batch_size", "resume_with_changes", "model.name", "model.dtype",
    "model.num_classes", "augment.image_size", "augment.start_size", "augment.size_ramp",
    "optim.name", "optim.base_lr", "optim.base_batch_size", "optim.lr_scaling",
    "optim.schedule", "optim.warmup_epochs", "optim.momentum", "optim.nesterov", "optim.b1",
    "optim.b2", "optim.eps", "optim.weight_decay", "optim.decay_bias_and_norm",
    "data.", "eval.", "checkpoint.", "log.", "mesh.",
)  # fmt: skip
# Exceptions in these groups, which are shown in rows of their own.
_SHOWN_LAST = ("data.repeated_aug", "data.balance")


def describe_recipe(
    config: ConfigDict, images: int | None, steps: int | None
) -> list[tuple[str, str]]:
    """Return (name, value) rows: the usual rows of a paper, then fields that are not at default.

    Nothing is computed on a device.

    Args:
      images: number of training images; None: unknown.
      steps: number of steps of the whole run; None: unknown.
    """
    # Only shapes, because this machine may have other devices than the run.
    params = abstract_params(config.model)
    count, length = count_parameters(params), f"{config.epochs:g} epochs"
    decayed = params
    if not config.optim.decay_bias_and_norm:
        decayed = jax.tree.map(lambda p, yes: p if yes else None, params, optim.decay_mask(params))
    if config.optim.warmup_epochs:
        length += f", {config.optim.warmup_epochs:g} of warm-up"
    length += " in" if steps is None else f" = {steps:,}"
    classes = f"{config.model.num_classes:,} classes"
    rows = {
        "model": f"{config.model.name}, {count:,} parameters, {config.model.dtype}",
        "training images": classes if images is None else f"{images:,} in {classes}",
        "length": f"{length} steps of {config.batch_size:,} images",
        "training crop": _training_crop(config),
        "evaluation": f"shorter side {config.eval.resize}, center {config.eval.image_size}"
        + (", mean with the mirror image" if config.eval.flip else ""),
        "optimizer": _optimizer(config.optim),
        "learning rate": _learning_rate(config),
        "weight decay": _weight_decay(config.optim, count, count_parameters(decayed)),
    }
    usual = flatten(fields.defaults(config.model.name))
    for field, value in flatten(config).items():
        shown = field.startswith(_SHOWN) and field not in _SHOWN_LAST
        if value != usual.get(field) and not shown:
            rows[field] = f"{value:g}" if isinstance(value, float) else str(value)
    return list(rows.items())


def _training_crop(config: ConfigDict) -> str:
    augment, side = config.augment, f"{config.augment.image_size}"
    if augment.start_size:
        first, last = augment.size_ramp
        side = f"{augment.start_size} to {side}, growing over epochs {first:g} to {last:g}"
    return f"{side} pixels, {config.data.interpolation}, {config.data.resampling}"


def _optimizer(config: ConfigDict) -> str:
    if config.name in ("sgd", "lars"):
        nesterov = " (Nesterov)" if config.nesterov else ""
        return f"{config.name}, momentum {config.momentum:g}{nesterov}"
    return f"{config.name}, betas {config.b1:g} and {config.b2:g}, epsilon {config.eps:g}"


def _learning_rate(config: ConfigDict) -> str:
    o = config.optim
    scaling = f"{o.lr_scaling} scaling of {o.base_lr:g} at {o.base_batch_size}"
    if o.lr_scaling == "none":
        scaling = "at any batch size"
    return f"{schedules.peak_learning_rate(o, config.batch_size):g} ({scaling}), {o.schedule}"


def _weight_decay(config: ConfigDict, count: int, decayed: int) -> str:
    if not config.weight_decay:
        return "none"
    form = "" if config.name in ("adamw", "lamb", "lars") else f" ({config.weight_decay_form})"
    return f"{config.weight_decay:g}{form} on {decayed:,} parameters, none on {count - decayed:,}"
