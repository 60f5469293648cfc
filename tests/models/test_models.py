"""Building by name: parameter counts, abstract building, state, dtypes, bad fields."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from imagenet_jax import models
from imagenet_jax.config.fields import FIELDS, defaults
from imagenet_jax.errors import UserError
from imagenet_jax.models import layers
from imagenet_jax.runtime import xla

# Trainable parameters for 1,000 classes, from the model table of torchvision's documentation.
PARAMETERS = {
    "alexnet": 61_100_840,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x8d": 88_791_336,
    "resnext101_64x4d": 83_455_272,
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,
    # ResNet-D and squeeze-and-excitation: timm's.
    "resnet18d": 11_708_744,
    "resnet34d": 21_816_904,
    "resnet50d": 25_576_264,
    "resnet101d": 44_568_392,
    "resnet152d": 60_212_040,
    "seresnet50": 28_088_024,
    # As v1.5: only a stride is elsewhere.
    "resnet50_v1": 25_557_032,
    "resnet101_v1": 44_549_160,
    "resnet152_v1": 60_192_808,
    "mobilenet_v2": 3_504_872,
    "mobilenet_v3_small": 2_542_856,
    "mobilenet_v3_large": 5_483_032,
    "timm_mobilenet_v3_small": 2_542_856,
    "timm_mobilenet_v3_large": 5_483_032,
    "tf_mobilenet_v3_small": 2_542_856,
    "tf_mobilenet_v3_large": 5_483_032,
    "efficientnet_b0": 5_288_548,
    "efficientnet_b1": 7_794_184,
    "efficientnet_b2": 9_109_994,
    "efficientnet_b3": 12_233_232,
    "efficientnet_b4": 19_341_616,
    "efficientnet_b5": 30_389_784,
    "efficientnet_b6": 43_040_704,
    "efficientnet_b7": 66_347_960,
    "efficientnet_v2_s": 21_458_488,
    "efficientnet_v2_m": 54_139_356,
    "efficientnet_v2_l": 118_515_272,
    # Of Keras' model.summary().
    "tf_efficientnet_b0": 5_288_548,
    "tf_efficientnet_b1": 7_794_184,
    "tf_efficientnet_b2": 9_109_994,
    "tf_efficientnet_b3": 12_233_232,
    "tf_efficientnet_b4": 19_341_616,
    "tf_efficientnet_b5": 30_389_784,
    "tf_efficientnet_b6": 43_040_704,
    "tf_efficientnet_b7": 66_347_960,
    # Lite: of the package efficientnet_lite_pytorch.
    "efficientnet_lite0": 4_652_008,
    "efficientnet_lite1": 5_416_680,
    "efficientnet_lite2": 6_092_072,
    "efficientnet_lite3": 8_197_096,
    "efficientnet_lite4": 13_006_568,
    "timm_efficientnet_lite0": 4_652_008,
    # With auxiliary heads; without them see test_auxiliary_heads.py.
    "googlenet": 13_004_888,
    "inception_v3": 27_161_264,
    "vgg11": 132_863_336,
    "vgg13": 133_047_848,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "vgg11_bn": 132_868_840,
    "vgg13_bn": 133_053_736,
    "vgg16_bn": 138_365_992,
    "vgg19_bn": 143_678_248,
    # ViT: torchvision's vit_b_16, ...; timm's vit_tiny_patch16_224 and vit_small_patch16_224
    "vit_ti16": 5_717_416,
    "vit_s16": 22_050_664,
    "vit_b16": 86_567_656,
    "vit_b32": 88_224_232,
    "vit_l16": 304_326_632,
    "vit_l32": 306_535_400,
    "vit_h14": 632_045_800,
    "squeezenet1_0": 1_248_424,
    "squeezenet1_1": 1_235_496,
    "densenet121": 7_978_856,
    "densenet169": 14_149_480,
    "densenet201": 20_013_928,
    "densenet161": 28_681_000,
    # 896 + 18,496 + 803,072 + 257,000, for color images
    "small_cnn": 1_079_464,
    "convnext_tiny": 28_589_128,
    "convnext_small": 50_223_688,
    "convnext_base": 88_591_464,
    "convnext_large": 197_767_336,
    "swin_t": 28_288_354,
    "swin_s": 49_606_258,
    "swin_b": 87_768_224,
    # BiT: of timm's resnetv2_50x1_bit, ...
    "bit_r50x1": 25_549_352,
    "bit_r50x3": 217_319_080,
    "bit_r101x1": 44_541_480,
    "bit_r101x3": 387_934_888,
    "bit_r152x2": 236_335_208,
    "bit_r152x4": 936_533_224,
}

FIRST = [family.variants[0] for family in models.families()]


def small(name: str, **fields) -> ConfigDict:
    config = defaults(name).model
    config.width, config.num_classes = 1 / 16, 10
    for field, value in fields.items():
        config[field] = value
    return config


def test_names_are_the_published_variants():
    assert sorted(models.names()) == sorted(PARAMETERS)


def test_a_model_is_found_without_importing_other_families():
    for name in PARAMETERS:
        assert name in next(models.families(name)).variants


@pytest.mark.parametrize(
    "name",
    [
        name
        if name in ("small_cnn", "squeezenet1_0")  # a linear head and a convolution
        else pytest.param(name, marks=pytest.mark.full)
        for name in FIRST
    ],
)
def test_the_head_bias_is_added_to_the_bias_of_the_head_alone(name):
    config = small(name)
    if name.startswith("bit"):
        config.width = 0.5  # 32 groups of channels must have one each

    def params(head_bias):
        config.head_bias = head_bias
        model = models.build(config, rngs=nnx.Rngs(0))
        return flatten_dict(nnx.to_pure_dict(nnx.state(model, nnx.Param)))

    both = jax.jit(
        lambda: (params(0.0), params(-6.9)), compiler_options=xla.options(optimize=False)
    )
    plain, biased = both()
    changed = {path for path in plain if not np.array_equal(plain[path], biased[path])}
    assert changed == {(*models.family(name).head, "bias")}
    (path,) = changed
    np.testing.assert_allclose(biased[path] - plain[path], -6.9, rtol=1e-6)


@pytest.mark.parametrize("name", FIRST)
def test_the_structure_can_be_an_argument_of_jit(name):
    """jax.jit(static_argnames="graph") hashes it, which a list among a layer's options prevents."""
    assert isinstance(hash(models.outline(small(name, width=0.5))[0]), int)


