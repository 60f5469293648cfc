"""Model options against torch: groups of batch norm, StochasticDepth, BlurPool; BiT.

Networks are torchvision's own, changed only by hooks, so that their
state dicts keep their keys; BiT, which torchvision lacks, is written in torch.nn.functional.
"""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from imagenet_jax import models
from imagenet_jax.config import fields as defaults
from imagenet_jax.models.layers import drop_path
from imagenet_jax.weights import state_dicts

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")
F = torch.nn.functional

pytestmark = pytest.mark.parity

TOLERANCE = 1e-4  # of the largest logit
IMAGES = np.random.default_rng(0).normal(size=(4, 64, 48, 3)).astype(np.float32)


def to_torch(images: np.ndarray) -> "torch.Tensor":
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def perturbed(model):
    """With no norm parameter at 0 or 1, and branches that are weak, as trained ones are."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            last = ("resnet" in type(model).__name__.lower()) and "bn3" in name
            torch.nn.init.uniform_(parameter, *((0.1, 0.3) if last else (0.5, 1.5)))
    return model


def ours(state_dict, *, train: bool, images: np.ndarray = IMAGES, **fields) -> np.ndarray:
    """f32[B, classes] of our model of these fields with those weights."""
    config = defaults.defaults(fields.pop("name")).model
    for field, value in fields.items():
        config[field] = value
    arrays = {k: v.detach().numpy() for k, v in state_dict.items()}
    params, stats = state_dicts.from_torch(arrays, config)
    model = nnx.eval_shape(lambda: models.build(config, rngs=nnx.Rngs(0)))
    graph = nnx.split(model, nnx.Param, nnx.BatchStat)[0]

    @jax.jit
    def forward(params, stats, images):
        return nnx.merge(graph, params, stats)(images, train=train)

    return np.asarray(forward(params, stats, jnp.asarray(images)))


def assert_close(got: np.ndarray, want: "torch.Tensor") -> None:
    want = want.detach().numpy()
    assert np.abs(want).max() > 0.1
    assert np.abs(got - want).max() < TOLERANCE * np.abs(want).max()


def standardized(kernel):
    var, mean = torch.var_mean(kernel, dim=(1, 2, 3), keepdim=True, unbiased=False)
    return (kernel - mean) / torch.sqrt(var + 1e-10)


@pytest.mark.parametrize("group", [2, 4])
def test_batch_norm_groups_are_separate_forward_passes(group):
    """As devices that normalise their own rows: torch runs on each group alone."""
    model = perturbed(torchvision.models.resnet50()).train()
    given = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        parts = [model(to_torch(IMAGES[i : i + group])) for i in range(0, 4, group)]
    # Two images leave 2x2 values of 2 images in the last stage: roundings are magnified there.
    got = ours(given, name="resnet50", bn_group=group, train=True)
    want = torch.cat(parts).numpy()
    assert np.abs(got - want).max() < 2e-3 * np.abs(want).max()


def blur(x):
    kernel = torch.tensor([1.0, 2.0, 1.0])
    kernel = (kernel[:, None] * kernel / 16).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(x, kernel, padding=1, groups=x.shape[1])


def anti_aliased(model):
    """torchvision's ResNet-50 with the filters of ffcv-imagenet's code, as hooks."""
    for stage in (model.layer2, model.layer3, model.layer4):
        for conv in (stage[0].conv2, stage[0].downsample[0]):
            conv.register_forward_pre_hook(lambda _, inputs: (blur(inputs[0]),))
    return model


@pytest.mark.parametrize("side", [64, 57])
def test_blur_pool(side):
    images = np.random.default_rng(side).normal(size=(3, side, side, 3)).astype(np.float32)
    model = perturbed(torchvision.models.resnet50()).eval()
    given = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        want = anti_aliased(model)(to_torch(images))
    got = ours(given, name="resnet50", blur_pool="ffcv", train=False, images=images)
    assert_close(got, want)


@pytest.mark.parametrize("train", [False, True])
def test_v1_has_the_stride_in_the_first_convolution(train):
    model = perturbed(torchvision.models.resnet50()).train(train)
    for stage in (model.layer2, model.layer3, model.layer4):
        block = stage[0]
        block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    given = {k: v.clone() for k, v in model.state_dict().items()}
    images = IMAGES[:, :, :47]
    with torch.no_grad():
        want = model(to_torch(images))
    assert_close(ours(given, name="resnet50_v1", train=train, images=images), want)


@pytest.mark.parametrize("rate", [0.2, 0.7])
def test_drop_path_is_stochastic_depth_by_rows(rate):
    """Both take each row to 0 or to the same multiple of itself, at the same frequency."""
    x = np.random.default_rng(0).uniform(1, 2, (4000, 2, 2, 3)).astype(np.float32)
    theirs = torchvision.ops.stochastic_depth(torch.from_numpy(x), rate, "row").numpy() / x
    got = np.asarray(drop_path(jnp.asarray(x), rate, jax.random.key(0))) / x
    for ratio in (theirs, got):
        assert (ratio == ratio[:, :1, :1, :1]).mean() > 0.6  # whole rows, up to rounding
        np.testing.assert_allclose(np.unique(ratio.round(4)), [0, round(1 / (1 - rate), 4)])
    np.testing.assert_allclose((got == 0).mean(), (theirs == 0).mean(), atol=0.05)


def bit_in_torch(weights: dict, x):
    """BiT R50x1 from its paper and published code, on a state dict of timm's names."""

    def norm(name, x):
        return F.relu(F.group_norm(x, 32, weights[f"{name}.weight"], weights[f"{name}.bias"]))

    def conv(name, x, stride=1):
        kernel = standardized(weights[f"{name}.weight"])
        return F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)

    x = F.max_pool2d(F.pad(conv("stem.conv", x, 2), (1, 1, 1, 1)), 3, 2)
    for stage, depth in enumerate((3, 4, 6, 3)):
        for block in range(depth):
            name, stride = f"stages.{stage}.blocks.{block}", 2 if stage and not block else 1
            y = norm(f"{name}.norm1", x)
            if not block:
                x = conv(f"{name}.downsample.conv", y, stride)
            y = conv(f"{name}.conv1", y)
            y = conv(f"{name}.conv2", norm(f"{name}.norm2", y), stride)
            x = x + conv(f"{name}.conv3", norm(f"{name}.norm3", y))
    x = norm("norm", x).mean((2, 3), keepdim=True)
    return F.conv2d(x, weights["head.fc.weight"], weights["head.fc.bias"]).flatten(1)


