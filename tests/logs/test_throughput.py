"""Throughput: images, operations, input wait and fraction of the peak, against formulas."""

import datetime
import json
import re

import numpy as np
import pytest

from imagenet_jax import train as loop
from imagenet_jax.config.fields import defaults
from imagenet_jax.debug import histograms
from imagenet_jax.formatting import format_duration
from imagenet_jax.logs import recorder, throughput
from imagenet_jax.logs.throughput import (
    Throughput,
    count_flops,
    peak_flops,
    peak_memory,
)


def _convolution(size, channels, filters, kernel, stride):
    """Return (operations of a convolution, side of its output)."""
    out = -(-size // stride)
    return 2 * (out * kernel) ** 2 * channels * filters, out


def _resnet18_training(size, width, classes):
    """Return operations per image of forward and backward pass; pixels need no gradient."""
    channels = [int(64 * width * 2**i) for i in range(4)]
    first, size = _convolution(size, 3, channels[0], 7, 2)
    size //= 2
    total, before = 0, channels[0]
    for stage, filters in enumerate(channels):
        for stride in (2 if stage else 1, 1):
            if stride == 2:
                total += _convolution(size, before, filters, 1, 2)[0]
            operations, size = _convolution(size, before, filters, 3, stride)
            total += operations + _convolution(size, filters, filters, 3, 1)[0]
            before = filters
    return 2 * first + 3 * (total + 2 * before * classes)


@pytest.fixture
def clock(monkeypatch):
    now = [50.0]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now[0])
    return now


def test_lap_returns_rates_and_fractions(clock):
    speed = Throughput(32, peak=1e6)
    for step in range(9):
        if step == 4:
            speed.stop_clock()
            clock[0] += 100
        with speed.waiting():
            clock[0] += 0.25
        clock[0] += 0.75
        speed.done(2e5)  # the first, and the first after the stop, do not count
    assert speed.lap() == {
        "images_per_second": 32.0,
        "input_wait": 0.25,
        "flops_per_second": 2e5,
        "peak_share": 0.2,
    }
    assert speed.lap() == {}


@pytest.mark.parametrize(("flops", "peak"), [(0.0, 1e6), (1e5, None)])
def test_unknown_values_are_omitted(clock, flops, peak):
    speed = Throughput(32, peak)
    for _ in range(3):
        speed.done(flops)
        clock[0] += 1
    lap = speed.lap()
    assert "peak_share" not in lap
    assert ("flops_per_second" in lap) == bool(flops)


class _Pending:
    """A loss that is ready at a time of the fake clock; reading it waits until then."""

    def __init__(self, clock, when):
        self._clock, self._when = clock, when

    def block_until_ready(self):
        self._clock[0] = max(self._clock[0], self._when)
        return self

    def __array__(self, dtype=None, copy=None):
        self.block_until_ready()
        return np.float32(1)


