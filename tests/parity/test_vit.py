"""Vision Transformers against torchvision's and timm's: same weights, same images, every form."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")
timm = pytest.importorskip("timm")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from flax import nnx  # noqa: E402
from timm.layers import resample_abs_pos_embed  # noqa: E402
from timm.models.vision_transformer import VisionTransformer  # noqa: E402

from imagenet_jax import models  # noqa: E402
from imagenet_jax.config import fields  # noqa: E402
from imagenet_jax.models import vit  # noqa: E402
from imagenet_jax.weights import library_names, state_dicts  # noqa: E402

pytestmark = pytest.mark.parity

TOLERANCE = 1e-4  # of the largest logit
SIDE = 64
TINY = {"img_size": SIDE, "embed_dim": 192, "num_heads": 3, "num_classes": 10}


def torchvisions(**sizes):
    options = {"patch_size": 16, "num_layers": 12, "num_heads": 3, "hidden_dim": 192}
    options |= {"mlp_dim": 768, "image_size": SIDE, "num_classes": 10} | sizes
    return torchvision.models.VisionTransformer(**options)


def timms(name, **options):
    return timm.create_model(name, img_size=SIDE, num_classes=10, **options)


# case: the reference's model, and what `identify` must find in its state dict.
CASES = {
    "torchvision": (torchvisions, {"name": "vit_ti16"}),
    "torchvision, hidden layer": (
        lambda: torchvisions(representation_size=192), {"name": "vit_ti16", "head": "mlp"}
    ),
    "deit_tiny": (lambda: timms("deit_tiny_patch16_224"), {"name": "vit_ti16"}),
    "deit3 of tiny's size": (
        lambda: VisionTransformer(**TINY, no_embed_class=True, init_values=1e-4),
        {"name": "vit_ti16", "positions": "learned_patches", "layer_scale": 1e-4},
    ),
    "mean of the patches": (
        lambda: VisionTransformer(**TINY, class_token=False, global_pool="avg", fc_norm=False),
        {"name": "vit_ti16", "pool": "mean"},
    ),
    "vit_tiny": (lambda: timms("vit_tiny_patch16_224"), {"name": "vit_ti16"}),
    "deit3_small": (
        lambda: timms("deit3_small_patch16_224"),
        {"name": "vit_s16", "positions": "learned_patches", "layer_scale": 1e-4},
    ),
    "vit_b_16": (
        lambda: torchvision.models.vit_b_16(image_size=SIDE, num_classes=10), {"name": "vit_b16"}
    ),
    "vit_b_32": (
        lambda: torchvision.models.vit_b_32(image_size=SIDE, num_classes=10), {"name": "vit_b32"}
    ),
    "vit_l_16": (
        lambda: torchvision.models.vit_l_16(image_size=SIDE, num_classes=10), {"name": "vit_l16"}
    ),
    "vit_l_32": (
        lambda: torchvision.models.vit_l_32(image_size=SIDE, num_classes=10), {"name": "vit_l32"}
    ),
    "vit_h_14": (  # needs 9 GB of memory
        lambda: torchvision.models.vit_h_14(image_size=70, num_classes=10),
        {"name": "vit_h14", "image_size": 70},
    ),
}  # fmt: skip
IN_CI = ("torchvision",)


def reference(case):
    """Return the model, with no parameter at a value that could hide an error."""
    torch.manual_seed(0)
    model = CASES[case][0]()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and "gamma" not in name and "bias" not in name:
                parameter.uniform_(0.5, 1.5)
            elif "gamma" in name or "weight" not in name:
                parameter.normal_(0, 0.3)
            elif parameter.ndim == 2:
                parameter.normal_(0, parameter.shape[1] ** -0.5)
    return model


def renamed(model):
    """Return our names' state dict, as `weight_file.read` makes it."""
    names, _ = library_names.rename(model.state_dict(), origin="the reference")
    return {names[key]: value.numpy() for key, value in model.state_dict().items()}


def forward(arrays, config):
    """Return the logits in evaluation and in training."""
    trees = state_dicts.from_torch(arrays, config)
    model = nnx.eval_shape(lambda: models.build(config, rngs=nnx.Rngs(0)))
    graph = nnx.graphdef(model)

    @jax.jit
    def both(trees, images):
        model = nnx.merge(graph, *trees)
        return [model(images, train=train) for train in (False, True)]

    return both(trees, jnp.asarray(images(config)))


def images(config):
    shape = (3, config.image_size, config.image_size, 3)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    "case", [c if c in IN_CI else pytest.param(c, marks=pytest.mark.full) for c in CASES]
)
def test_forward(case, parity_table):
    model, (_, fields_found) = reference(case), CASES[case]
    arrays = renamed(model)
    found = state_dicts.identify(arrays)
    config = fields.defaults(found["name"]).model
    config.update({"image_size": SIDE, "num_classes": 10, **fields_found})
    assert {**config.to_dict(), **found} == config.to_dict()
    compare(model, arrays, config, case, parity_table)
    back = state_dicts.to_torch(*state_dicts.from_torch(arrays, config), config)
    assert back.keys() == arrays.keys()
    assert all(np.array_equal(back[key], arrays[key]) for key in back)


