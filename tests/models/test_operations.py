"""Multiply-adds of models, against published numbers and XLA's count of small programs."""

import jax
import jax.numpy as jnp
import pytest

from imagenet_jax.config.fields import defaults
from imagenet_jax.models import operations
from imagenet_jax.models.operations import count_multiply_adds


# In billions, of the weights' meta data in torchvision. Training repeats every product for the
# gradients of both operands, but the pixels of the first layer have none.
@pytest.mark.parametrize(
    ("name", "giga", "first"),
    [
        ("resnet50", 4.089, 112**2 * 7**2 * 3 * 64),
        ("mobilenet_v2", 0.301, 112**2 * 3**2 * 3 * 32),
        ("efficientnet_b0", 0.386, 112**2 * 3**2 * 3 * 32),
        ("swin_t", 4.491, 56**2 * 4**2 * 3 * 96),
        ("vit_b16", 17.564, 14**2 * 16**2 * 3 * 768),
    ],
)
def test_evaluation_is_what_torchvision_publishes_and_training_three_times_that(name, giga, first):
    config = defaults(name).model
    counted = count_multiply_adds(config, 224)
    assert counted / 1e9 == pytest.approx(giga, abs=1e-3)
    assert count_multiply_adds(config, 224, train=True) == 3 * counted - first


def test_training_counts_auxiliary_heads():
    config = defaults("googlenet").model
    with_heads = count_multiply_adds(config, 224, train=True)
    config.aux_weight = 0.0
    # Averages of 14x14 pixels to 4x4, which are products with constants, 1x1 convolutions to 128
    # channels, and two linear layers.
    pools = sum((4 * 14 + 4 * 4) * 14 * inputs for inputs in (512, 528))
    heads = sum(16 * inputs * 128 + 2048 * 1024 + 1024 * 1000 for inputs in (512, 528))
    without = count_multiply_adds(config, 224, train=True)
    assert with_heads == without + 2 * pools + 3 * heads


def test_recomputation_and_second_moments_do_not_count():
    config = defaults("resnet18").model
    plain = count_multiply_adds(config, 64, train=True)
    config.update(remat="blocks", norm_impl="moments")
    assert count_multiply_adds(config, 64, train=True) == plain


@pytest.mark.parametrize(("groups", "stride"), [(1, 1), (1, 2), (4, 2), (16, 1), (16, 2)])
def test_gradients_of_convolutions_count_as_in_xla_before_it_optimizes(groups, stride):
    """Neither padding nor the zeros between the pixels of a strided gradient are products."""

    def convolve(kernel, x):
        x = jax.lax.conv_general_dilated(
            x, kernel[0], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jax.lax.conv_general_dilated(
            x, kernel[1], (stride, stride), "VALID", feature_group_count=groups,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip

    kernels = [jnp.ones((1, 1, 3, 16)), jnp.ones((3, 3, 16 // groups, 32))]
    x = jnp.ones((2, 11, 11, 3))
    jaxpr = jax.make_jaxpr(convolve)(kernels, x).jaxpr
    counted, _ = operations._total(jaxpr, [True, True, False])
    lowered = jax.jit(lambda k, x, d: jax.vjp(lambda k: convolve(k, x), k)[1](d)).lower(
        kernels, x, jax.eval_shape(convolve, kernels, x)
    )
    # The first layer's forward pass is in it; the second's output is not needed.
    forward, _ = operations._total(jaxpr, [False] * 3)
    first = 2 * 11**2 * 3 * 16
    assert lowered.cost_analysis()["flops"] == 2 * (counted - (forward - first))


def test_a_scan_counts_as_often_as_it_runs():
    def repeat(kernel, x):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ kernel), None), x, length=5)[0]

    jaxpr = jax.make_jaxpr(repeat)(jnp.ones((8, 8)), jnp.ones((4, 8))).jaxpr
    assert operations._total(jaxpr, [False, False])[0] == 5 * 4 * 8 * 8
    assert operations._total(jaxpr, [True, True])[0] == 3 * 5 * 4 * 8 * 8