@pytest.mark.parametrize(
    "name",
    [
        # Building takes up to 10 seconds: the first of each family in CI.
        name if name in {*FIRST, "resnet50"} else pytest.param(name, marks=pytest.mark.full)
        for name in PARAMETERS
    ],
)
def test_parameter_count(name):
    _, params, batch_stats = models.outline(defaults(name).model)
    assert sum(math.prod(p.shape) for p in jax.tree.leaves(params)) == PARAMETERS[name]
    assert {p.dtype for p in jax.tree.leaves((params, batch_stats))} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn"])
@pytest.mark.parametrize("dtype", FIELDS["model.dtype"].choices)
def test_compute_dtype(name, dtype):
    config = small(name, dtype=dtype)
    model = nnx.eval_shape(lambda: models.build(config, rngs=nnx.Rngs(0)))
    graph, params, batch_stats = nnx.split(model, nnx.Param, nnx.BatchStat)

    def forward(params, batch_stats, images):
        model = nnx.merge(graph, params, batch_stats)
        rngs = nnx.Rngs(0)
        stages = dict(model.activations(images, train=True, rngs=rngs))
        return model(images, train=True, rngs=rngs), stages, nnx.state(model, nnx.BatchStat)

    images = jax.ShapeDtypeStruct((2, 32, 32, 3), dtype)
    logits, stages, moved = jax.eval_shape(forward, params, batch_stats, images)
    assert logits.shape == (2, 10)
    assert logits.dtype == stages.pop("logits").dtype == jnp.float32
    assert {x.dtype for x in stages.values()} == {jnp.dtype(dtype)}
    assert {x.dtype for x in jax.tree.leaves(moved)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn"])
def test_float64_parameters_and_images_give_a_float64_model(name, filled):
    graph, *state = nnx.split(filled(small(name)), nnx.Param, nnx.BatchStat)

    @jax.jit
    def forward(state, images):
        model = nnx.merge(graph, *state)
        return model(images, train=True, rngs=nnx.Rngs(0)), nnx.state(model, nnx.BatchStat)

    with jax.enable_x64(True):
        state = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), state)
        images = np.random.default_rng(0).normal(size=(2, 32, 32, 3))
        logits, moved = forward(state, images)
        assert logits.dtype == jnp.float64
        assert {x.dtype for x in jax.tree.leaves(moved)} == {jnp.dtype("float64")}
        # Full precision was kept on the way: a change far below float32's reaches the logits.
        change = np.abs(forward(state, images * (1 + 1e-12))[0] - logits).max()
        assert 0 < change / np.abs(logits).max() < 1e-9


