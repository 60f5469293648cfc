"""The whole learning-rate curve of every recipe, step by step, against its source's own formula."""

import math
from fractions import Fraction
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from imagenet_jax import config as config_io
from imagenet_jax.config.python_files import list_configs
from imagenet_jax.data.sampler import steps_per_epoch
from imagenet_jax.training import schedules

CONFIGS = Path(__file__).parents[2] / "configs"
IMAGES = 1_281_167


def curve(spec, images=IMAGES):
    """Return the rates f32[T] of all steps, the epochs f64[T] before each, and steps per epoch."""
    config = config_io.load(str(CONFIGS / spec))
    per_epoch = steps_per_epoch(images, config.batch_size, config.data.remainder)
    total = math.ceil(Fraction(config.epochs) * per_epoch)
    schedule = schedules.make_schedule(
        config.optim, batch_size=config.batch_size, steps_per_epoch=per_epoch, total_steps=total
    )
    steps = np.arange(total)
    rates = np.asarray(jax.jit(jax.vmap(schedule))(jnp.asarray(steps)))
    return rates, steps / float(per_epoch), per_epoch


def steps_down(peak, epochs, milestones):
    return peak * 0.1 ** (epochs[:, None] >= np.array(milestones)).sum(axis=1)


def cosine(peak, share, end=0.0):
    return end + (peak - end) * (1 + np.cos(np.pi * share)) / 2


