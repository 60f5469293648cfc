"""Count the multiply-adds of the convolutions, linear layers and attention of a model.

They are counted in the jaxpr, before compilation, so that they do not depend on the device or the
compiler.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend.core import Literal

from imagenet_jax import models
from imagenet_jax.models.base import Config


def count_multiply_adds(config: Config, side: int, *, train: bool = False) -> int:
    """Return the multiply-adds of the model of `config.model` for one image of `side` x `side`.

    In evaluation, these are the numbers that papers and torchvision publish. Products with zero
    padding count. With `train`, the forward pass includes auxiliary heads, and the backward pass
    counts each product once more for each operand that has a gradient, which images do not.
    What config.model.remat recomputes, and the second moments of config.model.norm_impl, do not
    count.
    """
    return _count(side, train, **config)


@functools.cache  # tracing takes half a second in Python, and each step needs the count
def _count(side: int, train: bool, **config: Any) -> int:
    graph, params, stats = models.outline(config)

    def logits(params: Any, stats: Any, images: jax.Array) -> Any:
        model = nnx.merge(graph, params, stats)
        if train and model.aux_weight:
            return model.training_logits(images, rngs=nnx.Rngs(dropout=jax.random.key(0)))
        # Training has the same products, but takes longer to trace.
        return model(images, train=False)

    rows = 2  # batch norm in training needs at least two values
    images = jax.ShapeDtypeStruct((rows, side, side, 3), jnp.float32)
    jaxpr = jax.make_jaxpr(logits)(params, stats, images).jaxpr
    weights = len(jax.tree.leaves(params))
    return _total(jaxpr, [train and i < weights for i in range(len(jaxpr.invars))])[0] // rows


def _total(jaxpr: Any, wanted: list[bool]) -> tuple[int, list[bool]]:
    """Return (multiply-adds of `jaxpr`, which of its outputs have a gradient).

    `wanted` says which of its inputs have one.
    """
    total, found = 0, {var for var, has in zip(jaxpr.invars, wanted, strict=True) if has}

    def has_gradient(var: Any) -> bool:
        return not isinstance(var, Literal) and var in found

    for equation in jaxpr.eqns:
        operands = equation.invars["branches" in equation.params :]  # without the branch index
        gradients = [has_gradient(var) for var in operands]
        outputs = [any(gradients)] * len(equation.outvars)
        total += _multiply_adds(equation) * (1 + sum(gradients))
        for inner in _inner(equation):
            same = len(inner.invars) == len(gradients)
            count, ends = _total(inner, gradients if same else [any(gradients)] * len(inner.invars))
            total += count * equation.params.get("length", 1)  # of a scan
            outputs = ends if len(ends) == len(outputs) else outputs
        found |= {var for var, has in zip(equation.outvars, outputs, strict=True) if has}
    return total, [has_gradient(var) for var in jaxpr.outvars]


def _inner(equation: Any) -> Iterator[Any]:
    # The last branch is the default platform's (models/windows.py).
    for value in (*equation.params.values(), *equation.params.get("branches", ())[-1:]):
        inner = getattr(value, "jaxpr", value)
        if hasattr(inner, "eqns"):
            yield inner


def _multiply_adds(equation: Any) -> int:
    outputs = math.prod(equation.outvars[0].aval.shape)
    if equation.primitive is jax.lax.dot_general_p:
        (contracted, _), _ = equation.params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return outputs * math.prod(left[axis] for axis in contracted)
    if equation.primitive is jax.lax.conv_general_dilated_p:
        kernel = equation.invars[1].aval.shape
        channels = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
        return outputs * math.prod(kernel) // channels
    return 0
