"""Models by name: `build(config.model, rngs=nnx.Rngs(seed))` is the one entry."""

import difflib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from imagenet_jax.errors import UserError
from imagenet_jax.models import bit, resnet, vgg

DTYPES = ("float32", "bfloat16")
_FAMILIES = (resnet, vgg, bit)
_SHARED_FIELDS = ("name", "num_classes", "width", "dtype")


def names() -> list[str]:
    """Every model that can be built."""
    return [name for family in _FAMILIES for name in family.VARIANTS]


def check_name(name: object) -> None:
    """UserError that suggests the nearest name, unless this is one."""
    if name not in names():
        near = difflib.get_close_matches(str(name), names(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"config.model.name = {name!r}: use {' | '.join(names())}{hint}")


def head(name: str) -> tuple[str | int, ...]:
    """Where the last linear layer lies among the parameters: the one that num_classes shapes."""
    return _family(name).HEAD


def groups(name: str) -> tuple[tuple[tuple[str | int, ...], ...], ...]:
    """The parameters from input to output: for each group the places where they lie; the head last.

    Every parameter lies in exactly one.
    """
    return _family(name).GROUPS


def check(config: ConfigDict | Mapping[str, Any]) -> None:
    """UserError naming the field, unless `build` can make the model of this `config.model`."""
    check_name(config.get("name", ""))
    family = _family(config["name"])
    fields = (*_SHARED_FIELDS, *family.FIELDS)
    for field in config:
        if field not in fields:
            raise UserError(
                f"config.model.{field} does not belong to {config['name']}; "
                f"its fields are {', '.join(fields)}"
            )
    for field in fields:
        if field not in config:
            raise UserError(f"config.model.{field} is missing for {config['name']}")
    classes, width = config["num_classes"], config["width"]
    if type(classes) is not int or classes < 1:
        raise UserError(f"config.model.num_classes = {classes!r}: use an integer of at least 1")
    if not isinstance(width, int | float) or not 0 < width <= 1000 or round(64 * width) < 1:
        raise UserError(
            f"config.model.width = {width!r} leaves a layer no channels, or more than 1,000 times "
            "the paper's; 1.0 is the paper's"
        )
    if config["dtype"] not in DTYPES:
        raise UserError(f"config.model.dtype = {config['dtype']!r}: use {' | '.join(DTYPES)}")
    family.check(config)


def _family(name: str) -> ModuleType:
    return next(family for family in _FAMILIES if name in family.VARIANTS)


def build(
    config: ConfigDict | Mapping[str, Any], *, rngs: nnx.Rngs
) -> resnet.ResNet | vgg.VGG | bit.BiT:
    """The model of `config.model`: (f[B, H, W, 3], train, rngs) -> logits f32[B, num_classes].

    It holds nnx.Param and nnx.BatchStat variables alone, float32. Initial weights are drawn from
    `rngs.params`; call it under jax.jit or nnx.eval_shape, where it costs no eager operations.

    With dtype "bfloat16" convolutions and hidden layers compute in bfloat16. With "float32" they
    compute in the common type of images and parameters, so that casting both to float64 (under
    jax_enable_x64) gives a float64 model.

    Raises UserError for an unknown name, a field of another family or a value out of range.
    """
    check(config)
    options = dict(config)
    options["dtype"] = jnp.bfloat16 if options["dtype"] == "bfloat16" else None
    model = {resnet: resnet.ResNet, vgg: vgg.VGG, bit: bit.BiT}[_family(options["name"])]
    return model(**options, rngs=rngs)
