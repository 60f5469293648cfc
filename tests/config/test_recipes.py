"""Every config and variant: its model and optimizer can be made, and it has the published numbers.

The tables are typed from the papers and from the command lines of the reference implementations."""

import functools
import operator
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from configs import resnet50
from imagenet_jax import config as config_io
from imagenet_jax import models
from imagenet_jax.config.fields import defaults
from imagenet_jax.config.python_files import list_configs
from imagenet_jax.debug import cost, recipe
from imagenet_jax.errors import UserError
from imagenet_jax.logs import throughput
from imagenet_jax.training import optim, schedules

CONFIGS = Path(__file__).parents[2] / "configs"
IMAGES = 1_281_167
SPECS = [spec.removeprefix(f"{CONFIGS}/") for spec in list_configs(CONFIGS)]


def load(spec: str):
    return config_io.load(str(CONFIGS / spec))


@pytest.mark.parametrize("spec", SPECS)
def test_every_recipe_is_the_same_after_json(spec):
    config = load(spec)
    assert config_io.from_json(config_io.to_json(config)) == config


@pytest.mark.parametrize(
    "spec",
    [
        # Building a model takes seconds: the first variant of each file and ResNet-50 in CI.
        spec
        if ":" not in spec or spec.startswith("resnet50.py")
        else pytest.param(spec, marks=pytest.mark.full)
        for spec in SPECS
    ],
)
def test_every_recipe_makes_its_schedule_its_optimizer_and_its_update(spec):
    config = load(spec)
    schedule = schedules.make_schedule(
        config.optim, batch_size=config.batch_size, steps_per_epoch=5004.57, total_steps=450_411
    )
    assert 0 < schedule(20_000) <= schedules.peak_learning_rate(config.optim, config.batch_size)
    tx = optim.make_optimizer(config.optim, schedule)
    _, params, _ = models.outline(config.model)
    updates, _ = jax.eval_shape(tx.update, params, jax.eval_shape(tx.init, params), params)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)
    head = functools.reduce(operator.getitem, models.family(config.model.name).head, params)
    assert head["bias"].shape == (config.model.num_classes,)


@pytest.mark.parametrize(
    "spec", [s if ":" not in s else pytest.param(s, marks=pytest.mark.full) for s in SPECS]
)
def test_every_recipe_has_a_price_and_takes_a_step(spec):
    """The step is traced: its shapes are computed, nothing is compiled."""
    config = cost.without_data(load(spec))
    bare = cost.make_bare_step(config, jax.devices()[:1])
    batch = cost.abstract_batch(config, bare.mesh)
    state, metrics = jax.eval_shape(bare.step, bare.abstract, batch)
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, bare.abstract)
    assert metrics["loss"].shape == ()
    assert throughput.count_flops(config, cost.image_shape(config)) > 1e6 * config.batch_size
    assert recipe.describe_recipe(config, IMAGES, 1000)


# variant: batch, epochs, peak rate at that batch, momentum, weight decay, norms decay too,
# label smoothing, warm-up epochs, training crop, (resize, crop) of evaluation. Sources: Goyal 2017
# sections 2.1, 2.2, 5.1; flax examples/imagenet; the command lines of NVIDIA's, MLPerf's,
# and torchvision's READMEs; Wightman 2021 table 2. NVIDIA's 8th epoch is at the peak.
TABLE = {
    "v1": (256, 90, 0.1, 0.9, 1e-4, True, 0.0, 0, 224, (256, 224)),
    "goyal8k": (8192, 90, 3.2, 0.9, 1e-4, False, 0.0, 5, 224, (256, 224)),
    "flax": (1024, 100, 0.4, 0.9, 1e-4, False, 0.0, 5, 224, (256, 224)),
    "nvidia90": (2048, 90, 2.048, 0.875, 3.0517578125e-05, False, 0.1, 7, 224, (256, 224)),
    "mlperf_lars": (3264, 37, 10.5, 0.9, 5e-5, False, 0.1, 2, 224, (256, 224)),
    "ffcv16": (4096, 16, 1.7, 0.9, 1e-4, False, 0.1, 2, 192, (293, 256)),
    "ffcv32": (4096, 32, 1.7, 0.9, 1e-4, False, 0.1, 2, 192, (293, 256)),
    "ffcv88": (4096, 88, 1.7, 0.9, 1e-4, False, 0.1, 2, 192, (293, 256)),
    "v2": (1024, 600, 0.5, 0.9, 2e-5, False, 0.1, 5, 176, (232, 224)),
    "a1": (2048, 600, 5e-3, None, 0.01, False, 0.1, 5, 224, (235, 224)),
    "a2": (2048, 300, 5e-3, None, 0.02, False, 0.0, 5, 224, (235, 224)),
    "a3": (2048, 100, 8e-3, None, 0.02, False, 0.0, 5, 160, (235, 224)),
    "adam": (256, 90, 0.001, None, 1e-4, True, 0.0, 0, 224, (256, 224)),
}


