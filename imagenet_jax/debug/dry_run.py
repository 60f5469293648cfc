"""`--dry_run`: the recipe, the learning-rate curve and the cost of a run; nothing is written."""

from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from imagenet_jax.config.rules import warnings
from imagenet_jax.debug.cost import StepCost, step_cost
from imagenet_jax.debug.recipe import describe_recipe
from imagenet_jax.formatting import format_bytes, format_duration, format_flops
from imagenet_jax.training.experiment import Experiment, make_experiment

# A large step takes minutes on a CPU. If it has more operations than this, fewer images are timed.
_CPU_FLOPS, _CPU_ROWS = 1e12, 8
_BARS = " ▁▂▃▄▅▆▇█"
_WIDTH, _HEIGHT = 60, 5  # of the learning-rate curve, in characters


def dry_run(config: ConfigDict) -> None:
    """Print the recipe, then compile the step and time a few; UserError as for training."""
    run = make_experiment(config)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    table = Table(show_header=False)
    for row in describe_recipe(config, len(run.source), run.total_steps):
        table.add_row(*row)
    console.print(table)
    for warning in warnings(config):
        console.print(f"warning: {warning}")
    curve = draw_schedule(run.parts.schedule, run.total_steps, config.epochs)
    console.print("learning rate", *curve, sep="\n")
    console.print("compiling the train step ...")
    console.print(*_cost_lines(run), sep="\n")


def draw_schedule(schedule: Callable[[int], Any], steps: int, epochs: float) -> list[str]:
    """Return lines of text that draw the learning rate from 0 to its largest value."""
    rates = [float(schedule(int(i * (steps - 1) / (_WIDTH - 1)))) for i in range(_WIDTH)]
    top = max(rates) or 1.0  # of the columns: a warm-up may peak between two of them
    levels = [round(rate / top * _HEIGHT * (len(_BARS) - 1)) for rate in rates]
    lines = []
    for row in reversed(range(_HEIGHT)):
        low = row * (len(_BARS) - 1)
        bars = "".join(_BARS[min(max(level - low, 0), len(_BARS) - 1)] for level in levels)
        label = f"{top:.3g}" if row == _HEIGHT - 1 else "0" if row == 0 else ""
        lines.append(f"{label:>9} |{bars}")
    end = f"epoch {epochs:g}"
    return [*lines, f"{'':>9}  0{end:>{_WIDTH - 1}}"]


def _cost_lines(run: Experiment) -> list[str]:
    config, device = run.config, jax.devices()[0]
    small, on_cpu = config, device.platform == "cpu"
    whole = timed = step_cost(config, repeats=0 if on_cpu else 3, steps=5)
    if on_cpu:
        small = _shrink(config) if whole.flops > _CPU_FLOPS else config
        timed = step_cost(small, repeats=3, steps=1)
    rate = small.batch_size / timed.step_seconds
    images = run.total_steps * config.batch_size
    per_image = whole.flops / config.batch_size
    note = "" if small is config else f", timed with {small.batch_size} images a step"
    return [
        f"memory of each device: {format_bytes(whole.state_bytes)} of state and batch, "
        f"{format_bytes(whole.temporary_bytes)} within the step{_compare_memory(device, whole)}",
        f"operations: {format_flops(per_image)} an image, {format_flops(per_image * images)} "
        f"in all ({images:,} images)",
        f"time: {rate:,.1f} img/s on {jax.device_count()} x {device.device_kind}{note}; "
        f"about {format_duration(images / rate)} for all steps, without evaluation and if the "
        "input keeps up",
    ]


def _shrink(config: ConfigDict) -> ConfigDict:
    """Return the config with a batch that a CPU computes in seconds."""
    small = ConfigDict(config.to_dict())
    small.batch_size = min(config.batch_size, _CPU_ROWS * jax.device_count())
    small.optim.grad_accum_steps = 1
    if "bn_group" in small.model:
        small.model.bn_group = 0
    return small


def _compare_memory(device: jax.Device, cost: StepCost) -> str:
    """Return the share of the device's memory that the step takes; "" if it is not known."""
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if not limit:
        return ""
    share = (cost.state_bytes + cost.temporary_bytes) / limit
    advice = "; it does not fit: raise config.optim.grad_accum_steps" if share > 1 else ""
    return f": {share:.0%} of the {format_bytes(limit)} there are{advice}"
