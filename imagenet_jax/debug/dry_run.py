"""What a config would do, before it does it: the recipe, its cost, nothing written."""

import jax
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from imagenet_jax.config.rules import warnings
from imagenet_jax.debug.cost import StepCost, step_cost
from imagenet_jax.debug.recipe import schedule_picture
from imagenet_jax.debug.recipe_rows import recipe_of
from imagenet_jax.training.experiment import Experiment, make_experiment

# A large step takes minutes on a CPU: beyond so many operations fewer images are timed.
_CPU_FLOPS, _CPU_ROWS = 1e12, 8


def dry_run(config: ConfigDict) -> None:
    """Print the recipe, then compile the step and time a few; UserError as for training."""
    run = make_experiment(config)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    table = Table(show_header=False)
    for row in recipe_of(config, len(run.source), run.total_steps):
        table.add_row(*row)
    console.print(table)
    for warning in warnings(config):
        console.print(f"warning: {warning}")
    console.print("learning rate")
    for line in schedule_picture(run.parts.schedule, run.total_steps, config.epochs):
        console.print(line)
    console.print("compiling the step ...")
    for line in _cost_lines(run):
        console.print(line)


def _cost_lines(run: Experiment) -> list[str]:
    config, device = run.config, jax.devices()[0]
    small, on_cpu = config, device.platform == "cpu"
    whole = timed = step_cost(config, repeats=0 if on_cpu else 3, steps=5)
    if on_cpu:
        small = _smaller(config) if whole.flops > _CPU_FLOPS else config
        timed = step_cost(small, repeats=3, steps=1)
    rate = small.batch_size / timed.step_seconds
    images = run.total_steps * config.batch_size
    hours = images / rate / 3600
    per_image = whole.flops / config.batch_size
    note = "" if small is config else f", timed with {small.batch_size} images a step"
    return [
        f"memory of each device: {_size(whole.state_bytes)} of state and batch, "
        f"{_size(whole.temporary_bytes)} within the step{_limit(device, whole)}",
        f"operations: {per_image / 1e9:.3g} GFLOP an image, {per_image * images / 1e18:.3g} EFLOP "
        f"in all ({images:,} images)",
        f"time: {rate:,.1f} img/s on {jax.device_count()} x {device.device_kind}{note}; about "
        f"{_duration(hours)} for all steps, without evaluation and if the input keeps up",
    ]


def _smaller(config: ConfigDict) -> ConfigDict:
    small = ConfigDict(config.to_dict())
    small.batch_size = min(config.batch_size, _CPU_ROWS * jax.device_count())
    small.optim.grad_accum_steps = 1
    if "bn_group" in small.model:
        small.model.bn_group = 0
    return small


def _limit(device: jax.Device, cost: StepCost) -> str:
    """How that compares with the device's memory, where it tells."""
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if not limit:
        return ""
    share = (cost.state_bytes + cost.temporary_bytes) / limit
    advice = "; it does not fit: raise config.optim.grad_accum_steps" if share > 1 else ""
    return f": {share:.0%} of the {_size(limit)} there are{advice}"


def _size(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _duration(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:,.1f} days"
    return f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"