def test_the_table_has_every_variant():
    assert [*TABLE] == [*resnet50.VARIANTS]


@pytest.mark.parametrize("variant", TABLE)
def test_hyper_parameters_are_the_published_ones(variant):
    c = load(f"resnet50.py:{variant}")
    batch, epochs, rate, momentum, decay, norms, smoothing, warmup, crop, evaluation = TABLE[
        variant
    ]
    assert (c.batch_size, c.epochs) == (batch, epochs)
    assert schedules.peak_learning_rate(c.optim, c.batch_size) == pytest.approx(rate)
    if momentum is not None:
        assert c.optim.momentum == momentum
    assert (c.optim.weight_decay, c.optim.decay_bias_and_norm) == (decay, norms)
    assert (c.loss.label_smoothing, c.optim.warmup_epochs) == (smoothing, warmup)
    assert (c.augment.image_size, (c.eval.resize, c.eval.image_size)) == (crop, evaluation)


# variant: what the recipe mixes, draws, drops and repeats.
AUGMENTATION = {
    # mixup, cutmix, automatic augmentation, erasing, copies of an image, drop path
    "v1": (0.0, 0.0, "none", 0.0, 1, 0.0),
    "v2": (0.2, 1.0, "trivialaugment", 0.1, 4, 0.0),
    "a1": (0.2, 1.0, "randaugment_timm", 0.0, 3, 0.05),
    "a2": (0.1, 1.0, "randaugment_timm", 0.0, 3, 0.05),
    "a3": (0.1, 1.0, "randaugment_timm", 0.0, 1, 0.0),
}


@pytest.mark.parametrize("variant", AUGMENTATION)
def test_augmentations_are_the_published_ones(variant):
    c = load(f"resnet50.py:{variant}")
    a = c.augment
    got = (
        a.mixup,
        a.cutmix,
        a.auto_augment,
        a.random_erase,
        c.data.repeated_aug,
        c.model.drop_path,
    )
    assert got == AUGMENTATION[variant]
    assert (c.optim.name, c.loss.name) == (
        ("lamb", "bce") if variant.startswith("a") else ("sgd", "softmax")
    )


@pytest.mark.parametrize(("epochs", "low", "high"), [(16, 11, 13), (32, 23, 27), (88, 65, 76)])
def test_ffcv_grows_its_crops(epochs, low, high):
    """start_ramp, end_ramp, min_res and max_res of rn50_configs."""
    c = load(f"resnet50.py:ffcv{epochs}")
    assert (c.augment.start_size, c.augment.size_ramp) == (160, (low, high))
    assert (c.model.blur_pool, c.eval.flip) == ("ffcv", True)


def test_v2_averages_as_torchvision_does():
    """--model-ema-decay 0.99998 --model-ema-steps 32, from which the script derives 0.99891."""
    c = load("resnet50.py:v2")
    assert (c.ema.decay, c.ema.every_steps, c.ema.form) == (0.99998, 32, "torchvision")


# The recipe of each weights enum of torchvision's models/resnet.py, and the commands of issue 3995
# and pull requests 4964 and 5935: training crop, copies of an image.
TORCHVISION_V2 = {
    "resnet101": (224, 1),
    "resnet152": (224, 1),
    "resnext50_32x4d": (224, 1),
    "resnext101_32x8d": (176, 1),
    "resnext101_64x4d": (176, 4),
    "wide_resnet50_2": (176, 1),
    "wide_resnet101_2": (224, 1),
}


@pytest.mark.parametrize("model", TORCHVISION_V2)
def test_the_other_resnets_train_by_torchvisions_v2_recipe(model):
    c = load(f"resnet.py:{model}_v2")
    assert (c.augment.image_size, c.data.repeated_aug) == TORCHVISION_V2[model]
    c.augment.image_size, c.data.repeated_aug = 176, 4
    of_resnet50 = load("resnet50.py:v2")
    of_resnet50.model.name = model
    assert c == of_resnet50