def test_bit():
    config = defaults.defaults("bit_r50x1").model
    model = nnx.eval_shape(lambda: models.build(config, rngs=nnx.Rngs(0)))
    shapes = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    zeros = jax.tree.map(lambda p: np.zeros(p.shape, np.float32), shapes)
    torch.manual_seed(0)
    weights = {
        name: torch.randn(array.shape) * 0.1 + (name.endswith("weight") and array.ndim == 1)
        for name, array in state_dicts.to_torch(zeros, {}, config).items()
    }
    want = bit_in_torch(weights, to_torch(IMAGES))
    for train in (True, False):
        assert_close(ours(weights, name="bit_r50x1", train=train), want)


@pytest.mark.parametrize("side", [28, 32])
def test_small_cnn(side):
    """The network of Flax's MNIST example, for color images, in torch."""
    nn = torch.nn
    layers = {
        "conv1": nn.Conv2d(3, 32, 3, padding=1), "relu1": nn.ReLU(), "pool1": nn.AvgPool2d(2),
        "conv2": nn.Conv2d(32, 64, 3, padding=1), "relu2": nn.ReLU(), "pool2": nn.AvgPool2d(2),
        "pool": nn.AdaptiveAvgPool2d(7), "flatten": nn.Flatten(),
        "fc1": nn.Linear(64 * 7 * 7, 256), "relu3": nn.ReLU(), "fc2": nn.Linear(256, 1000),
    }  # fmt: skip
    model = perturbed(nn.Sequential(collections.OrderedDict(layers)))
    images = np.random.default_rng(0).normal(size=(4, side, side, 3)).astype(np.float32)
    for train in (False, True):
        got = ours(model.state_dict(), name="small_cnn", train=train, images=images)
        assert_close(got, model(to_torch(images)))


@pytest.mark.parametrize(
    "size", [0, *(pytest.param(i, marks=pytest.mark.full) for i in (1, 2, 3, 4))]
)
def test_efficientnet_lite(size):
    """Padding is asymmetric at 24, 12 and 6 pixels, but not at 3."""
    package = pytest.importorskip("efficientnet_lite_pytorch")
    theirs = package.EfficientNet.from_name(
        f"efficientnet-lite{size}", image_size=None, drop_connect_rate=0.0, dropout_rate=0.0
    )
    theirs = perturbed(theirs).train()
    norms = [m for m in theirs.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 0.9  # leaves something of the initial statistics
    theirs(to_torch(IMAGES[::-1]))
    name = f"efficientnet_lite{size}"
    for train in (False, True):
        got = ours(theirs.state_dict(), train=train, name=name, dropout=0.0)
        assert_close(got, theirs.train(train)(to_torch(IMAGES)))
    found = state_dicts.identify({k: v.numpy() for k, v in theirs.state_dict().items()})
    assert found["name"] == name
