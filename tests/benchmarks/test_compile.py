"""The networks in plain Flax have the layers of those that they are compared with."""

from collections import Counter

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from benchmarks.compile import find_plain, replaced
from imagenet_jax import models
from imagenet_jax.config.fields import defaults


def shapes(model):
    """How many parameters, and how many batch statistics, have each shape."""
    _, params, stats = models.outline(model)
    return [Counter(leaf.shape for leaf in jax.tree.leaves(tree)) for tree in (params, stats)]


def training_logits(model):
    """Return the shape of the logits of two images in training."""
    graph, params, stats = models.outline(model)

    def forward(params, stats, images):
        return nnx.merge(graph, params, stats).training_logits(images, rngs=nnx.Rngs(0))[0]

    return jax.eval_shape(
        forward, params, stats, jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    )


@pytest.mark.parametrize(
    "name", ["resnet50", pytest.param("resnet101", marks=pytest.mark.full), "vgg16"]
)
def test_plain_networks_have_the_shapes_of_ours(name):
    model = defaults(name).model
    ours = shapes(model)
    with replaced(name, find_plain(name)):
        plain, logits = shapes(model), training_logits(model)
    assert plain == ours
    assert logits.shape == (2, model.num_classes)
    assert shapes(model) == ours


def test_bit_has_no_plain_network():
    assert find_plain("bit_r50x1") is None
