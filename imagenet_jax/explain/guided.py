"""Guided backpropagation (Springenberg et al. 2015, arXiv:1412.6806)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

from imagenet_jax.explain import layers

_CALLS = ("jit", "pjit")  # jax's names, new and old, of a call to a compiled function


def guided_backpropagation(
    model: layers.Model, images: layers.Array, labels: layers.Array
) -> jax.Array:
    """f32[B, H, W, 3]: the gradient of each image's class logit by its pixels, where every ReLU
    passes back what is positive alone, and that only where its input was (section 3.4).

    Args:
      images: f[B, H, W, 3], normalised as for the model.
      labels: i[B], the class to explain of each.
    """
    return _guided(*nnx.split(model), images, jnp.asarray(labels))


@jax.jit(static_argnames="graph")
def _guided(
    graph: nnx.GraphDef, state: nnx.State, images: jax.Array, labels: jax.Array
) -> jax.Array:
    def logit_of(images: jax.Array) -> jax.Array:
        logits = nnx.merge(graph, state)(images, train=False)
        return jnp.take_along_axis(logits, labels[:, None], axis=1).sum()

    # The models know nothing of this: what they trace to is changed.
    traced = jax.make_jaxpr(logit_of)(images)
    guided = jaxpr_as_fun(traced.replace(jaxpr=_with_guided_relus(traced.jaxpr)))
    return jax.grad(lambda x: guided(x)[0])(images).astype(jnp.float32)


@jax.custom_vjp
def _guided_relu(x: jax.Array) -> jax.Array:
    return jnp.maximum(x, 0)


def _forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _guided_relu(x), x


def _backward(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    return (jnp.where(x > 0, jnp.maximum(gradient, 0), 0),)


_guided_relu.defvjp(_forward, _backward)


def _with_guided_relus(jaxpr: Jaxpr) -> Jaxpr:
    """The same operations, but each ReLU is a guided one, in functions that it calls too."""
    equations = []
    for equation in jaxpr.eqns:
        inner = _called(equation)
        if _is_relu(equation):
            like = jax.make_jaxpr(_guided_relu)(equation.invars[0].aval).eqns[0]
            equation = like.replace(invars=equation.invars, outvars=equation.outvars)
        elif inner is not None:
            changed = inner.replace(jaxpr=_with_guided_relus(inner.jaxpr))
            equation = equation.replace(params={**equation.params, "jaxpr": changed})
        equations.append(equation)
    return jaxpr.replace(eqns=equations)


def _called(equation: Any) -> ClosedJaxpr | None:
    return equation.params["jaxpr"] if equation.primitive.name in _CALLS else None


def _is_relu(equation: Any) -> bool:
    """Whether this is jax.nn.relu: a rule of its own for derivatives around max(x, 0)."""
    if equation.primitive.name != "custom_jvp_call":
        return False
    jaxpr = equation.params["call_jaxpr"].jaxpr
    while len(jaxpr.eqns) == 1 and (inner := _called(jaxpr.eqns[0])) is not None:
        jaxpr = inner.jaxpr
    if len(jaxpr.eqns) != 1 or jaxpr.eqns[0].primitive.name != "max":
        return False
    return any(isinstance(x, Literal) and x.val == 0 for x in jaxpr.eqns[0].invars)
