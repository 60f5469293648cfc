"""Models by name: `build(config.model, rngs=nnx.Rngs(seed))` is the one entry."""

import difflib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from imagenet_jax.errors import UserError
from imagenet_jax.models import resnet, vgg


def names() -> list[str]:
    """Every model that can be built."""
    return [*resnet.VARIANTS, *vgg.VARIANTS]


def check_name(name: str) -> None:
    """UserError that suggests the nearest name, unless this is one."""
    if name not in names():
        near = difflib.get_close_matches(str(name), names(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"config.model.name = {name!r}: use {' | '.join(names())}{hint}")


def build(config: Mapping[str, Any], *, rngs: nnx.Rngs) -> nnx.Module:
    """The model of `config.model`: (f[B, H, W, 3], train, rngs) -> logits f32[B, num_classes].

    It holds nnx.Param and nnx.BatchStat variables alone. Initial weights are drawn from
    `rngs.params`; call it under jax.jit or nnx.eval_shape, where it costs no eager operations.

    Raises UserError for an unknown name or a value that the model cannot take.
    """
    check_name(config["name"])
    if round(64 * config["width"]) < 1:
        raise UserError(f"config.model.width = {config['width']} leaves a layer no channels")
    shared = {
        "num_classes": config["num_classes"],
        "width": config["width"],
        "dtype": jnp.dtype(config["dtype"]),
        "rngs": rngs,
    }
    if config["name"] in resnet.VARIANTS:
        return resnet.ResNet(
            config["name"],
            stem=config["stem"],
            zero_init_residual=config["zero_init_residual"],
            **shared,
        )
    return vgg.VGG(config["name"], dropout=config["dropout"], **shared)
