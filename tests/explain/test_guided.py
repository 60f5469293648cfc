"""Guided backpropagation of two ReLUs, written out in NumPy."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from imagenet_jax.explain.guided import guided_backpropagation

RNG = np.random.default_rng(0)
FIRST, SECOND, LAST = (RNG.normal(size=shape) for shape in ((12, 9), (9, 8), (8, 5)))


class TwoReLUs(nnx.Module):
    """Three linear layers of a 2x2 image; `compiled` hides a ReLU inside a function of its own."""

    def __init__(self, compiled):
        self.compiled = compiled

    def __call__(self, images, *, train):
        x = nnx.relu(images.reshape(len(images), -1) @ jnp.asarray(FIRST, images.dtype))
        act = nnx.jit(lambda y: nnx.relu(y)) if self.compiled else nnx.relu
        return act(x @ jnp.asarray(SECOND, x.dtype)) @ jnp.asarray(LAST, x.dtype)


def expected(images, labels):
    """Section 3.4: at each ReLU the signal goes back where it and the input are positive."""
    x = images.reshape(len(images), -1).astype(np.float64)
    first = x @ FIRST
    second = np.maximum(first, 0) @ SECOND
    signal = LAST.T[labels]
    signal = signal * (signal > 0) * (second > 0) @ SECOND.T
    signal = signal * (signal > 0) * (first > 0) @ FIRST.T
    return signal.reshape(images.shape)


def check(compiled):
    images, labels = RNG.normal(size=(6, 2, 2, 3)).astype(np.float32), np.arange(6) % 5
    found = guided_backpropagation(TwoReLUs(compiled), images, labels)
    np.testing.assert_allclose(found, expected(images, labels), rtol=1e-4, atol=1e-4)
    assert np.abs(found).max() > 1


def test_signals_pass_each_relu_where_both_are_positive():
    check(compiled=False)


def test_so_do_they_in_a_function_compiled_by_itself():
    check(compiled=True)
