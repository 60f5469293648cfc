"""ResNets: shapes at any input size, strides, initial weights, options."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_model
from flax import nnx

from imagenet_jax import models
from imagenet_jax.errors import UserError
from imagenet_jax.models import resnet
from imagenet_jax.models.layers import ConvNorm

BASIC = {"resnet18", "resnet34", "resnet18d", "resnet34d"}
# One of each kind; the others differ in depths and channels.
KINDS = {"resnet18", "resnet50", "resnext50_32x4d", "resnet18d", "seresnet50"}
NAMES = [
    name if name in KINDS else pytest.param(name, marks=pytest.mark.full)
    for name in resnet.VARIANTS
]


def shapes(config, size: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    def stages(images):
        model = models.build(config, rngs=nnx.Rngs(0))
        return dict(model.activations(images, train=False, rngs=None))

    out = jax.eval_shape(stages, jax.ShapeDtypeStruct((2, *size, 3), jnp.float32))
    return {name: x.shape[1:] for name, x in out.items()}


def halved(size: int) -> int:
    """torch's floor((size + 2 padding - kernel) / 2) + 1 for 7x7/3, 3x3/1 and 1x1/0 alike."""
    return (size - 1) // 2 + 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(224, 224), (225, 225), (97, 131), (32, 32), (1, 1)])
def test_stage_shapes(name, size):
    got = shapes(tiny_model(name, width=1.0), size)
    expansion = 1 if name in BASIC else 4
    side = tuple(halved(halved(s)) for s in size)
    want = {"stem": (*side, 64)}
    for i in range(4):
        want[f"layer{i + 1}"] = (*side, 64 * 2**i * expansion)
        side = tuple(halved(s) for s in side)
    want["logits"] = (7,)
    assert got == want


def test_small_stem_keeps_the_resolution():
    got = shapes(tiny_model("resnet18", stem="small"), (32, 32))
    assert got["stem"] == got["layer1"] == (32, 32, 4)
    assert got["layer4"] == (4, 4, 32)


def test_width_multiplies_every_channel_count():
    got = shapes(tiny_model("resnet50", width=1.5), (64, 64))
    assert [got[s][-1] for s in ("stem", "layer1", "layer4")] == [96, 384, 3072]


def test_the_stride_of_a_bottleneck_is_on_its_3x3():
    model = nnx.eval_shape(lambda: models.build(tiny_model("resnet50"), rngs=nnx.Rngs(0)))
    assert isinstance(model, resnet.ResNet)
    first = model.layer2[0]
    assert [first.conv1.strides, first.conv2.strides, first.conv3.strides] == [1, 2, 1]


@pytest.mark.parametrize("kind", [resnet.BasicBlock, resnet.Bottleneck])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_block_whose_last_scale_is_0_is_its_shortcut(kind, stride):
    make = partial(ConvNorm.make, rngs=nnx.Rngs(0))
    block = kind(4 * kind.expansion, 4, stride, make, resnet.Variant(()))
    images = np.random.default_rng(0).uniform(0, 1, (2, 6, 6, 4 * kind.expansion))
    x = jnp.asarray(images, jnp.float32)
    shortcut = x
    if stride == 2:
        conv, bn = block.downsample
        shortcut = nnx.relu(bn(conv(x), train=False))
    assert not np.allclose(block(x, train=False), shortcut)
    block.layer(block.depth).norm.scale[...] = jnp.zeros(4 * kind.expansion)
    np.testing.assert_array_equal(block(x, train=False), shortcut)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("zero", [True, False])
def test_zero_init_residual_is_of_the_last_norm_of_every_block(name, zero):
    config = tiny_model(name, zero_init_residual=zero)

    @jax.jit  # which drops the draws of kernels that are not returned
    def scales():
        model = models.build(config, rngs=nnx.Rngs(0))
        flat = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        paths = jax.tree_util.tree_flatten_with_path(flat)[0]
        return {jax.tree_util.keystr(p): v for p, v in paths if "scale" in str(p[-1])}

    last = "bn2" if name in BASIC else "bn3"
    for path, scale in scales().items():
        assert (scale == (0.0 if zero and f"'{last}'" in path else 1.0)).all(), path


def test_initial_weights_are_torchvisions():
    config = tiny_model("resnet18", width=0.5, num_classes=1000)
    model = nnx.jit(lambda: models.build(config, rngs=nnx.Rngs(0)))()
    assert isinstance(model, resnet.ResNet)
    # Kaiming normal, fan-out: std = sqrt(2 / (outputs * height * width)).
    kernel = np.asarray(model.layer4[1].conv2.kernel[...])
    assert kernel.shape == (3, 3, 256, 256)
    assert kernel.std() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.01)
    # The fourth moment over the squared variance: 3 for a normal, 1.8 uniform, 2.4 truncated at 2.
    assert (kernel**4).mean() / kernel.var() ** 2 == pytest.approx(3, rel=0.02)
    strided = np.asarray(model.layer4[0].conv1.kernel[...])  # 128 -> 256: fan-in and -out differ
    assert strided.std() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.01)
    # torch's linear layer: uniform within 1 / sqrt(inputs), for the bias as well.
    bound = 256**-0.5
    for values in map(np.asarray, jax.tree.leaves(nnx.state(model.fc))):
        assert np.abs(values).max() <= bound
        assert values.std() == pytest.approx(bound / 3**0.5, rel=0.05)
        assert values.mean() == pytest.approx(0, abs=0.1 * bound)
    assert "bias" not in nnx.to_pure_dict(nnx.state(model.conv1))


def test_empty_images_are_refused(filled):
    model = filled(tiny_model("resnet18"))
    with pytest.raises(UserError, match="0x5 pixels: resnet18 needs at least 1x1"):
        model(jnp.zeros((1, 0, 5, 3)), train=False)


def test_a_single_pixel_cannot_train_alone(filled):
    model = filled(tiny_model("resnet18"))
    with pytest.raises(UserError, match="one value per channel"):
        model(jnp.zeros((1, 32, 32, 3)), train=True)


@pytest.mark.parametrize("side", [8, 9])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_strided_convolutions_pad_symmetrically(side, size):
    """torch's definition as a loop; "SAME" would pad even sides by one less on the near edge."""
    rng = np.random.default_rng(0)
    conv = ConvNorm.make(2, 3, size, 2, rngs=nnx.Rngs(0)).conv
    x = rng.normal(size=(1, side, side, 2)).astype(np.float32)
    kernel, pad = np.asarray(conv.kernel[...]), size // 2
    padded = np.pad(x[0], ((pad, pad), (pad, pad), (0, 0)))
    outputs = (side + 2 * pad - size) // 2 + 1
    want = np.empty((outputs, outputs, 3))
    for i in range(outputs):
        for j in range(outputs):
            window = padded[2 * i : 2 * i + size, 2 * j : 2 * j + size]
            want[i, j] = np.einsum("hwi,hwio->o", window, kernel)
    np.testing.assert_allclose(conv(jnp.asarray(x))[0], want, rtol=1e-4, atol=1e-5)
