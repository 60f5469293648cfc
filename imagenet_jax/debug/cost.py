"""The cost of a train step: floating-point operations, memory and time.

`step_cost` runs the step on the present devices, `target_cost` compiles it for others.
"""

import dataclasses
import math
import re
import statistics
import time
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from imagenet_jax.debug.compiled import ProgramCost, read_cost
from imagenet_jax.debug.targets import Target, quiet
from imagenet_jax.errors import UserError
from imagenet_jax.logs.throughput import count_flops, peak_flops
from imagenet_jax.training.experiment import make_step_parts
from imagenet_jax.training.sharding import batch_sharding, check_batch_size, make_mesh
from imagenet_jax.training.state import TrainState, abstract_state, create_state
from imagenet_jax.training.step import StepParts, compile_train_step

# Any number will do: the schedule's length changes neither operations nor memory.
_STEPS_PER_EPOCH = Fraction(1000)


@dataclasses.dataclass(frozen=True)
class StepCost:
    """The cost of a compiled train step.

    Attributes:
      flops: operations of a step over all devices, as XLA counts them.
      state_bytes: memory of the arguments (the state and a batch) on each device.
      temporary_bytes: memory of intermediate values on each device; 0 if XLA does not report it.
      seconds: time of a step, one entry per measurement; () if nothing was timed.
    """

    flops: float
    state_bytes: int
    temporary_bytes: int
    seconds: tuple[float, ...] = ()

    @property
    def step_seconds(self) -> float:
        return statistics.median(self.seconds)


@dataclasses.dataclass(frozen=True)
class BareStep:
    """The train step of a config without its data.

    Attributes:
      mesh: all devices.
      abstract: shapes and shardings of the state.
      step: (state, batch) -> (state, metrics), sharded; it donates the state.
    """

    mesh: Mesh
    parts: StepParts
    abstract: TrainState
    step: jax.stages.Wrapped

    def create_state(self) -> TrainState:
        """Return the state before the first step, on the devices."""
        config = self.parts.config
        return create_state(
            config.model, self.parts.tx, config.ema.decay > 0, self.mesh, config.seed
        )


def make_bare_step(config: ConfigDict, devices: list[jax.Device] | None = None) -> BareStep:
    """Build the train step as training on `devices` does; raises UserError as training does."""
    mesh = make_mesh(config.mesh.fsdp, devices)
    group = config.model.get("bn_group", 0) or 1
    check_batch_size("batch_size", config.batch_size, mesh, config.optim.grad_accum_steps, group)
    parts = make_step_parts(config, _STEPS_PER_EPOCH, mesh)
    abstract = abstract_state(config.model, parts.tx, config.ema.decay > 0, mesh)
    return BareStep(mesh, parts, abstract, compile_train_step(parts, abstract, mesh))


def step_cost(config: ConfigDict, *, repeats: int = 5, steps: int = 10) -> StepCost:
    """Compile the train step of `config` and time `steps` steps in a row, `repeats` times.

    The batch is random and already on the device. Two untimed steps come first.
    """
    bare = make_bare_step(config)
    compiled = bare.step.lower(bare.abstract, abstract_batch(config, bare.mesh)).compile()
    memory = compiled.memory_analysis()
    cost = StepCost(
        flops=count_flops(compiled, config, bare.mesh) or 0.0,
        state_bytes=int(getattr(memory, "argument_size_in_bytes", 0)),
        temporary_bytes=int(getattr(memory, "temp_size_in_bytes", 0)),
    )
    if not repeats:
        return cost
    state, batch = bare.create_state(), random_batch(config, bare.mesh)
    for _ in range(2):
        state, metrics = compiled(state, batch)
    jax.block_until_ready(state)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(steps):
            state, metrics = compiled(state, batch)
        jax.block_until_ready((state, metrics))
        seconds.append((time.perf_counter() - start) / steps)
    return dataclasses.replace(cost, seconds=tuple(seconds))