def test_variants_reach_the_other_resnets():
    spec = str(CONFIGS / "resnet50.py:a2")
    c = config_io.load(spec, [("model.name", "resnet18")])
    assert (c.model.name, c.optim.name, c.epochs) == ("resnet18", "lamb", 300)


def test_an_unknown_variant_is_one_line():
    with pytest.raises(
        UserError, match=r"variant = 'goyal8': use v1 \| .*; did you mean 'goyal8k'\?"
    ):
        load("resnet50.py:goyal8")


def test_a_variant_of_a_file_that_has_none_is_an_error():
    with pytest.raises(UserError, match=r"bit\.py' has no variants; leave out ':a3'"):
        load("bit.py:a3")


@pytest.mark.parametrize(
    ("spec", "epochs", "rate", "decay"),
    [
        ("alexnet.py", 90, 0.01, 1e-4),
        ("mobilenet.py", 300, 0.045, 4e-5),
        ("resnet.py:resnext50_32x4d", 100, 0.1, 1e-4),
        ("resnet.py:wide_resnet50_2", 90, 0.1, 1e-4),
    ],
)
def test_torchvisions_recipes_are_those_of_its_readme(spec, epochs, rate, decay):
    c = load(spec)
    assert (c.batch_size, c.epochs) == (256, epochs)
    assert (c.optim.base_lr, c.optim.weight_decay, c.optim.momentum) == (rate, decay, 0.9)


# The command lines of torchvision's and timm's READMEs, and section 5.2 of EfficientNet's paper:
# batch, epochs, rate, weight decay, optimizer, its second moment and epsilon, policy, erasing,
# label smoothing, drop path, training crop, (resize, crop) of evaluation.
MOBILE = {
    "mobilenet.py:mobilenet_v3_large": (
        1024, 600, 0.064, 1e-5, "rmsprop", 0.9, 0.0316, "autoaugment", 0.2, 0, 0, 224, (256, 224),
    ),
    "mobilenet.py:mobilenet_v3_small": (
        1024, 600, 0.064, 1e-5, "rmsprop", 0.9, 0.0316, "autoaugment", 0.2, 0, 0, 224, (256, 224),
    ),
    "efficientnet.py:b0": (
        768, 450, 0.048, 1e-5, "rmsprop", 0.9, 1e-3, "randaugment_timm", 0.2, 0.1, 0.2, 224,
        (256, 224),
    ),
    "efficientnet.py:b0_paper": (
        4096, 350, 0.256, 1e-5, "rmsprop", 0.9, 1e-3, "autoaugment", 0, 0.1, 0.2, 224, (256, 224),
    ),
    "efficientnet.py:lite0": (
        4096, 350, 0.256, 1e-5, "rmsprop", 0.9, 1e-3, "autoaugment", 0, 0.1, 0.2, 224, (256, 224),
    ),
    "efficientnet.py:v2_s": (
        1024, 600, 0.5, 2e-5, "sgd", 0.999, 1e-8, "trivialaugment", 0.1, 0.1, 0.2, 300, (384, 384),
    ),
}  # fmt: skip


@pytest.mark.parametrize("spec", MOBILE)
def test_mobile_networks_have_the_published_hyper_parameters(spec):
    c = load(spec)
    got = (
        c.batch_size, c.epochs, schedules.peak_learning_rate(c.optim, c.batch_size),
        c.optim.weight_decay, c.optim.name, c.optim.b2, c.optim.eps, c.augment.auto_augment,
        c.augment.random_erase, c.loss.label_smoothing, c.model.get("drop_path", 0),
        c.augment.image_size, (c.eval.resize, c.eval.image_size),
    )  # fmt: skip
    assert got == MOBILE[spec]
    assert (c.model.dropout, c.optim.momentum) == (0.2, 0.9)
    of_torch = spec.startswith("mobilenet")
    assert c.optim.rmsprop_form == ("torch" if of_torch else "tensorflow")
    assert c.optim.decay_bias_and_norm == of_torch


