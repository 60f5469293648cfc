"""Every variant against torchvision's: same weights, same images, stage by stage.

In training mode a deep ResNet multiplies a rounding error by some factor in every block, because
each batch norm divides by the deviation of a few values. With residual branches as strong as their
shortcuts, 50 blocks turn float32's 6e-8 into 1e-3: torchvision in float32 is then as far from
torchvision in float64 (1.4e-3 at layer4 of ResNet-152) as we are (1.6e-3), and neither is wrong.
So float32 is compared on networks whose branches are weaker, as trained ones are, and the strong
ones are compared in float64, to a tolerance that no difference in semantics could meet.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict
from PIL import Image

from imagenet_jax import models
from imagenet_jax.config import fields
from imagenet_jax.weights import state_dicts

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")
datasets = pytest.importorskip("sklearn.datasets")

pytestmark = pytest.mark.parity

# In CI: the smallest of each family, and the ResNet and VGG that are used most. torchvision has no
# BiT: test_model_options.py compares it.
IN_CI = {family.variants[0] for family in models.families()} | {"resnet50", "vgg16_bn"}
# float32 is not enough for these: they are deep, and without shortcuts or with gates.
DEEP = ["inception_v3", *(f"efficientnet_b{i}" for i in range(1, 8))]
DEEP += [f"efficientnet_v2_{size}" for size in "sml"]


def in_tiers(names):
    """Return parameters for pytest; those not in CI are for `make test-full`."""
    return [name if name in IN_CI else pytest.param(name, marks=pytest.mark.full) for name in names]


NAMES = [name for name in models.names() if hasattr(torchvision.models, name)]
TIMMS = ["resnet50d", "seresnet50"]
TIMMS += [pytest.param(f"resnet{n}d", marks=pytest.mark.full) for n in (18, 34, 101, 152)]
TOLERANCE = {"float32": 1e-4, "float64": 1e-10}  # of the largest magnitude in the array compared
SIDE = {"inception_v3": 299}  # others: 64
# Without dropout, which differs between libraries, and without a warning about initial weights.
OPTIONS = {"googlenet": {"dropout_aux": 0.0, "init_weights": False},
           "inception_v3": {"init_weights": False}}  # fmt: skip
# torchvision's module that ends each stage.
LAST_BLOCKS = {
    "googlenet": {
        "stem": "maxpool2", "inception3": "inception3b", "aux1": "aux1", "aux2": "aux2",
        "inception4": "inception4e", "inception5": "inception5b",
    },
    "inception_v3": {
        "stem": "maxpool2", "Mixed_5": "Mixed_5d", "Mixed_6": "Mixed_6e", "aux": "AuxLogits",
        "Mixed_7": "Mixed_7c",
    },
}  # fmt: skip


@pytest.fixture
def images(name) -> np.ndarray:
    """f32[4, 64, 64, 3]: two photographs, shrunk and normalised, and two of noise."""
    side = SIDE.get(name, 64)
    photographs = [
        Image.fromarray(photo).resize((side, side), Image.Resampling.BILINEAR)
        for photo in datasets.load_sample_images().images
    ]
    real = np.stack([np.asarray(p) for p in photographs]) / 255
    real = (real - fields.IMAGENET_MEAN) / fields.IMAGENET_STD
    noise = np.random.default_rng(0).normal(size=(2, side, side, 3))
    return np.concatenate([real, noise]).astype(np.float32)


def reference(name: str, *, branch: tuple[float, float], timm: str = ""):
    """torchvision's model, or the one that `timm` names, with no value that could hide an error.

    `branch` bounds the norm scales that end residual branches.

    Running statistics come from a batch, so that activations stay near unit size in evaluation
    too, and are then moved at random.
    """
    torch.manual_seed(0)
    side = SIDE.get(name, 64)
    calibration = np.random.default_rng(1).normal(size=(8, side, side, 3)).astype(np.float32)
    options = {"dropout": 0.0} if "dropout" in fields.defaults(name).model else {}
    options |= OPTIONS.get(name, {})
    make = None if timm else getattr(torchvision.models, name, None)
    model = make(**options) if make else pytest.importorskip("timm").create_model(timm or name)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for module in model.modules():
            if getattr(module, "bias", None) is not None:
                module.bias.normal_(0, 0.1)
        for norm in norms:
            norm.weight.uniform_(0.5, 1.5)
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 1.0
        for module in model.modules():
            if type(module).__name__ in ("BasicBlock", "Bottleneck"):
                last = module.bn3 if hasattr(module, "bn3") else module.bn2
                last.weight.uniform_(*branch)
            if type(module).__name__ in ("MBConv", "FusedMBConv") and module.use_res_connect:
                module.block[-1][1].weight.uniform_(*branch)
            if getattr(module, "has_skip", False):  # in timm's MobileNets and EfficientNets
                *_, last = (m for m in module.children() if isinstance(m, torch.nn.BatchNorm2d))
                last.weight.uniform_(*branch)
            if isinstance(module, torchvision.ops.StochasticDepth):
                module.p = 0.0
            elif isinstance(module, torch.nn.LayerNorm):
                module.weight.uniform_(0.5, 1.5)
            elif hasattr(module, "layer_scale"):
                module.layer_scale.uniform_(*branch)
            elif hasattr(module, "relative_position_bias_table"):
                module.relative_position_bias_table.normal_()
        model.train()(to_torch(calibration))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.running_mean += 0.1 * norm.running_var.sqrt() * torch.randn(norm.num_features)
            norm.running_var *= torch.empty(norm.num_features).uniform_(0.8, 1.25)
            norm.momentum = momentum
    return model


def to_torch(images: np.ndarray):
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def reference_stages(name: str, model, images: np.ndarray) -> dict[str, np.ndarray]:
    """Return activations in NHWC, named as by `model.activations`; of other families, logits."""
    stages: dict[str, np.ndarray] = {}

    def keep(stage: str):
        def hook(_module, _inputs, output):
            stages[stage] = (output.permute(0, 2, 3, 1) if output.ndim == 4 else output).numpy()

        return hook

    if name.startswith("vgg"):
        pools = [m for m in model.features if isinstance(m, torch.nn.MaxPool2d)]
        points = {f"stage{i + 1}": pool for i, pool in enumerate(pools)}
    elif "resnet" in name:
        points = {"stem": model.maxpool} | {
            f"layer{i}": getattr(model, f"layer{i}") for i in (1, 2, 3, 4)
        }
    elif name in LAST_BLOCKS:
        points = {stage: getattr(model, block) for stage, block in LAST_BLOCKS[name].items()}
    else:
        points = {}
    handles = [module.register_forward_hook(keep(stage)) for stage, module in points.items()]
    with torch.no_grad():
        logits = model(to_torch(images))
        stages["logits"] = (logits[0] if isinstance(logits, tuple) else logits).numpy()
    for handle in handles:
        handle.remove()
    return stages


def relative(ours, theirs: np.ndarray) -> float:
    """Largest difference over the largest magnitude of the reference."""
    assert ours.shape == theirs.shape
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


@pytest.mark.parametrize("name", [*in_tiers(name for name in NAMES if name not in DEEP), *TIMMS])
def test_forward(name, images, parity_table):
    compare(name, reference(name, branch=(0.1, 0.5)), images, parity_table)


@pytest.mark.parametrize(
    "name",
    [
        *(f"resnet{n}" for n in (18, 34, 50, 101, 152)),
        *in_tiers(DEEP),
    ],
)
def test_forward_in_float64(name, images, parity_table):
    theirs = reference(name, branch=(0.05, 0.2) if name in DEEP else (0.5, 1.5)).double()
    with jax.enable_x64(True):
        compare(name, theirs, images.astype(np.float64), parity_table)


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "timm"),
    [
        ("timm_mobilenet_v3_small", "mobilenetv3_small_100"),
        ("timm_mobilenet_v3_large", "mobilenetv3_large_100"),
        ("tf_mobilenet_v3_small", "tf_mobilenetv3_small_100"),
        ("tf_mobilenet_v3_large", "tf_mobilenetv3_large_100"),
        ("mobilenet_v2", "mobilenetv2_100"),
        ("efficientnet_b0", "efficientnet_b0"),
        ("efficientnet_b1", "efficientnet_b1"),
        ("tf_efficientnet_b0", "tf_efficientnet_b0"),
        ("tf_efficientnet_b5", "tf_efficientnet_b5"),
        ("efficientnet_lite0", "tf_efficientnet_lite0"),
        ("timm_efficientnet_lite0", "efficientnet_lite0"),
    ],
)
def test_mobile_networks_of_timm_in_float64(name, timm, images, parity_table):
    # Stronger branches of b5 turn float64's 1e-16 into 1e-8 on photographs, whose logits are large.
    theirs = reference(name, branch=(0.05, 0.2), timm=timm).double()
    if timm.startswith("tf_"):  # timm trains them on with torch's momentum
        for module in theirs.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 0.01
    with jax.enable_x64(True):
        compare(name, theirs, images.astype(np.float64), parity_table)


def compare(name, theirs, images, parity_table):
    config = fields.defaults(name).model
    for field in ("dropout", "aux_dropout"):
        if field in config:
            config[field] = 0.0
    numpy_dict = {k: v.numpy() for k, v in theirs.state_dict().items()}
    trees = state_dicts.from_torch(numpy_dict, config)
    graph, *states = nnx.split(
        nnx.eval_shape(lambda: models.build(config, rngs=nnx.Rngs(0))), nnx.Param, nnx.BatchStat
    )
    for state, tree in zip(states, trees, strict=True):
        # float32 values, as a state dict holds them, in the precision that is compared.
        arrays = jax.tree.map(lambda x: jnp.asarray(x, images.dtype), tree)
        nnx.replace_by_pure_dict(state, arrays)

    @jax.jit
    def evaluate(states, images):
        return dict(nnx.merge(graph, *states).activations(images, train=False, rngs=None))

    @jax.jit
    def train(states, images):
        model = nnx.merge(graph, *states)
        stages = dict(model.activations(images, train=True, rngs=None))
        return stages, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    tolerance = TOLERANCE[images.dtype.name]
    want = reference_stages(name, theirs.eval(), images)
    got = evaluate(states, images)
    check(name, "eval", got, want, tolerance, parity_table)

    want = reference_stages(name, theirs.train(), images)
    got, moved = train(states, images)
    check(name, "train", got, want, tolerance, parity_table)

    is_timm = "conv_stem.weight" in numpy_dict
    statistics = {
        state_dicts.torch_key(name, path, is_timm=is_timm): value
        for path, value in flatten_dict(moved).items()
    }
    worst = 0.0
    for key, value in theirs.state_dict().items():
        if "running" in key:
            error = relative(statistics[key], value.numpy())
            assert error < tolerance, f"{name}: {key} after a training step is off by {error:.1e}"
            worst = max(worst, error)
    if worst:
        parity_table("forward", name, f"{images.dtype.name} statistics", worst)


def check(name, mode, got, want, tolerance, parity_table):
    if len(want) > 1:
        assert set(got) == set(want)
    for stage in want:
        activation = got[stage]
        assert activation.dtype == want[stage].dtype
        error = relative(activation, want[stage])
        assert error < tolerance, f"{name} in {mode} mode: {stage} is off by {error:.1e}"
    error = relative(got["logits"], want["logits"])
    parity_table("forward", name, f"{got['logits'].dtype.name} logits, {mode}", error)


@pytest.mark.parametrize("name", in_tiers(NAMES))
def test_torchvision_loads_what_we_write(name):
    """Strictly: every key, no other, each shape; and what comes back is what went."""
    config = fields.defaults(name).model
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)(**OPTIONS.get(name, {}))
    shapes = {k: tuple(v.shape) for k, v in theirs.state_dict().items()}
    ours = {k: np.broadcast_to(np.float32(i), shapes[k]) for i, k in enumerate(shapes)}
    back = state_dicts.to_torch(*state_dicts.from_torch(ours, config), config)
    assert {k: v.shape for k, v in back.items()} == shapes
    for i, key in enumerate(shapes):
        buffer = key.endswith(("num_batches_tracked", "relative_position_index"))
        assert buffer or (back[key] == i).all(), key
