"""Drop path and anti-aliasing: their formulas in NumPy and SciPy, and where ResNets apply them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from conftest import tiny_model
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from imagenet_jax import models
from imagenet_jax.errors import UserError
from imagenet_jax.models import resnet
from imagenet_jax.models.blur_pool import blur_pool
from imagenet_jax.models.layers import ConvNorm, drop_path


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_rows_are_dropped_whole_and_the_expectation_is_kept(rate):
    rows = 20_000
    x = jnp.asarray(np.random.default_rng(0).uniform(1, 2, (rows, 2, 3)), jnp.float32)
    y = np.asarray(drop_path(x, rate, jax.random.key(1)))
    dropped = (y == 0).all((1, 2))
    np.testing.assert_allclose(y[~dropped], np.asarray(x)[~dropped] / (1 - rate), rtol=1e-6)
    # Five standard deviations of a binomial.
    assert abs(dropped.mean() - rate) < 5 * (rate * (1 - rate) / rows) ** 0.5
    assert y.mean() == pytest.approx(float(x.mean()), rel=0.03)
    other = np.asarray(drop_path(x, rate, jax.random.key(2)))
    assert (other != y).any()


def test_the_rate_rises_linearly_from_0():
    model = nnx.eval_shape(
        lambda: models.build(tiny_model("resnet50", drop_path=0.3), rngs=nnx.Rngs(0))
    )
    stages = (model.layer1, model.layer2, model.layer3, model.layer4)
    np.testing.assert_allclose([b.rate for s in stages for b in s], np.linspace(0, 0.3, 16))


def basic_block(rate: float = 0.0) -> resnet.BasicBlock:
    make = partial(ConvNorm.make, rngs=nnx.Rngs(0))
    block = resnet.BasicBlock(8, 8, 1, make, resnet.VARIANTS["resnet18"])
    block.rate = rate
    return block


def test_a_dropped_row_of_a_block_is_its_shortcut():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.uniform(0, 1, (16, 4, 4, 8)), jnp.float32)
    block, whole = basic_block(rate=0.5), basic_block()
    y = np.asarray(block(x, train=True, rngs=nnx.Rngs(dropout=3)))
    full = np.asarray(whole(x, train=True))
    is_shortcut = np.isclose(y, x, atol=1e-6).all((1, 2, 3))
    assert 0 < is_shortcut.sum() < 16
    assert not np.isclose(full, x, atol=1e-6).all((1, 2, 3)).any()
    # The kept branch is doubled; where the ReLU lets it through, y = x + 2 (full - x).
    kept = ~is_shortcut
    through = (y > 0) & (full > 0)
    np.testing.assert_allclose(
        np.where(through, y, 0)[kept],
        np.where(through, x + 2 * (full - np.asarray(x)), 0)[kept],
        rtol=1e-4,
        atol=1e-4,
    )
    np.testing.assert_allclose(block(x, train=False), whole(x, train=False), rtol=1e-6)


def test_drop_path_without_random_numbers_is_an_error():
    block = basic_block(rate=0.5)
    with pytest.raises(ValueError, match="drop path needs rngs"):
        block(jnp.ones((2, 4, 4, 8)), train=True)


@settings(max_examples=10)
@given(height=st.integers(2, 9), width=st.integers(2, 9), stride=st.sampled_from([1, 2]))
def test_blur_pool_is_a_convolution_with_the_triangle_subsampled(height, width, stride):
    x = np.random.default_rng(height * 10 + width).normal(size=(2, height, width, 3))
    kernel = np.outer([1, 2, 1], [1, 2, 1]) / 16
    filtered = scipy.ndimage.convolve(x, kernel[None, :, :, None], mode="constant")
    got = blur_pool(jnp.asarray(x, jnp.float32), stride=stride)
    np.testing.assert_allclose(got, filtered[:, ::stride, ::stride], rtol=1e-5, atol=1e-5)


def test_a_checkerboard_vanishes_under_the_filter():
    board = (np.indices((8, 8)).sum(0) % 2 * 2.0 - 1)[None, :, :, None]
    got = blur_pool(jnp.asarray(board), stride=2)
    np.testing.assert_allclose(got[:, 1:, 1:], 0, atol=1e-7)  # zeros beyond the edges


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_anti_aliasing_keeps_shapes_and_parameters(name):
    def outline(form: str):
        def run(images):
            model = models.build(tiny_model(name, blur_pool=form), rngs=nnx.Rngs(0))
            return dict(model.activations(images, train=False, rngs=None)), nnx.to_pure_dict(
                nnx.state(model, nnx.Param)
            )

        shape = jax.ShapeDtypeStruct((2, 97, 64, 3), jnp.float32)
        return jax.tree.map(lambda a: a.shape, jax.eval_shape(run, shape))

    assert outline("ffcv") == outline("none")


def strides(name: str, form: str) -> list[int]:
    """Return the stride of every convolution that the first block of stage 2 runs, in order."""
    config = tiny_model(name, blur_pool=form)

    def run(x):
        return models.build(config, rngs=nnx.Rngs(0)).layer2[0](x, train=False)

    channels = 4 if name == "resnet18" else 16
    jaxpr = jax.make_jaxpr(run)(jnp.zeros((1, 8, 8, channels)))
    convs = [e for e in jaxpr.eqns if e.primitive.name == "conv_general_dilated"]
    return [e.params["window_strides"][0] for e in convs]


def test_which_convolutions_still_stride():
    assert strides("resnet18", "none") == [2, 1, 2]
    assert strides("resnet18", "ffcv") == [2, 1, 1]
    assert strides("resnet50", "none") == [1, 2, 1, 2]
    assert strides("resnet50", "ffcv") == [1, 2, 1, 1]


def test_a_shift_by_the_stride_shifts_the_output_by_one():
    block = resnet.Bottleneck(
        4, 4, 2, partial(ConvNorm.make, rngs=nnx.Rngs(0)), resnet.VARIANTS["resnet50"]
    )
    rows = np.sin(np.arange(40) * 1.7)[None, :, None, None] * np.ones((1, 1, 40, 4))
    x = jnp.asarray(rows + np.cos(np.arange(40) * 2.1)[None, None, :, None], jnp.float32)
    here, there = (np.asarray(block(jnp.roll(x, s, 2), train=False)) for s in (0, 2))
    np.testing.assert_allclose(here[:, 4:-4, 4:-5], there[:, 4:-4, 5:-4], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("drop_path", 1.0, r"config\.model\.drop_path = 1\.0 must be at least 0 and below 1"),
        ("drop_path", "some", r"config\.model\.drop_path = 'some'"),
        ("blur_pool", "zhang", r"blur_pool = 'zhang': use none \| ffcv"),
        ("bn_group", -1, r"bn_group = -1 must be at least 0"),
    ],
)
def test_bad_values_are_named(field, value, message):
    with pytest.raises(UserError, match=message):
        models.build(config_of_any("resnet18", field, value), rngs=nnx.Rngs(0))


def config_of_any(name: str, field: str, value: object) -> dict:
    return {**tiny_model(name).to_dict(), field: value}


def test_options_that_would_do_nothing_are_errors():
    with pytest.raises(
        UserError, match=r"bn_group = 8 does nothing with config\.model\.name = 'vgg11'"
    ):
        models.check(config_of_any("vgg11", "bn_group", 8))
    models.check(config_of_any("vgg11_bn", "bn_group", 8))
    for field in ("drop_path", "blur_pool"):
        with pytest.raises(UserError, match=rf"config\.model\.{field} does not belong to vgg11"):
            models.check(config_of_any("vgg11", field, 0))