# What the tables leave out. Sources: timm's training_script.mdx; EfficientNet's paper, section 5.2,
# and the constants of its code; torchvision's README; main.py of DeiT III; vit_s16_i1k.py of
# big_vision; solver.prototxt of SqueezeNet.
OTHER = {
    "efficientnet.py:b0": {
        "model.name": "efficientnet_b0", "ema.decay": 0.9999, "augment.auto_magnitude": 9,
        "augment.auto_magnitude_std": 0.5, "augment.auto_increasing": False,
        "augment.random_erase_fill": "noise",
    },
    "efficientnet.py:b0_paper": {"model.name": "tf_efficientnet_b0", "ema.decay": 0.9999},
    "efficientnet.py:v2_s": {
        "augment.mixup": 0.2, "augment.cutmix": 1.0, "data.repeated_aug": 4,
        "ema.decay": 0.99998, "ema.every_steps": 32,
    },
    "vit.py:deit3_s": {"augment.color_jitter": (0.3, 0.3, 0.3, 0.0)},
    "vit.py:vit_s16_90ep": {"augment.crop_scale": (0.05, 1.0), "data.mean": (0.5, 0.5, 0.5)},
    "alexnet.py": {
        "model.dropout": 0.5, "optim.decay_bias_and_norm": True, "eval.resize": 256,
        "eval.image_size": 224,
    },
    "mobilenet.py:mobilenet_v2": {
        "model.dropout": 0.2, "optim.decay_bias_and_norm": True, "eval.resize": 256,
        "eval.image_size": 224,
    },
    "squeezenet.py:squeezenet1_0": {
        "batch_size": 512, "optim.name": "sgd", "optim.base_lr": 0.04, "optim.momentum": 0.9,
        "optim.weight_decay": 2e-4, "optim.schedule": "polynomial", "optim.power": 1.0,
        "epochs": pytest.approx(170_000 * 512 / IMAGES, rel=1e-3),
    },
}  # fmt: skip


@pytest.mark.parametrize("spec", OTHER)
def test_other_settings_are_the_published_ones(spec):
    config = load(spec)
    for field, value in OTHER[spec].items():
        got = functools.reduce(operator.getitem, field.split("."), config)
        assert got == value, field


# Published top-1 accuracies that torchvision's tables do not have (tests/parity/test_catalog.py).
PUBLISHED = {
    "resnet50.py:goyal8k": 76.26, "resnet50.py:flax": 76.37, "resnet50.py:nvidia90": 77.15,
    "resnet50.py:mlperf_lars": 75.9, "resnet50.py:ffcv16": 73.8, "resnet50.py:ffcv32": 76.6,
    "resnet50.py:ffcv88": 78.4, "resnet50.py:a1": 80.38, "resnet50.py:a2": 79.83,
    "resnet50.py:a3": 78.05, "efficientnet.py": 77.7, "efficientnet.py:b0_paper": 77.1,
    "efficientnet.py:lite0": 75.1, "densenet.py:densenet121": 75.0, "densenet.py:densenet169": 76.4,
    "densenet.py:densenet201": 77.5, "densenet.py:densenet161": 77.8, "googlenet.py": 68.7,
    "inception.py": 77.29, "bit.py": 76.0, "squeezenet.py:squeezenet1_0": 57.5,
    "squeezenet.py:squeezenet1_1": 58.18, "convnext.py:tiny": 82.1, "convnext.py:small": 83.1,
    "convnext.py:base": 83.8, "convnext.py:large": 84.3, "vit.py:vit_s16_90ep": 76.5,
    "vit.py:vit_s16_300ep": 80.0, "vit.py:deit_s": 79.9, "vit.py:deit3_s": 81.4,
}  # fmt: skip


def test_published_accuracies():
    page = (CONFIGS.parent / "docs" / "recipes.md").read_text()
    rows = re.findall(r"^\| `configs/(\S+)` \|[^|]*\|([^|]*)\| ([\d.]+) % \|", page, re.MULTILINE)
    others = {spec: float(top1) for spec, recipe, top1 in rows if "torchvision" not in recipe}
    assert others == PUBLISHED


@pytest.mark.parametrize("depth", [121, 169, 201, 161])
def test_densenets_train_as_in_their_paper(depth):
    """Huang et al. 2016, section 4.2: 90 epochs of batch 256, Nesterov momentum."""
    c = load(f"densenet.py:densenet{depth}")
    assert (c.model.name, c.batch_size, c.epochs) == (f"densenet{depth}", 256, 90)
    assert (c.optim.name, c.optim.momentum, c.optim.nesterov) == ("sgd", 0.9, True)
    assert (c.optim.weight_decay, c.optim.decay_bias_and_norm) == (1e-4, True)