@pytest.mark.full
def test_one_seed_makes_one_model_and_another_seed_another():
    @jax.jit
    def leaves(key):
        return jax.tree.leaves(nnx.state(models.build(small("vgg11"), rngs=nnx.Rngs(key))))

    one, other = leaves(jax.random.key(1)), leaves(jax.random.key(2))
    assert all(np.array_equal(a, b) for a, b in zip(one, leaves(jax.random.key(1)), strict=True))
    assert [np.array_equal(a, b) for a, b in zip(one, other, strict=True)] == [
        a.ndim == 1
        for a in one  # biases start at 0, every kernel differs
    ]


@pytest.mark.parametrize(
    ("name", "field", "value", "message"),
    [
        ("resnet18", "name", "resnet5", "did you mean 'resnet50'"),
        ("resnet18", "name", "VGG16-BN", r"config\.model\.name = 'VGG16-BN'"),
        ("resnet18", "name", None, r"config\.model\.name = None"),
        ("resnet18", "num_classes", 0, r"config\.model\.num_classes = 0"),
        ("resnet18", "num_classes", "10", r"config\.model\.num_classes = '10'"),
        ("resnet18", "width", 0.0, r"config\.model\.width = 0\.0"),
        ("resnet18", "width", 1e-3, r"config\.model\.width = 0\.001"),
        ("resnet18", "width", math.inf, r"config\.model\.width = inf"),
        ("resnet18", "width", math.nan, r"config\.model\.width = nan"),
        ("resnet18", "dtype", "float16", r"model\.dtype = 'float16': use float32 \| bfloat16"),
        ("resnet18", "stem", "foo", r"config\.model\.stem = 'foo': use imagenet \| small"),
        ("resnet18", "zero_init_residual", "yes", r"config\.model\.zero_init_residual = 'yes'"),
        ("resnet18", "dropout", 0.5, r"config\.model\.dropout does not belong to resnet18"),
        ("vgg16", "stem", "small", r"config\.model\.stem does not belong to vgg16"),
        ("vgg16", "dropout", 1.0, r"config\.model\.dropout = 1\.0"),
        ("vgg16", "dropout", -0.1, r"config\.model\.dropout = -0\.1"),
        ("vgg16", "dropout", "half", r"config\.model\.dropout = 'half'"),
    ],
)
def test_a_bad_field_is_one_line_that_names_it(name, field, value, message):
    config = defaults(name).model.to_dict() | {field: value}
    with pytest.raises(UserError, match=message) as caught:
        models.build(config, rngs=nnx.Rngs(0))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", ["num_classes", "width", "dtype", "dropout"])
def test_a_missing_field_is_named(field):
    config = defaults("vgg11").model.to_dict()
    del config[field]
    with pytest.raises(UserError, match=rf"config\.model\.{field} is missing"):
        models.build(config, rngs=nnx.Rngs(0))


def test_relu_has_the_values_and_gradients_of_jax():
    x = jnp.asarray([-2.0, -1e-30, -0.0, 0.0, 1e-30, 3.0, jnp.inf])
    for transform in (lambda f: f, jax.vmap, lambda f: jax.vmap(jax.grad(f))):
        assert (transform(layers.relu)(x) == transform(jax.nn.relu)(x)).all()
