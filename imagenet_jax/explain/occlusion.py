"""Occlusion (Zeiler & Fergus 2014, arXiv:1311.2901, section 4.2): what hiding a part costs."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from imagenet_jax.errors import UserError
from imagenet_jax.explain import layers

_ROWS = 64  # images that the model is given at a time


def default_size(side: int) -> int:
    """Of the square, in pixels: a fifth of the image's side, at least 2."""
    return max(2, round(side / 5))


def default_stride(size: int) -> int:
    """Between squares, in pixels: a quarter of the square's side."""
    return max(1, size // 4)


def corners(side: int, size: int, stride: int) -> np.ndarray:
    """i64[N]: where squares begin along a side: every `stride` pixels, and at the far edge.

    Raises UserError unless 1 <= size <= side and stride >= 1.
    """
    if not 1 <= size <= side or stride < 1:
        raise UserError(
            f"a square of {size} pixels every {stride} does not fit images of {side} pixels; "
            "use 1 <= --square <= the image's side"
        )
    return np.unique([*range(0, side - size + 1, stride), side - size])


def probabilities(
    model: layers.Model, images: layers.Array, labels: layers.Array, *, size: int, stride: int
) -> jax.Array:
    """f32[B, R, C]: the class's probability while a grey square hides a part of the image.

    Args:
      images: f[B, H, W, 3], normalised as for the model; grey is 0 there, the data's mean colour.
      labels: i[B], the class of each whose probability is taken.
      size, stride: of the squares, in pixels; they begin at the `corners` of H (R) and W (C).
    Raises UserError for a square that does not fit.
    """
    rows, columns = (corners(side, size, stride) for side in images.shape[1:3])
    places = np.stack(np.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)
    out = _probabilities(*nnx.split(model), images, jnp.asarray(labels), places, size=size)
    return out.T.reshape(len(images), len(rows), len(columns))


def occlusion(
    model: layers.Model, images: layers.Array, labels: layers.Array, *, size: int, stride: int
) -> np.ndarray:
    """f32[B, H, W] in [-1, 1]: the probability that the class loses when a square hides the pixel,
    averaged over the squares that do; negative where hiding it helps.

    Arguments and errors are those of `probabilities`; pixels between squares (stride > size) are 0.
    """
    hidden = np.asarray(probabilities(model, images, labels, size=size, stride=stride))
    whole = np.asarray(_seen(*nnx.split(model), images, jnp.asarray(labels)))
    height, width = images.shape[1:3]
    total, count = np.zeros((len(images), height, width)), np.zeros((height, width))
    for i, top in enumerate(corners(height, size, stride)):
        for j, left in enumerate(corners(width, size, stride)):
            square = np.s_[..., top : top + size, left : left + size]
            total[square] += (whole - hidden[:, i, j])[:, None, None]
            count[square] += 1
    return (total / np.maximum(count, 1)).astype(np.float32)


@jax.jit(static_argnames="graph")
def _seen(graph: nnx.GraphDef, state: nnx.State, images: jax.Array, labels: jax.Array) -> jax.Array:
    """f32[B]: the class's probability."""
    shares = jax.nn.softmax(nnx.merge(graph, state)(images, train=False))
    return jnp.take_along_axis(shares, labels[:, None], axis=1)[:, 0]


@jax.jit(static_argnames=("graph", "size"))
def _probabilities(
    graph: nnx.GraphDef,
    state: nnx.State,
    images: jax.Array,
    labels: jax.Array,
    places: jax.Array,
    size: int,
) -> jax.Array:
    """f32[P, B] for places i[P, 2]."""

    def at(place: jax.Array) -> jax.Array:
        square = jnp.zeros((len(images), size, size, images.shape[-1]), images.dtype)
        hidden = jax.lax.dynamic_update_slice(images, square, (0, place[0], place[1], 0))
        return _seen(graph, state, hidden, labels)

    return jax.lax.map(at, places, batch_size=max(1, _ROWS // len(images)))