def v1(peak):
    """torchvision's references: StepLR of 30 epochs."""
    return lambda epochs, _: peak * 0.1 ** (epochs // 30)


def goyal(epochs, _):
    """Goyal et al. 2017, section 2.2: from 0.1 in equal increments to 3.2 after 5 epochs."""
    decayed = steps_down(3.2, epochs, (30, 60, 80))
    return np.where(epochs < 5, 0.1 + 3.1 * epochs / 5, decayed)


def flax(epochs, per_epoch):
    """create_learning_rate_fn of examples/imagenet."""
    warmup = optax.linear_schedule(0.0, 0.4, 5 * int(per_epoch))
    decay = optax.cosine_decay_schedule(0.4, 95 * int(per_epoch))
    joined = optax.join_schedules([warmup, decay], [5 * int(per_epoch)])
    return jax.vmap(joined)(jnp.arange(len(epochs)))


def nvidia(epochs, _):
    """lr_cosine_policy of DeepLearningExamples, by epoch."""
    epoch = np.floor(epochs)
    return np.where(epoch < 8, 2.048 * (epoch + 1) / 8, cosine(2.048, (epoch - 8) / 82))


def mlperf(epochs, per_epoch):
    """MXNet's PolyScheduler with pwr=2, final_lr=1e-4 and a linear warm-up of 2 epochs from 0."""
    step, warmup, total = np.arange(len(epochs)), round(2 * per_epoch), len(epochs)
    decayed = 1e-4 + (10.5 - 1e-4) * (1 - (step - warmup) / (total - warmup)) ** 2
    return np.where(step < warmup, 10.5 * step / warmup, decayed)


def ffcv(length):
    """get_cyclic_lr at both ends of an epoch, and a line between them."""

    def rates(epochs, per_epoch):
        iters, found = int(per_epoch), []
        for epoch in range(length):
            ends = np.interp([epoch, epoch + 1], [0, 2, length], [1e-4 * 1.7, 1.7, 0])
            found.append(np.interp(np.arange(iters), [0, iters], ends))
        return np.concatenate(found)

    return rates


def torchvision_v2(epochs, _):
    """LinearLR from 0.01 for 5 epochs, then CosineAnnealingLR, both by epoch."""
    epoch = np.floor(epochs)
    warmup = 0.5 * (0.01 + 0.99 * epoch / 5)
    return np.where(epoch < 5, warmup, cosine(0.5, (epoch - 5) / 595))


def timm(peak, length, start=1e-4, end=1e-6):
    """CosineLRScheduler with warmup_prefix=False, by epoch."""

    def rates(epochs, _):
        epoch = np.floor(epochs)
        warmup = start + (peak - start) * epoch / 5
        return np.where(epoch < 5, warmup, cosine(peak, epoch / length, end))

    return rates


def timm_step(epochs, _):
    """StepLRScheduler with decay_t=2.4 and warmup_prefix=False, by epoch."""
    epoch = np.floor(epochs)
    warmup = 1e-6 + (0.048 - 1e-6) * epoch / 5
    return np.where(epoch < 5, warmup, 0.048 * 0.97 ** (epoch // 2.4))


def efficientnet(epochs, per_epoch):
    """build_learning_rate of tensorflow/tpu's efficientnet/utils.py: in steps, staircase=True."""
    step, warmup = np.arange(len(epochs)), round(5 * per_epoch)
    decayed = 0.256 * 0.97 ** (epochs // 2.4)
    return np.where(step < warmup, 0.256 * step / warmup, decayed)


def convnext(epochs, per_epoch):
    """cosine_scheduler of utils.py: warm-up in steps from 0, then a cosine to 1e-6."""
    step, warmup, total = np.arange(len(epochs)), int(20 * per_epoch), len(epochs)
    decayed = cosine(4e-3, (step - warmup) / (total - warmup), 1e-6)
    return np.where(step < warmup, 4e-3 * step / warmup, decayed)


def torchvision_adamw(length, warmup, end=0.0, peak=1e-3, start=0.01):
    """LinearLR from a share of the peak, then CosineAnnealingLR, both by epoch."""

    def rates(epochs, _):
        epoch = np.floor(epochs)
        decayed = cosine(peak, (epoch - warmup) / (length - warmup), end)
        rising = peak * (start + (1 - start) * epoch / warmup)
        return np.where(epoch < warmup, rising, decayed)

    return rates


def big_vision(epochs, _):
    """create_learning_rate_schedule of utils.py with 10,000 steps of warm-up."""
    step = np.arange(len(epochs))
    decayed = cosine(1e-3, (step - 10_000) / (len(epochs) - 10_000))
    return np.where(step < 10_000, 1e-3 * step / 10_000, decayed)


def bit(epochs, _):
    """Kolesnikov et al. 2020: 0.03 for 256 images, 5,000 steps of warm-up, down at 30, 60, 80."""
    step = np.arange(len(epochs))
    return np.where(step < 5000, 0.48 * step / 5000, steps_down(0.48, epochs, (30, 60, 80)))


def caffe_linear(peak):
    """lr_policy "poly" of Caffe with power 1: base_lr * (1 - iter / max_iter)."""
    return lambda epochs, _: peak * (1 - np.arange(len(epochs)) / len(epochs))


def caffe_root(epochs, _):
    """The same with power 0.5: quick_solver.prototxt of bvlc_googlenet."""
    return 0.01 * np.sqrt(1 - np.arange(len(epochs)) / len(epochs))


def own_cosine(peak):
    """This project's own recipes: one epoch of warm-up, then a cosine."""

    def rates(epochs, per_epoch):
        step, warmup, total = np.arange(len(epochs)), round(per_epoch), len(epochs)
        decayed = cosine(peak, (step - warmup) / (total - warmup))
        return np.where(step < warmup, peak * step / warmup, decayed)

    return rates


SOURCES = {
    **{f"resnet.py:resnet{depth}": v1(0.1) for depth in (18, 34, 101, 152)},
    **{f"resnet.py:wide_resnet{depth}_2": v1(0.1) for depth in (50, 101)},
    "resnet.py:resnext50_32x4d": v1(0.1),
    "resnet.py:resnext101_32x8d": v1(0.1),
    **{f"resnet.py:resnet{depth}_v2": torchvision_v2 for depth in (101, 152)},
    **{f"resnet.py:wide_resnet{depth}_2_v2": torchvision_v2 for depth in (50, 101)},
    **{
        f"resnet.py:resnext{kind}_v2": torchvision_v2
        for kind in ("50_32x4d", "101_32x8d", "101_64x4d")
    },
    "googlenet.py": caffe_root,
    "inception.py": lambda epochs, _: 0.045 * 0.94 ** (epochs // 2),
    "mobilenet.py:mobilenet_v2": lambda epochs, _: 0.045 * 0.98 ** np.floor(epochs),
    **{
        f"mobilenet.py:mobilenet_v3_{size}": lambda epochs, _: 0.064 * 0.973 ** (epochs // 2)
        for size in ("large", "small")
    },
    "efficientnet.py:b0": timm_step,
    "efficientnet.py:b0_paper": efficientnet,
    "efficientnet.py:lite0": efficientnet,
    "efficientnet.py:v2_s": torchvision_v2,
    **{f"vgg.py:vgg{depth}": v1(0.01) for depth in (11, 13, 16, 19)},
    **{f"vgg.py:vgg{depth}_bn": v1(0.1) for depth in (11, 13, 16, 19)},
    "alexnet.py": v1(0.01),
    "bit.py": bit,
    **{f"convnext.py:{size}": convnext for size in ("tiny", "small", "base", "large")},
    **{
        f"convnext.py:torchvision_{size}": torchvision_adamw(600, 5)
        for size in ("tiny", "small", "base", "large")
    },
    **{f"swin.py:swin_{size}": torchvision_adamw(300, 20, 1e-5) for size in "tsb"},
    "vit.py:vit_s16_90ep": big_vision,
    "vit.py:vit_s16_300ep": big_vision,
    "vit.py:vit_b16": torchvision_adamw(300, 30, peak=3e-3, start=0.033),
    "vit.py:deit_s": timm(5e-4 * 1024 / 512, 300, 1e-6, 1e-5),
    "vit.py:deit3_s": timm(4e-3, 800, 1e-6, 1e-5),
    **{f"squeezenet.py:squeezenet1_{minor}": caffe_linear(0.04) for minor in (0, 1)},
    **{f"densenet.py:densenet{depth}": v1(0.1) for depth in (121, 169, 201, 161)},
    "quickstart.py": own_cosine(0.1),
    "small_cnn.py": own_cosine(0.02),
    "transfer.py": own_cosine(0.01 * 64 / 256),
    "resnet50.py:v1": v1(0.1),
    "resnet50.py:goyal8k": goyal,
    "resnet50.py:flax": flax,
    "resnet50.py:nvidia90": nvidia,
    "resnet50.py:mlperf_lars": mlperf,
    "resnet50.py:ffcv16": ffcv(16),
    "resnet50.py:ffcv32": ffcv(32),
    "resnet50.py:ffcv88": ffcv(88),
    "resnet50.py:v2": torchvision_v2,
    "resnet50.py:a1": timm(5e-3, 600),
    "resnet50.py:a2": timm(5e-3, 300),
    "resnet50.py:a3": timm(8e-3, 100),
    "resnet50.py:adam": v1(0.001),
}


def test_every_recipe_has_a_source():
    specs = {spec.removeprefix(f"{CONFIGS}/") for spec in list_configs(CONFIGS)}
    assert set(SOURCES) == {s for s in specs if f"{s}:" not in " ".join(specs)}


@pytest.mark.parametrize("spec", SOURCES)
def test_the_whole_curve_is_that_of_the_source(spec):
    images = {"quickstart.py": 1437, "small_cnn.py": 1437, "transfer.py": 3680}.get(spec, IMAGES)
    rates, epochs, per_epoch = curve(spec, images)
    want = np.asarray(SOURCES[spec](epochs, per_epoch))
    assert len(rates) == len(want)
    # Warm-ups end with a whole step; the cosine is computed in float32.
    tolerance = 1e-3 if spec.endswith("goyal8k") else 2e-5
    floor = 1e-4 if spec == "googlenet.py" else 2e-7  # a root magnifies the last roundings
    np.testing.assert_allclose(rates, want, rtol=tolerance, atol=floor * want.max())


def test_a3_is_half_way_down_at_epoch_50():
    """A cosine that starts after the warm-up is 8 % higher at that epoch."""
    rates, epochs, _ = curve("resnet50.py:a3")
    assert rates[epochs >= 50][0] == pytest.approx((8e-3 + 1e-6) / 2, rel=1e-5)