def compare(model, arrays, config, case, parity_table):
    pixels = torch.from_numpy(np.ascontiguousarray(images(config).transpose(0, 3, 1, 2)))
    for mode, got in zip(("eval", "train"), forward(arrays, config), strict=True):
        with torch.no_grad():
            want = model.train(mode == "train")(pixels).numpy()
        error = np.abs(got - want).max() / np.abs(want).max()
        parity_table("forward", f"ViT, {case}", mode, error)
        assert error < TOLERANCE


def posemb_sincos_2d(rows, columns, width):
    """big_vision's models/vit.py, number by number."""
    omega = [1 / 10_000 ** (i / (width // 4 - 1)) for i in range(width // 4)]
    return [
        [f(place * o) for place in (x, y) for f in (math.sin, math.cos) for o in omega]
        for y in range(rows)
        for x in range(columns)
    ]


def test_positions_of_sines_and_cosines_are_big_visions():
    np.testing.assert_allclose(vit.sincos2d(3, 5, 24)[0], posemb_sincos_2d(3, 5, 24), rtol=1e-12)


@pytest.mark.full
def test_forward_of_the_plain_vit(parity_table):
    """timm's, with fixed positions and a hidden layer before the head."""
    model = reference("mean of the patches")
    hidden = torch.nn.Linear(192, 192)
    model.fc_norm = torch.nn.Sequential(hidden, torch.nn.Tanh())
    model.pos_embed.data = torch.tensor([posemb_sincos_2d(SIDE // 16, SIDE // 16, 192)])
    arrays = {k.replace("fc_norm.0", "pre_logits.fc"): v for k, v in renamed(model).items()}
    del arrays["pos_embed"]
    config = fields.defaults("vit_ti16").model
    config.update(state_dicts.identify(arrays), init="big_vision", image_size=SIDE)
    assert (config.pool, config.positions, config.head) == ("mean", "sincos2d", "mlp")
    compare(model, arrays, config, "plain", parity_table)


@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (3, 9)])
def test_positions_are_interpolated_as_timm_does(rows, columns):
    positions = torch.randn(1, 1 + 4 * 4, 8, generator=torch.Generator().manual_seed(0))
    want = resample_abs_pos_embed(positions, [rows, columns]).numpy()
    got = vit.resize_positions(jnp.asarray(positions.numpy()), rows, columns)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_weights_of_another_image_size_are_interpolated():
    config = fields.defaults("vit_ti16").model
    config.update(width=1 / 16, image_size=SIDE)
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), models.outline(config)[1:])
    arrays = state_dicts.to_torch(*zeros, config)
    arrays["pos_embed"] = np.random.default_rng(0).normal(size=(1, 17, 12)).astype(np.float32)
    params, _ = state_dicts.from_torch(arrays, {**config, "image_size": 96})
    want = resample_abs_pos_embed(torch.from_numpy(arrays["pos_embed"]), [6, 6]).numpy()
    np.testing.assert_allclose(params["pos_embed"], want, rtol=0, atol=1e-5)


def initial(init):
    """Return initial weights by timm's names."""
    config = fields.defaults("vit_ti16").model
    config.update(init=init, image_size=SIDE, num_classes=10)
    params = nnx.state(models.build(config, rngs=nnx.Rngs(0)), nnx.Param)
    return state_dicts.to_torch(nnx.to_pure_dict(params), {}, config)


@pytest.mark.full
@pytest.mark.parametrize("init", ["torchvision", "timm"])
def test_initial_weights_have_the_references_deviations(init):
    torch.manual_seed(0)
    model = torchvisions() if init == "torchvision" else timms("deit_tiny_patch16_224")
    ours = initial(init)
    for key, value in renamed(model).items():
        if value.size < 1000:  # a sample deviation of so few says little
            assert (ours[key].std() == 0) == (value.std() == 0), key
            continue
        assert ours[key].std() == pytest.approx(value.std(), rel=0.1), key


@pytest.mark.full
def test_initial_weights_of_big_vision():
    """models/vit.py: Xavier's bound of an n x m matrix is sqrt(6 / (n + m))."""
    ours, width = initial("big_vision"), 192
    assert not ours["head.weight"].any()
    assert not ours["cls_token"].any()
    for name, sides in (
        ("attn.qkv", 2 * width), ("attn.proj", 2 * width), ("mlp.fc1", 5 * width),
        ("mlp.fc2", 5 * width),
    ):  # fmt: skip
        bound = math.sqrt(6 / sides)
        assert 0.99 * bound < np.abs(ours[f"blocks.3.{name}.weight"]).max() <= bound
        assert ours[f"blocks.3.{name}.bias"].any() == name.startswith("mlp")
    assert ours["patch_embed.proj.weight"].std() == pytest.approx((3 * 16**2) ** -0.5, rel=0.05)
    assert ours["pos_embed"].std() == pytest.approx(width**-0.5, rel=0.05)