def test_googlenet_trains_as_in_caffe():
    """quick_solver.prototxt and train_val.prototxt of bvlc_googlenet."""
    c = load("googlenet.py")
    assert round(c.epochs * 1_281_167 / c.batch_size, -4) == 2_400_000
    assert (c.batch_size, c.optim.base_lr, c.optim.momentum) == (32, 0.01, 0.9)
    assert (c.optim.weight_decay, c.optim.decay_bias_and_norm) == (2e-4, False)
    assert (c.model.aux_weight, c.model.dropout, c.model.aux_dropout) == (0.3, 0.4, 0.7)


def test_inception_trains_as_in_section_8_of_its_paper():
    """50 replicas with batches of 32; aux_weight and dropout of TF-slim's inception_v3."""
    c = load("inception.py")
    assert (c.batch_size, c.epochs) == (50 * 32, 100)
    assert (c.optim.name, c.optim.rmsprop_form) == ("rmsprop", "tensorflow")
    assert (c.optim.b2, c.optim.momentum, c.optim.eps) == (0.9, 0.9, 1.0)
    assert (c.optim.grad_clip_norm, c.loss.label_smoothing) == (2.0, 0.1)
    assert (c.model.aux_weight, c.model.dropout) == (0.4, 0.2)
    assert (c.augment.image_size, c.eval.resize, c.data.mean) == (299, 342, (0.5, 0.5, 0.5))


@pytest.mark.parametrize("depth", [11, 13, 16, 19])
def test_vggs_train_at_0_01_without_and_0_1_with_batch_norm(depth):
    """torchvision's references/classification: --lr 1e-2 for VGG, the default for its _bn."""
    for suffix, rate in (("", 0.01), ("_bn", 0.1)):
        c = load(f"vgg.py:vgg{depth}{suffix}")
        assert c.model.name == f"vgg{depth}{suffix}"
        assert (c.optim.base_lr, c.optim.schedule, c.model.dropout) == (rate, "step", 0.5)


# TRAINING.md of ConvNeXt and the defaults of its main.py; torchvision's command lines and
# builders: batch, epochs, peak rate, warm-up, clipping, mixup, erasing, repeats, drop path, crop,
# resize.
TRANSFORMERS = {
    "convnext.py:tiny": (4096, 300, 4e-3, 20, 0, 0.8, 0.25, 1, 0.1, 224, 256),
    "convnext.py:small": (4096, 300, 4e-3, 20, 0, 0.8, 0.25, 1, 0.4, 224, 256),
    "convnext.py:base": (4096, 300, 4e-3, 20, 0, 0.8, 0.25, 1, 0.5, 224, 256),
    "convnext.py:large": (4096, 300, 4e-3, 20, 0, 0.8, 0.25, 1, 0.5, 224, 256),
    "convnext.py:torchvision_tiny": (1024, 600, 1e-3, 5, 0, 0.2, 0.1, 4, 0.1, 176, 236),
    "convnext.py:torchvision_small": (1024, 600, 1e-3, 5, 0, 0.2, 0.1, 4, 0.4, 176, 230),
    "convnext.py:torchvision_base": (1024, 600, 1e-3, 5, 0, 0.2, 0.1, 4, 0.5, 176, 232),
    "convnext.py:torchvision_large": (1024, 600, 1e-3, 5, 0, 0.2, 0.1, 4, 0.5, 176, 232),
    "swin.py:swin_t": (1024, 300, 1e-3, 20, 5, 0.8, 0.25, 4, 0.2, 224, 232),
    "swin.py:swin_s": (1024, 300, 1e-3, 20, 5, 0.8, 0.25, 4, 0.3, 224, 246),
    "swin.py:swin_b": (1024, 300, 1e-3, 20, 5, 0.8, 0.25, 4, 0.5, 224, 238),
}


