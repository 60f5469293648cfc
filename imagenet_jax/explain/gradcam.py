"""Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391): where a layer speaks for a class."""

import jax
import jax.numpy as jnp
from flax import nnx

from imagenet_jax.explain import layers


def grad_cam(
    model: layers.Model, images: layers.Array, labels: layers.Array, layer: str
) -> jax.Array:
    """f32[B, H, W] in [0, 1]: the map of each image for its class, as large as the image.

    Equations 1 and 2: each channel of the layer is weighed by the mean over space of the gradient
    of the class's logit, the weighted sum is rectified, enlarged bilinearly, and divided by its
    maximum; a map that is nowhere positive stays 0.

    Args:
      images: f[B, H, W, 3], normalised as for the model.
      labels: i[B], the class to explain of each.
      layer: a name of `layers.conv_layers`; what it puts out before any norm or ReLU is used.
    Raises UserError for a layer that the model does not have.
    """
    outputs, gradients = outputs_and_gradients(model, images, labels, layer)
    return _combine(outputs, gradients, images.shape[1:3])


def outputs_and_gradients(
    model: layers.Model, images: layers.Array, labels: layers.Array, layer: str
) -> tuple[jax.Array, jax.Array]:
    """(A, dy/dA), both f32[B, h, w, K]: a convolution's output and the gradient of the logit y.

    Arguments and errors are those of `grad_cam`.
    """
    layers.check(model, layer)
    return _outputs_and_gradients(*nnx.split(model), images, jnp.asarray(labels), layer=layer)


@jax.jit(static_argnames=("graph", "layer"))
def _outputs_and_gradients(
    graph: nnx.GraphDef, state: nnx.State, images: jax.Array, labels: jax.Array, layer: str
) -> tuple[jax.Array, jax.Array]:
    model = nnx.merge(graph, state)
    output = jax.eval_shape(lambda x: layers.activations(model, x, layer), images)

    def logits_of(added: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The sum over images, none of which sees another, of its class's logit."""
        seen = []

        def change(value: jax.Array) -> jax.Array:
            seen.append(value)
            return value + added

        logits = layers.tapped(model, {layer: change})(images, train=False)
        return jnp.take_along_axis(logits, labels[:, None], axis=1).sum(), seen[0]

    # The derivative by the output is that by what is added to it, at 0.
    zeros = jnp.zeros(output.shape, output.dtype)
    gradients, outputs = jax.grad(logits_of, has_aux=True)(zeros)
    return outputs.astype(jnp.float32), gradients.astype(jnp.float32)


@jax.jit(static_argnames="size")
def _combine(outputs: jax.Array, gradients: jax.Array, size: tuple[int, int]) -> jax.Array:
    weights = gradients.mean((1, 2), keepdims=True)
    maps = jax.nn.relu((weights * outputs).sum(-1))
    maps = jax.image.resize(maps, (len(maps), *size), "bilinear")
    largest = maps.max((1, 2), keepdims=True)
    return maps / jnp.where(largest > 0, largest, 1)
