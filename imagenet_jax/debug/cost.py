"""The cost of a train step: floating-point operations, memory and time.

`step_cost` runs the step on the devices of this machine; `target_cost` compiles it for others.
"""

import dataclasses
import math
import re
import statistics
import time
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from imagenet_jax.config import copy_config
from imagenet_jax.config.fields import FIELDS
from imagenet_jax.debug.compiled import ProgramCost, read_cost
from imagenet_jax.debug.targets import Target, quiet
from imagenet_jax.errors import UserError
from imagenet_jax.logs.throughput import count_flops, peak_flops
from imagenet_jax.training.experiment import make_step_parts
from imagenet_jax.training.sharding import batch_sharding, check_train_batch, make_mesh
from imagenet_jax.training.state import TrainState, abstract_state, create_state
from imagenet_jax.training.step import StepParts, compile_train_step

# Arbitrary: the length of the schedule changes neither operations nor memory.
_STEPS_PER_EPOCH = Fraction(1000)


@dataclasses.dataclass(frozen=True)
class StepCost:
    """The cost of a compiled train step.

    Attributes:
      flops: operations of a step over all devices (`count_flops`).
      state_bytes: bytes of the state and a batch on each device.
      temporary_bytes: bytes of intermediate values on each device; 0 if XLA does not report them.
      seconds: measured times of a step; () if it was not timed.
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
      mesh: mesh of all devices.
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
    """Build the train step for `devices`. Raises UserError for the same reasons as training."""
    mesh = make_mesh(config.mesh.fsdp, devices)
    check_train_batch(config, mesh)
    parts = make_step_parts(config, _STEPS_PER_EPOCH, mesh)
    abstract = abstract_state(config.model, parts.tx, config.ema.decay > 0, mesh)
    return BareStep(mesh, parts, abstract, compile_train_step(parts, abstract, mesh))


def step_cost(config: ConfigDict, *, repeats: int = 5, steps: int = 10) -> StepCost:
    """Compile the train step of `config`, and time runs of `steps` steps `repeats` times.

    The batch is random and already on the device.
    """
    bare = make_bare_step(config)
    compiled = bare.step.lower(bare.abstract, abstract_batch(config, bare.mesh)).compile()
    cost = StepCost(
        flops=count_flops(config, image_shape(config)),
        state_bytes=int(getattr(compiled.memory_analysis(), "argument_size_in_bytes", 0)),
        temporary_bytes=temporary_bytes(compiled),
    )
    if not repeats:
        return cost
    step = repeat_step(bare, compiled, config)
    return dataclasses.replace(cost, seconds=time_steps(step, repeats=repeats, steps=steps))


def repeat_step(bare: BareStep, step: Callable[..., Any], config: ConfigDict) -> Callable[[], Any]:
    """Return a function that runs `step` on a random batch, from the state of its last call."""
    state, batch = bare.create_state(), random_batch(config, bare.mesh)

    def again() -> Any:
        nonlocal state
        state, metrics = step(state, batch)
        return state, metrics

    return again


def temporary_bytes(compiled: jax.stages.Compiled) -> int:
    """Return the bytes of intermediate values on each device; 0 if XLA does not report them."""
    return int(getattr(compiled.memory_analysis(), "temp_size_in_bytes", 0))


def time_steps(step: Callable[[], Any], *, repeats: int, steps: int) -> tuple[float, ...]:
    """Return the mean seconds per step of each of `repeats` runs of `steps` steps.

    `step` returns arrays; only the last ones of a run are waited for. Two steps before the first
    run are not timed.
    """
    jax.block_until_ready([step() for _ in range(2)][-1])
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(steps):
            results = step()
        jax.block_until_ready(results)
        seconds.append((time.perf_counter() - start) / steps)
    return tuple(seconds)


@dataclasses.dataclass(frozen=True)
class TargetCost:
    """The cost of a train step on hardware that it is compiled for but not run on.

    Attributes:
      memory: kind -> bytes on each device. The kinds are parameters, batch statistics, optimizer,
        EMA, batch, and activations, which are all temporary values.
      program: cost of the program of each device.
    """

    config: ConfigDict
    target: Target
    memory: dict[str, float]
    program: ProgramCost

    @property
    def batch_size(self) -> int:
        """Images per step, over all devices."""
        return self.config.batch_size

    @property
    def flops(self) -> float:
        """Operations of a step over all devices (`count_flops`)."""
        return count_flops(self.config, image_shape(self.config))

    @property
    def used(self) -> float:
        """Bytes that each device needs."""
        return sum(self.memory.values())

    @property
    def seconds(self) -> dict[str, float]:
        """Lower bounds of the time of a step: "memory" and "arithmetic".

        "cycles", if present, is an estimate of the compiler, not a bound. Only TPUs have it.
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
        """Estimate of the compiler, or else the larger bound."""
        return self.seconds.get("cycles") or max(self.seconds.values())