@pytest.mark.parametrize("spec", TRANSFORMERS)
def test_convnext_and_swin_have_the_published_hyper_parameters(spec):
    c = load(spec)
    got = (
        c.batch_size, c.epochs, schedules.peak_learning_rate(c.optim, c.batch_size),
        c.optim.warmup_epochs, c.optim.grad_clip_norm, c.augment.mixup, c.augment.random_erase,
        c.data.repeated_aug, c.model.drop_path, c.augment.image_size, c.eval.resize,
    )  # fmt: skip
    assert got == TRANSFORMERS[spec]
    assert (c.optim.name, c.optim.weight_decay) == ("adamw", 0.05)
    assert (c.loss.label_smoothing, c.augment.cutmix, c.eval.image_size) == (0.1, 1.0, 224)
    by_paper = c.batch_size == 4096
    kind = ("randaugment_timm", 9, 0.5) if by_paper else ("trivialaugment", 9, 0.0)
    a = c.augment
    assert (a.auto_augment, a.auto_magnitude, a.auto_magnitude_std) == kind
    assert (c.ema.decay, c.ema.every_steps) == ((0.9999, 1) if by_paper else (0.99998, 32))


# vit_s16_i1k.py of big_vision, whose weight decay is not multiplied by the learning rate; command
# lines of torchvision, DeiT and DeiT III: optimizer, batch, epochs, weight decay, of all
# parameters, clipping, mixup, cutmix, policy, erasing, repeats, drop path, last rate.
VITS = {
    "vit_s16_90ep": ("adamw", 1024, 90, 0.1, False, 1, 0.2, 0, "randaugment_plain", 0, 1, 0, 0),
    "vit_s16_300ep": ("adamw", 1024, 300, 0.1, False, 1, 0.2, 0, "randaugment_plain", 0, 1, 0, 0),
    "vit_b16": ("adamw", 4096, 300, 0.3, True, 1, 0.2, 1, "randaugment", 0, 3, 0, 0),
    "deit_s": ("adamw", 1024, 300, 0.05, False, 0, 0.8, 1, "randaugment_timm", 0.25, 3, 0.1, 1e-5),
    "deit3_s": ("lamb", 2048, 800, 0.05, False, 1, 0.8, 1, "three_augment", 0, 3, 0.05, 1e-5),
}


@pytest.mark.parametrize("variant", VITS)
def test_vits_have_the_published_hyper_parameters(variant):
    c = load(f"vit.py:{variant}")
    o, a = c.optim, c.augment
    assert (
        o.name, c.batch_size, c.epochs, pytest.approx(o.weight_decay), o.decay_bias_and_norm,
        o.grad_clip_norm, a.mixup, a.cutmix, a.auto_augment, a.random_erase, c.data.repeated_aug,
        c.model.drop_path, o.end_lr,
    ) == VITS[variant]  # fmt: skip
    smoothing = {"vit_b16": 0.11, "deit_s": 0.1}.get(variant, 0.0)
    assert (c.loss.label_smoothing, c.loss.name == "bce") == (smoothing, variant == "deit3_s")
    assert (c.ema.decay > 0, a.image_size, c.eval.image_size) == (variant == "vit_b16", 224, 224)
    assert c.eval.resize == (224 if variant == "deit3_s" else 256)
    assert (a.auto_num_ops, a.auto_magnitude) == (2, 10 if "plain" in a.auto_augment else 9)


def test_vits_have_the_published_forms():
    """rep_size, gap and sincos2d of big_vision; models_v2.py of DeiT III."""
    plain, deit3 = (load(f"vit.py:{variant}").model for variant in ("vit_s16_90ep", "deit3_s"))
    assert (plain.pool, plain.positions, plain.head) == ("mean", "sincos2d", "mlp")
    assert (deit3.positions, deit3.layer_scale) == ("learned_patches", 1e-4)
    rising = {**deit3, "drop_path_form": "linear"}, [0.05 * i / 11 for i in range(12)]
    for config, rates in ((deit3, [0.05] * 12), rising):
        model = nnx.eval_shape(lambda config=config: models.build(config, rngs=nnx.Rngs(0)))
        assert [block.rate for block in model.blocks] == pytest.approx(rates)


@pytest.mark.parametrize("field", ["augment.image_size", "eval.image_size", "model.image_size"])
def test_patches_that_do_not_fill_the_image_are_one_line(field):
    words = rf"config\.{field} = 220 is not a multiple of 16.*config\.{field}=224"
    with pytest.raises(UserError, match=words):
        config_io.load(str(CONFIGS / "vit.py"), [(field, "220")])


def test_growing_crops_are_filled_by_patches():
    config = defaults("vit_h14")
    config_io.check(config)  # the crops do not grow
    config.augment.update(start_size=168, size_ramp=(1.0, 2.0))
    with pytest.raises(UserError, match=r"augment\.size_multiple = 32 is not a multiple of 14"):
        config_io.check(config)
