"""What a train step costs: floating-point operations, memory and time on the present devices."""

import dataclasses
import math
import statistics
import time
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from imagenet_jax.data.sampler import in_steps
from imagenet_jax.training import ema, optim
from imagenet_jax.training.fine_tuning import fine_tuning_of
from imagenet_jax.training.sharding import batch_sharding, check_batch_size, make_mesh
from imagenet_jax.training.state import TrainState, abstract_state, create_state, graph_of
from imagenet_jax.training.step import compile_train_step

# The schedule's length changes neither operations nor memory.
_STEPS_PER_EPOCH, _EPOCHS = Fraction(1000), 90


@dataclasses.dataclass(frozen=True)
class StepCost:
    """Of the compiled step.

    Attributes:
      flops: operations of a step over all devices, as XLA counts them.
      state_bytes: on each device, of the arguments: the state and a batch.
      temporary_bytes: on each device, of what lives within a step; 0 where XLA does not say.
      seconds: of a step; one entry a measurement, none where only compiled.
    """

    flops: float
    state_bytes: int
    temporary_bytes: int
    seconds: tuple[float, ...] = ()

    @property
    def step_seconds(self) -> float:
        return statistics.median(self.seconds)


class BareStep(NamedTuple):
    """The train step of a config without its data.

    Attributes:
      mesh: all devices.
      abstract: shapes and shardings of the state.
      tx: the optimizer.
      step: (state, batch) -> (state, metrics), sharded; it reuses the state's memory.
    """

    mesh: Mesh
    abstract: TrainState
    tx: optax.GradientTransformation
    step: jax.stages.Wrapped


def make_bare_step(config: ConfigDict) -> BareStep:
    """As training builds it, for a schedule of any length; UserError as for training."""
    mesh = make_mesh(config.mesh.fsdp)
    group = config.model.get("bn_group", 0) or 1
    check_batch_size("batch_size", config.batch_size, mesh, config.optim.grad_accum_steps, group)
    schedule = optim.make_schedule(
        config.optim,
        batch_size=config.batch_size,
        steps_per_epoch=_STEPS_PER_EPOCH,
        total_steps=int(_EPOCHS * _STEPS_PER_EPOCH),
    )
    averaging = ema.make_step_size(
        config.ema,
        batch_size=config.batch_size,
        epochs=_EPOCHS,
        warmup_steps=math.ceil(in_steps(config.optim.warmup_epochs, _STEPS_PER_EPOCH)),
    )
    tx = optim.make_optimizer(config.optim, schedule, fine_tuning_of(config, _STEPS_PER_EPOCH))
    abstract = abstract_state(config.model, tx, config.ema.decay > 0, mesh)
    graph = graph_of(config.model)
    step = compile_train_step(abstract, mesh, graph, tx, schedule, config, averaging)
    return BareStep(mesh, abstract, tx, step)


def create_initial_state(config: ConfigDict, bare: BareStep) -> TrainState:
    """The state before the first step, on the devices."""
    return create_state(config.model, bare.tx, config.ema.decay > 0, bare.mesh, config.seed)


def step_cost(config: ConfigDict, *, repeats: int = 5, steps: int = 10) -> StepCost:
    """Compile the step of `config`; with `repeats`, time that often `steps` steps in a row.

    The batch is random and on the device already. Two steps come before, to warm up.
    """
    bare = make_bare_step(config)
    compiled = bare.step.lower(bare.abstract, abstract_batch(config, bare.mesh)).compile()
    memory = compiled.memory_analysis()
    cost = StepCost(
        flops=flops_of(compiled, config, bare.mesh) or 0.0,
        state_bytes=int(getattr(memory, "argument_size_in_bytes", 0)),
        temporary_bytes=int(getattr(memory, "temp_size_in_bytes", 0)),
    )
    if not repeats:
        return cost
    state, batch = create_initial_state(config, bare), random_batch(config, bare.mesh)
    return dataclasses.replace(cost, seconds=_time(compiled, state, batch, repeats, steps))


def flops_of(step: jax.stages.Compiled, config: ConfigDict, mesh: Mesh) -> float | None:
    """Floating-point operations of the compiled train step over all devices; None: XLA is silent.

    With micro-batches the update, little beside them, is counted as often as they are.
    """
    try:
        counted = (step.cost_analysis() or {}).get("flops")
    except NotImplementedError:
        return None
    # XLA counts one device, and the body of a loop once.
    return float(counted) * mesh.size * config.optim.grad_accum_steps if counted else None


class StepFlops:
    """`flops_of` the step as it runs, for each size of its images once."""

    def __init__(self, step: Any, abstract: TrainState, config: ConfigDict, mesh: Mesh):
        """`step` is what jax.jit gave; `abstract` its state."""
        self._step, self._abstract, self._config, self._mesh = step, abstract, config, mesh
        self._known: dict[tuple[int, ...], float | None] = {}

    def __call__(self, batch: dict[str, jax.Array]) -> float | None:
        """Of a batch that the step has run on: it is compiled, and is not compiled again."""
        shape = batch["image"].shape
        if shape not in self._known:
            shapes = {
                name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
                for name, x in batch.items()
            }
            compiled = self._step.lower(self._abstract, shapes).compile()
            self._known[shape] = flops_of(compiled, self._config, self._mesh)
        return self._known[shape]


def _time(compiled: Any, state: Any, batch: Any, repeats: int, steps: int) -> tuple[float, ...]:
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
    return tuple(seconds)


def abstract_batch(config: ConfigDict, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and shardings of a batch."""
    side, rows, sharding = config.augment.image_size, config.batch_size, batch_sharding(mesh)
    return {
        "image": jax.ShapeDtypeStruct((rows, side, side, 3), jnp.uint8, sharding=sharding),
        "label": jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=sharding),
    }


def random_batch(config: ConfigDict, mesh: Mesh) -> dict[str, jax.Array]:
    """A batch of random images and labels, on the devices."""
    side, rows = config.augment.image_size, config.batch_size
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (rows, side, side, 3), dtype=np.uint8),
        "label": rng.integers(0, config.model.num_classes, rows).astype(np.int32),
    }
    return jax.device_put(batch, batch_sharding(mesh))