class DoesNotFit(UserError):
    """The step does not fit into the memory of the target, according to the compiler."""


def target_cost(config: ConfigDict, target: Target) -> TargetCost:
    """Compile the train step of `config` for `target`.

    Raises DoesNotFit if the step does not fit into memory, and UserError for the same reasons as
    training.
    """
    bare = make_bare_step(config, target.devices)
    batch = abstract_batch(config, bare.mesh)
    lowered = bare.step.lower(bare.abstract, batch)
    options = target.compiler_options
    try:
        with quiet():
            try:
                compiled = lowered.compile(compiler_options=options)
            except RuntimeError as e:
                # Without a GPU to time them on, XLA does not try other tile sizes.
                if "tile sizes" not in str(e):
                    raise
                options = {**options, "xla_gpu_enable_triton_gemm": False}
                compiled = lowered.compile(compiler_options=options)
    except RuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in str(e):
            raise
        # First what is needed, then what there is.
        sizes = re.findall(r"\b\d[\d.]*[KMGT]\b", str(e))
        needs = f"{sizes[0]} of the {sizes[1]}" if len(sizes) > 1 else "more than the memory"
        raise DoesNotFit(
            f"config.batch_size = {config.batch_size} does not fit: a step needs {needs} of a "
            f"device of {target.name}"
        ) from e
    state = bare.abstract
    memory = {
        "parameters": device_bytes(state.params),
        "batch statistics": device_bytes(state.batch_stats),
        "optimizer": device_bytes(state.opt_state),
        "EMA": device_bytes(state.ema),
        "batch": device_bytes(batch),
        "activations": float(temporary_bytes(compiled)),
    }
    return TargetCost(config, target, memory, read_cost(compiled.as_text() or ""))


def device_bytes(tree: Any) -> float:
    """Return the bytes of abstract arrays on each device."""
    return float(
        sum(
            x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape))
            for x in jax.tree.leaves(tree)
        )
    )


def without_data(config: ConfigDict) -> ConfigDict:
    """Return a copy with as many synthetic images as ImageNet has, in the classes of `config`."""
    return copy_config(
        config,
        {
            "data.source": "synthetic",
            "data.holdout": 0.0,
            "data.class_order": "name",
            "data.synthetic.images": FIELDS["data.synthetic.images"].default,
            "data.synthetic.classes": config.model.num_classes,
        },
    )


def image_shape(config: ConfigDict) -> tuple[int, int, int, int]:
    """Return the shape of the images of a batch, over all devices."""
    return config.batch_size, config.augment.image_size, config.augment.image_size, 3


def abstract_batch(config: ConfigDict, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes and shardings of a batch."""
    shape, sharding = image_shape(config), batch_sharding(mesh)
    return {
        "image": jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=sharding),
        "label": jax.ShapeDtypeStruct(shape[:1], jnp.int32, sharding=sharding),
    }


def random_batch(config: ConfigDict, mesh: Mesh) -> dict[str, Any]:
    """Return a batch of random images and labels on the devices."""
    shape, rng = image_shape(config), np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, shape, dtype=np.uint8),
        "label": rng.integers(0, config.model.num_classes, shape[0]).astype(np.int32),
    }
    return jax.device_put(batch, batch_sharding(mesh))
