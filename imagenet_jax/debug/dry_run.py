"""`--dry_run`: print the recipe, the learning-rate curve and the cost of a run; write nothing.

`--target` names other hardware; the cost then comes from compiling the step for it.
"""

from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from imagenet_jax.config import copy_config
from imagenet_jax.config.fields import FIELDS
from imagenet_jax.config.rules import warnings
from imagenet_jax.debug.cost import (
    DoesNotFit,
    StepCost,
    TargetCost,
    image_shape,
    step_cost,
    target_cost,
    without_data,
)
from imagenet_jax.debug.recipe import describe_recipe
from imagenet_jax.debug.targets import Target, make_target
from imagenet_jax.errors import UserError, one_line
from imagenet_jax.formatting import format_bytes, format_duration, format_flops
from imagenet_jax.logs.throughput import count_flops
from imagenet_jax.progress import announce
from imagenet_jax.training.experiment import Experiment, make_experiment
from imagenet_jax.training.sharding import make_mesh, round_batch_size

# A large step takes minutes on a CPU. Steps with more operations are timed with fewer images.
_CPU_FLOPS, _CPU_ROWS = 1e12, 8
# Search for the largest batch: number of compilations, and margin below the estimate.
_TRIES, _MARGIN = 4, 0.97
_BARS = " ▁▂▃▄▅▆▇█"
_WIDTH, _HEIGHT = 60, 5  # of the learning-rate curve, in characters


def dry_run(config: ConfigDict, target_name: str = "", price: float | None = None) -> None:
    """Print the recipe and the cost of its train step.

    Args:
      target_name: see `make_target`; "": compile for the devices of this machine, and time steps.
      price: dollars per hour of a TPU chip or GPU of the target; None: that in `ACCELERATORS`.

    Raises UserError for the same reasons as training.
    """
    target = make_target(target_name) if target_name else None
    run, note = _make_experiment(config, target)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    table = Table(show_header=False)
    for row in describe_recipe(config, len(run.source), run.total_steps):
        table.add_row(*row)
    console.print(table)
    for warning in filter(None, (*warnings(config), note)):
        console.print(f"warning: {warning}")
    curve = draw_schedule(run.parts.schedule, run.total_steps, config.epochs)
    console.print("learning rate", *curve, sep="\n")
    if target is None:
        with announce("compiling the train step and timing it"):
            lines = _cost_lines(run)
        console.print(*lines, sep="\n")
        return
    takes = "seconds" if target.accelerator.gpu else "minutes"
    console.print(f"compiling the train step for {target.name}, which takes {takes} ...")
    cost = _target_cost(config, target, console)
    console.print(*_target_lines(run, cost, price), sep="\n")
    console.print("searching for the largest batch, which takes two to five compilations ...")
    console.print(_largest_batch(config, cost))


def _make_experiment(config: ConfigDict, target: Target | None) -> tuple[Experiment, str]:
    """Return the experiment, and a warning if the data is replaced because it is missing."""
    if target is None:
        return make_experiment(config), ""
    mesh = make_mesh(config.mesh.fsdp, target.devices)
    try:
        return make_experiment(config, mesh), ""
    except UserError as e:
        if config.model.num_classes != FIELDS["data.synthetic.classes"].default:
            raise UserError(
                f"{e}; without the data, give its number of images: --config.data.source=synthetic "
                f"--config.data.synthetic.classes={config.model.num_classes} "
                "--config.data.synthetic.images=N"
            ) from e
        run = make_experiment(
            without_data(config), mesh
        )  # raises again if the error is not about the data
        return run, f"{one_line(e)}; assuming ImageNet's {len(run.source):,} training images"


def _target_cost(config: ConfigDict, target: Target, console: Console) -> TargetCost:
    """Return the cost of the step. While it does not fit into memory, halve the batch."""
    try:
        return target_cost(config, target)
    except DoesNotFit as e:
        half = round_batch_size(config, config.batch_size / 2, len(target.devices))
        if half == config.batch_size:
            raise
        console.print(f"{e}; compiling it with {half} images ...")
        return _target_cost(copy_config(config, {"batch_size": half}), target, console)