@pytest.mark.parametrize(("step_seconds", "input_seconds"), [(1.0, 0.125), (0.25, 2.0)])
def test_constant_speed_is_reported_as_constant(
    light, tiny, tmp_path, clock, monkeypatch, capsys, step_seconds, input_seconds
):
    """Devices or input determine the speed; whatever else takes long is not counted.

    That is compiling, evaluating, saving, and histograms, which wait for the devices.
    """
    tiny.epochs, tiny.log.every_steps = 60 * 48 / 1437, 5
    tiny.log.histograms_every_epochs = 24 * 48 / 1437
    tiny.eval.every_epochs, tiny.checkpoint.every_epochs = 20 * 48 / 1437, 15 * 48 / 1437
    free = [0.0]  # when the devices finish what was dispatched
    compile_light = loop.compile_train_step

    def compile_step(*args):
        step = compile_light(*args)

        def run(state, batch):
            state, metrics = step(state, batch)
            clock[0] += 500 * (light.steps[-1] == 1)
            free[0] = max(free[0], clock[0]) + step_seconds
            return state, metrics | {"loss": _Pending(clock, free[0])}

        return run

    def pass_time(seconds):
        clock[0] += seconds

    def histograms_on_devices(*_):
        clock[0] = max(clock[0], free[0]) + 10
        return {}

    monkeypatch.setattr(
        histograms, "compile_histograms", lambda *_: (histograms_on_devices, histograms_on_devices)
    )
    save = loop.Saver.save
    monkeypatch.setattr(
        loop.Saver,
        "save",
        lambda self, *args, **kwargs: (pass_time(30), save(self, *args, **kwargs))[1],
    )
    monkeypatch.setattr(loop, "compile_train_step", compile_step)
    light.on_batch = lambda step: pass_time(20)
    light.on_input = lambda step: pass_time(input_seconds)
    assert loop.train(tiny, tmp_path) == 0

    seconds = max(step_seconds, input_seconds)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["split"] == "train"]
    measured = [line for line in train if "images_per_second" in line]
    assert {line["step"] for line in train} - {line["step"] for line in measured} <= {
        5,
        20,
        25,
        35,
        50,
    }
    assert measured[-1]["step"] == 60
    for line in measured:
        assert line["images_per_second"] == pytest.approx(48 / seconds)
        assert line["flops_per_second"] == pytest.approx(1e6 / seconds)
        assert line["input_wait"] == pytest.approx(input_seconds / seconds)
    line = r"step +(\d+)/60 .* ([\d,.]+) img/s(?:.*ETA (.+))?"
    printed = re.findall(line, capsys.readouterr().out)
    assert len(printed) == len(measured)
    for step, rate, eta in printed:
        assert int(rate) == round(48 / seconds)
        left = (60 - int(step)) * seconds
        assert eta == (format_duration(left) if left else "")


def test_seconds_continue_after_a_restart(light, tiny, tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(recorder.time, "monotonic", lambda: now[0])

    def pass_time(step):
        now[0] += 10

    light.on_step = pass_time
    assert loop.train(tiny, tmp_path, stop_after=4) == 0
    now[0] += 5000  # between the starts
    assert loop.train(tiny, tmp_path) == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["seconds"]) for line in lines] == [
        (2, 20), (4, 40), (6, 60), (8, 80), (8, 80), (8, 80),
    ]  # fmt: skip
    for line in lines:
        age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(line["time"])
        assert 0 <= age.total_seconds() < 600


@pytest.mark.parametrize(
    ("kind", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H200", 989.5),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("Tesla V100-SXM2-16GB", 125),
        ("Tesla T4", 65),
        ("NVIDIA L4", 121),
        ("TPU v3", 61.5),
        ("TPU v5 lite", 197),
        ("TPU v6 lite", 918),
    ],
)
def test_peaks_equal_the_datasheets(kind, tera):
    assert peak_flops(kind) == pytest.approx(tera * 1e12)


@pytest.mark.parametrize(
    "kind", ["cpu", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GeForce RTX 4090 D", "TPU v99"]
)
def test_unlisted_devices_have_no_peak(kind):
    assert peak_flops(kind) is None


def test_operations_of_a_resnet_are_the_sum_of_its_layers():
    config = defaults("resnet18")
    config.model.num_classes = 10
    assert count_flops(config, (8, 64, 64, 3)) == 8 * _resnet18_training(64, 1, 10)


def test_a_run_records_its_operations_and_memory(finished):
    text = (finished.workdir / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    measured = [line for line in lines if "flops_per_second" in line]
    assert measured
    # small_cnn of width 1/16: a convolution of pixels, whose gradient is not needed; a convolution
    # and two linear layers; average pooling from 4x4 to 7x7, which has no weights.
    first, others = 27 * 2 * 16**2, 18 * 4 * 8**2 + 196 * 16 + 16 * 10
    pooling = 4 * (7 * 4 * 4 + 7 * 7 * 4)
    formula = 2 * (2 * first + 3 * others + 2 * pooling)
    for line in measured:
        assert line["flops_per_second"] / line["images_per_second"] == pytest.approx(formula)
        assert "peak_share" not in line  # unknown for a CPU
        assert "device_memory" not in line
        # In bytes: jax is more than 100 MB.
        assert 1e8 < line["process_memory"] <= peak_memory()["process_memory"] < 2**40
