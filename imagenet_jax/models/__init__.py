"""Models by name: `build(config.model, rngs=nnx.Rngs(seed))` makes one.

A family is one module here, which defines FAMILY, and one line in _MODULES, which has the prefixes
of its model names. A module is imported only when one of its models is needed.
"""

import functools
import importlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from imagenet_jax.config.fields import fields_of_model
from imagenet_jax.config.rules import check_fields
from imagenet_jax.errors import check_choice
from imagenet_jax.models.base import Config, Family, Model, submodule

_MODULES = {
    "alexnet": ("alexnet",),
    "resnet": ("resnet", "resnext", "wide_resnet", "seresnet"),
    "vgg": ("vgg",),
    "bit": ("bit",),
    "squeezenet": ("squeezenet",),
    "densenet": ("densenet",),
    "small_cnn": ("small_cnn",),
    "mobilenet": ("mobilenet_v2",),
    "mobilenet_v3": ("mobilenet_v3", "timm_mobilenet_v3", "tf_mobilenet_v3"),
    "efficientnet": ("efficientnet", "timm_efficientnet", "tf_efficientnet"),
    "convnext": ("convnext",),
    "swin": ("swin",),
    "googlenet": ("googlenet",),
    "inception": ("inception",),
    "vit": ("vit",),
}


def families(model: str = "") -> Iterator[Family]:
    """Yield every family, starting with those that have a prefix of the name `model`.

    A module is imported only when the iterator reaches it.
    """
    for module in sorted(_MODULES, key=lambda module: not model.startswith(_MODULES[module])):
        yield importlib.import_module(f"{__name__}.{module}").FAMILY


def names() -> list[str]:
    """Return the names of all models."""
    return [name for family in families() for name in family.variants]


def family(name: object) -> Family:
    """Return the family of the model `name`.

    Raises UserError, suggesting the nearest name, if there is no such model.
    """
    for found in families(str(name)):
        if name in found.variants:
            return found
    check_choice("config.model.name", name, names())
    raise AssertionError("unreachable: check_choice raises")


def check(config: Config) -> None:
    """Raise UserError, naming the field, unless `build` can make the model of `config.model`."""
    name = config.get("name", "")
    fields = fields_of_model(name)
    own = {field: entry for field, entry in fields.items() if field.startswith("model.")}
    check_fields({f"model.{leaf}": value for leaf, value in config.items()}, own, name)


def build(config: Config, *, rngs: nnx.Rngs) -> Model:
    """Return the model of `config.model`, with initial weights drawn from `rngs.params`.

    Call it under jax.jit or nnx.eval_shape; eagerly, each initializer runs on its own.

    With dtype "bfloat16", convolutions and hidden layers compute in bfloat16. With "float32", they
    compute in the common dtype of images and parameters: if both are cast to float64 (under
    jax_enable_x64), the model computes in float64.

    Raises UserError for an unknown name, a field of another family or a value out of range.
    """
    check(config)
    options = dict(resolve_norm_impl(config))
    options["dtype"] = jnp.bfloat16 if options["dtype"] == "bfloat16" else None
    blur_pool, remat = options.pop("blur_pool", "none"), options.pop("remat", "none")
    head_bias = options.pop("head_bias", 0.0)
    make: Any = family(options["name"]).model
    model = make(**options, rngs=rngs)
    model.remat = remat
    if head_bias:
        bias = submodule(model, family(options["name"]).head).bias
        bias[...] += head_bias
    if blur_pool == "ffcv":
        from imagenet_jax.models.blur_pool import blur_strided

        blur_strided(model)
    return model


def resolve_norm_impl(config: Config, platform: str = "") -> Config:
    """Return `config.model` with norm_impl "auto" replaced by the faster choice on `platform`.

    `platform` is "cpu", "gpu" or "tpu"; "": the platform of the default backend.
    """
    if config.get("norm_impl") != "auto":
        return config
    on_cpu = (platform or jax.default_backend()) == "cpu"
    return {**config, "norm_impl": "plain" if on_cpu else "moments"}


def outline(config: Config) -> tuple[nnx.GraphDef, Any, Any]:
    """Return (graphdef, params, batch_stats) of the model of `config.model`, without arrays.

    params and batch_stats are nested dicts of jax.ShapeDtypeStruct by module path.
    """
    return _outline(**config)


@functools.cache  # building a deep model takes seconds in Python
def _outline(**config: Any) -> tuple[nnx.GraphDef, Any, Any]:
    model = nnx.eval_shape(lambda: build(config, rngs=nnx.Rngs(0)))
    graph, *states = nnx.split(model, nnx.Param, nnx.BatchStat)
    params, batch_stats = map(nnx.to_pure_dict, states)
    return graph, params, batch_stats
