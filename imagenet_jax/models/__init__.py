"""Models by name: `build(config.model, rngs=nnx.Rngs(seed))` is the one entry."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from imagenet_jax.config.fields import fields_of_model
from imagenet_jax.config.names import check_choice
from imagenet_jax.config.rules import check_fields
from imagenet_jax.models import bit, resnet, vgg

_FAMILIES = (resnet, vgg, bit)


def names() -> list[str]:
    """Every model that can be built."""
    return [name for family in _FAMILIES for name in family.VARIANTS]


def check_name(name: object) -> None:
    """Raise UserError that suggests the nearest name, unless this is one."""
    check_choice("config.model.name", name, names())


def head(name: str) -> tuple[str | int, ...]:
    """Where the last linear layer lies among the parameters: the one that num_classes shapes."""
    return family(name).HEAD


def groups(name: str) -> tuple[tuple[tuple[str | int, ...], ...], ...]:
    """The parameters from input to output: for each group the places where they lie; the head last.

    Every parameter lies in exactly one.
    """
    return family(name).GROUPS


def check(config: ConfigDict | Mapping[str, Any]) -> None:
    """Raise UserError that names the field, unless `build` can make the model of `config.model`."""
    name = config.get("name", "")
    fields = fields_of_model(name)
    own = {field: entry for field, entry in fields.items() if field.startswith("model.")}
    check_fields({f"model.{leaf}": value for leaf, value in config.items()}, own, name)


def family(name: object) -> ModuleType:
    """Return the module of the family that has the model `name`.

    Raises UserError that suggests the nearest name, if there is no such model.
    """
    check_name(name)
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
    model = {resnet: resnet.ResNet, vgg: vgg.VGG, bit: bit.BiT}[family(options["name"])]
    return model(**options, rngs=rngs)