def _largest_batch(config: ConfigDict, cost: TargetCost) -> str:
    """Return a sentence on the largest batch, extrapolated from two batches and compiled."""
    target, devices = cost.target, len(cost.target.devices)
    half = round_batch_size(config, cost.batch_size / 2, devices)
    other = half if half < cost.batch_size else 2 * cost.batch_size
    try:
        second = target_cost(copy_config(config, {"batch_size": other}), target)
    except DoesNotFit:
        return f"largest batch: {cost.batch_size:,} images; {other:,} do not fit"
    # Memory grows at least by the bytes of the images.
    least = cost.memory["batch"] / cost.batch_size
    tried = f"extrapolated from {other:,} and {cost.batch_size:,} images"
    for _ in range(_TRIES):
        growth = (second.used - cost.used) / (second.batch_size - cost.batch_size)
        room = (target.memory - cost.used) / max(growth, least)
        largest = round_batch_size(config, _MARGIN * (cost.batch_size + room), devices)
        try:
            second = target_cost(copy_config(config, {"batch_size": largest}), target)
        except DoesNotFit:
            return f"largest batch: below {largest:,} images, {tried}, which do not fit"
        if second.used <= target.memory:
            return f"largest batch: about {largest:,} images, {tried} and compiled: they fit"
        tried = f"interpolated between {cost.batch_size:,} and {largest:,} images"
    return f"largest batch: below {largest:,} images, which were compiled and do not fit"


def _target_lines(run: Experiment, cost: TargetCost, price: float | None) -> list[str]:
    config, target = run.config, cost.target
    kinds = ", ".join(f"{kind} {format_bytes(size)}" for kind, size in cost.memory.items() if size)
    fits = cost.used <= target.memory and cost.batch_size == config.batch_size
    advice = (
        "it fits"
        if fits
        else "it does not fit: lower config.batch_size, or raise config.optim.grad_accum_steps"
    )
    bounds = dict(cost.seconds)
    estimate = bounds.pop("cycles", None)
    times = ", ".join(f"{seconds * 1e3:.3g} ms for {what}" for what, seconds in bounds.items())
    if estimate:
        times += f"; the compiler estimates {estimate * 1e3:.3g} ms"
    program, rate = cost.program, cost.batch_size / cost.step_seconds
    traffic = program.bytes * len(target.devices) / cost.batch_size
    exchanged = ", ".join(f"{count:,.0f} {kind}" for kind, count in program.collectives.items())
    hours = run.total_steps * config.batch_size / rate / 3600
    price = target.accelerator.dollars_per_hour if price is None else price
    return [
        f"memory of each device: {format_bytes(cost.used)} of {format_bytes(target.memory)} for a "
        f"batch of {cost.batch_size:,} ({kinds}); {advice}",
        f"each image: {format_flops(cost.flops / cost.batch_size)}, {traffic / 1e6:.1f} MB of "
        "memory traffic",
        f"time of a step: at least {times}",
        f"collectives: {exchanged} of {format_bytes(program.collective_bytes.total())} in a step"
        if exchanged
        else "collectives: none",
        f"whole recipe: {hours:,.1f} h at {rate:,.0f} img/s, if the step takes "
        + ("what the compiler estimates" if estimate else "the larger bound")
        + f" and the input keeps up; {hours * target.chips * price:,.0f} dollars at "
        f"{price:.2f} an hour for each of {target.chips} (--price)",
    ]


def draw_schedule(schedule: Callable[[int], Any], steps: int, epochs: float) -> list[str]:
    """Return lines of text that plot the learning rate."""
    rates = [float(schedule(int(i * (steps - 1) / (_WIDTH - 1)))) for i in range(_WIDTH)]
    top = max(rates) or 1.0  # may be below the peak, which can lie between two columns
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
    on_cpu = device.platform == "cpu"
    large = on_cpu and count_flops(config, image_shape(config)) > _CPU_FLOPS
    small = _shrink(config) if large else config
    timed = step_cost(small, repeats=3, steps=1 if on_cpu else 5)
    whole = step_cost(config, repeats=0) if large else timed
    rate = small.batch_size / timed.step_seconds
    images = run.total_steps * config.batch_size
    per_image = whole.flops / config.batch_size
    note = f", timed with {small.batch_size} images a step" if large else ""
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
    """Return `config` with a batch that takes seconds on a CPU."""
    rows = min(config.batch_size, _CPU_ROWS * jax.device_count())
    small = copy_config(config, {"batch_size": rows, "optim.grad_accum_steps": 1})
    if "bn_group" in small.model:
        small.model.bn_group = 0
    return small


def _compare_memory(device: jax.Device, cost: StepCost) -> str:
    """Return the fraction of the device memory that the step needs; "" if it is unknown."""
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if not limit:
        return ""
    share = (cost.state_bytes + cost.temporary_bytes) / limit
    advice = "; it does not fit: raise config.optim.grad_accum_steps" if share > 1 else ""
    return f": {share:.0%} of {format_bytes(limit)}{advice}"
