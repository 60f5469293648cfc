"""The networks in plain Flax have the layers of those that they are compared with."""

from collections import Counter

import jax
import pytest

from benchmarks.compile import find_plain, replaced
from imagenet_jax import models
from imagenet_jax.config.fields import defaults


def shapes(model):
    """How many parameters, and how many batch statistics, have each shape."""
    _, params, stats = models.outline(model)
    return [Counter(leaf.shape for leaf in jax.tree.leaves(tree)) for tree in (params, stats)]


@pytest.mark.parametrize("name", ["resnet50", "resnet101", "vgg16"])
def test_plain_networks_have_the_shapes_of_ours(name):
    model = defaults(name).model
    ours = shapes(model)
    with replaced(name, find_plain(name)):
        plain = shapes(model)
    assert plain == ours
    assert shapes(model) == ours


def test_bit_has_no_plain_network():
    assert find_plain("bit_r50x1") is None