@dataclasses.dataclass(frozen=True)
class TargetCost:
    """The cost of a train step on hardware that it was only compiled for.

    Attributes:
      batch_size: images of a step, over all devices.
      flops: operations of a step over all devices, as XLA counts them before it optimizes.
      memory: kind -> bytes on each device: parameters, batch statistics, optimizer, EMA, batch, and
        temporary values, most of which are activations.
      program: what each device runs.
    """

    target: Target
    batch_size: int
    flops: float
    memory: dict[str, float]
    program: ProgramCost

    @property
    def used(self) -> float:
        """Bytes that a device needs."""
        return sum(self.memory.values())

    @property
    def seconds(self) -> dict[str, float]:
        """Lower bounds of the time of a step, by what bounds it.

        "cycles" is an estimate, not a bound; only the compiler for TPUs makes it.
        """
        target, device = self.target, self.target.devices[0]
        bounds = {"memory": self.program.bytes / target.bandwidth}
        if peak := peak_flops(device.device_kind):
            bounds["arithmetic"] = self.flops / len(target.devices) / (peak * target.share)
        if self.program.cycles:
            bounds["cycles"] = self.program.cycles / target.accelerator.clock
        return bounds

    @property
    def step_seconds(self) -> float:
        """The compiler's estimate if it makes one, else the larger bound."""
        return self.seconds.get("cycles") or max(self.seconds.values())


class DoesNotFit(UserError):
    """The compiler found no way to fit the step into the memory of the target."""


def target_cost(config: ConfigDict, target: Target) -> TargetCost:
    """Compile the train step of `config` for `target`.

    Raises DoesNotFit if the compiler says so, and UserError as training does.
    """
    bare = make_bare_step(config, target.devices)
    batch = abstract_batch(config, bare.mesh)
    lowered = bare.step.lower(bare.abstract, batch)
    try:
        with quiet():
            compiled = lowered.compile(compiler_options=target.compiler_options)
    except RuntimeError as e:
        found = re.search(r"Used (\S+) of (\S+)", str(e))
        if not found or "RESOURCE_EXHAUSTED" not in str(e):
            raise
        raise DoesNotFit(
            f"config.batch_size = {config.batch_size} does not fit: a step needs {found[1]} of "
            f"the {found[2]} of a device of {target.name}"
        ) from e
    state, sizes = bare.abstract, compiled.memory_analysis()
    memory = {
        "parameters": _device_bytes(state.params),
        "batch statistics": _device_bytes(state.batch_stats),
        "optimizer": _device_bytes(state.opt_state),
        "EMA": _device_bytes(state.ema),
        "batch": _device_bytes(batch),
        "activations": float(getattr(sizes, "temp_size_in_bytes", 0)),
    }
    return TargetCost(
        target, config.batch_size, _count_flops(config), memory, read_cost(compiled.as_text() or "")
    )


def _count_flops(config: ConfigDict) -> float:
    """Return the operations of a step over all devices, of one micro-batch if there are several."""
    small = ConfigDict(config.to_dict())
    small.mesh.fsdp = 1
    bare = make_bare_step(small, jax.devices("cpu")[:1])
    counted = bare.step.lower(bare.abstract, abstract_batch(small, bare.mesh)).cost_analysis()
    return float((counted or {})["flops"]) * config.optim.grad_accum_steps


def _device_bytes(tree: Any) -> float:
    """Return the bytes of abstract arrays on each device."""
    return float(
        sum(
            x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape))
            for x in jax.tree.leaves(tree)
        )
    )


def abstract_batch(config: ConfigDict, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes and shardings of a batch."""
    side, rows, sharding = config.augment.image_size, config.batch_size, batch_sharding(mesh)
    return {
        "image": jax.ShapeDtypeStruct((rows, side, side, 3), jnp.uint8, sharding=sharding),
        "label": jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=sharding),
    }


def random_batch(config: ConfigDict, mesh: Mesh) -> dict[str, Any]:
    """Return a batch of random images and labels, on the devices."""
    side, rows = config.augment.image_size, config.batch_size
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (rows, side, side, 3), dtype=np.uint8),
        "label": rng.integers(0, config.model.num_classes, rows).astype(np.int32),
    }
    return jax.device_put(batch, batch_sharding(mesh))
