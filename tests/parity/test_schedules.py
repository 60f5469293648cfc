"""Learning rates of recipes, epoch by epoch, against the schedulers that they were trained with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from config.test_learning_rates import SOURCES, curve  # noqa: E402

from imagenet_jax.config.fields import defaults  # noqa: E402
from imagenet_jax.training import schedules  # noqa: E402

pytestmark = pytest.mark.parity

STEP_LR = [spec for spec, source in SOURCES.items() if "v1.<locals>" in source.__qualname__]


def ours(spec):
    """f32[E]: our rate at the first step of each epoch; it stays the same until the next one."""
    rates, epochs, _ = curve(spec)
    whole = np.floor(epochs + 1e-9).astype(int)
    first = rates[np.searchsorted(whole, np.arange(whole[-1] + 1))]
    np.testing.assert_array_equal(rates, first[whole])
    return first


def optimizer(rate):
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)


def of_torch(rate, scheduler, epochs):
    """f64[epochs]: the rate of each epoch, with `scheduler` stepped after it."""
    tuned = optimizer(rate)
    schedule, rates = scheduler(tuned), []
    for _ in range(epochs):
        rates.append(tuned.param_groups[0]["lr"])
        tuned.step()
        schedule.step()
    return rates


@pytest.mark.parametrize("spec", STEP_LR)
def test_step_lr(spec):
    plain_vgg = "vgg" in spec and "bn" not in spec
    rate = 0.001 if "adam" in spec else 0.01 if plain_vgg or spec == "alexnet.py" else 0.1
    got = ours(spec)
    want = of_torch(rate, lambda o: torch.optim.lr_scheduler.StepLR(o, 30, 0.1), len(got))
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_v2_is_torchvisions_sequence_of_linear_and_cosine():
    """--lr 0.5 --lr-scheduler cosineannealinglr --lr-warmup-epochs 5 --lr-warmup-decay 0.01."""

    def sequence(tuned):
        schedulers = torch.optim.lr_scheduler
        linear = schedulers.LinearLR(tuned, start_factor=0.01, total_iters=5)
        cosine = schedulers.CosineAnnealingLR(tuned, T_max=595, eta_min=0.0)
        return schedulers.SequentialLR(tuned, [linear, cosine], milestones=[5])

    want = of_torch(0.5, sequence, 600)
    np.testing.assert_allclose(ours("resnet50.py:v2"), want, rtol=2e-5, atol=1e-7)


def exponential(epochs, factor, every, **changes):
    """f32[epochs]: the rate of config.optim.schedule = "exponential" in each epoch of 100 steps."""
    config = defaults().optim
    config.update(base_lr=0.1, decay_factor=factor, decay_every_epochs=every, **changes)
    config.schedule = "exponential"
    schedule = schedules.make_schedule(
        config, batch_size=256, steps_per_epoch=100, total_steps=100 * epochs
    )
    return np.asarray(jax.vmap(schedule)(100 * jnp.arange(epochs)))


def test_exponential_is_step_lr_of_torch():
    """torchvision's MobileNetV3: --lr-step-size 2 --lr-gamma 0.973."""
    want = of_torch(0.1, lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.973), 600)
    np.testing.assert_allclose(exponential(600, 0.973, 2.0), want, rtol=3e-5)


@pytest.mark.parametrize("unit", ["step", "epoch"])
def test_exponential_is_timms_step(unit):
    """timm's EfficientNet-B0: --sched step --decay-epochs 2.4 --decay-rate .97."""
    factory = pytest.importorskip("timm.scheduler")
    schedule, epochs = factory.create_scheduler_v2(
        tuned := optimizer(0.1), "step", num_epochs=450, decay_epochs=2.4, decay_rate=0.97,
        warmup_lr=1e-6, warmup_epochs=3,
    )  # fmt: skip
    want = []
    for epoch in range(epochs):
        want.append(tuned.param_groups[0]["lr"])
        schedule.step(epoch + 1)
    got = exponential(450, 0.97, 2.4, warmup_epochs=3.0, warmup_start_lr=1e-6, schedule_by=unit)
    np.testing.assert_allclose(got, want, rtol=3e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("variant", "rate", "length"), [("a1", 5e-3, 600), ("a2", 5e-3, 300), ("a3", 8e-3, 100)]
)
def test_timms_cosine(variant, rate, length):
    factory = pytest.importorskip("timm.scheduler")
    schedule, epochs = factory.create_scheduler_v2(
        tuned := optimizer(rate), "cosine", num_epochs=length, min_lr=1e-6,
        warmup_lr=1e-4, warmup_epochs=5,
    )  # fmt: skip
    assert epochs == length
    want = []
    for epoch in range(epochs):
        want.append(tuned.param_groups[0]["lr"])
        schedule.step(epoch + 1)
    np.testing.assert_allclose(ours(f"resnet50.py:{variant}"), want, rtol=2e-5, atol=1e-9)
