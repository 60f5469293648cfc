"""TrainState: everything that a train step updates, as one pytree of plain dicts."""

import math
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from imagenet_jax import models
from imagenet_jax.errors import check_choice
from imagenet_jax.models.base import Config
from imagenet_jax.runtime import xla
from imagenet_jax.training.sharding import get_shardings, state_sharding


@flax.struct.dataclass
class TrainState:
    """The state of training between two steps.

    Attributes:
      step: i32[], number of optimizer steps taken.
      params: nested dict of f32 arrays by module path.
      batch_stats: nested dict of f32 arrays: running mean and (unbiased) running variance.
      opt_state: state of the optax optimizer.
      ema: EMA of {"params", "batch_stats"}, or None.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any

    def weights(self, which: str) -> dict[str, Any]:
        """Return {"params", "batch_stats"} of the "raw" or "ema" weights."""
        if which == "ema":
            return self.ema
        return {"params": self.params, "batch_stats": self.batch_stats}


def model_graph(model: Config) -> nnx.GraphDef:
    """Return the model without its arrays; nothing is computed."""
    return models.outline(model)[0]


def inference_graph(model: Config) -> nnx.GraphDef:
    """Return `model_graph` with norm_impl "plain", whose batch norm can be folded."""
    return model_graph({**model, "norm_impl": "plain"} if "norm_impl" in model else model)


def abstract_params(model: ConfigDict) -> Any:
    """Return the shapes and dtypes of the parameters by module path; nothing is computed."""
    return models.outline(model)[1]


def initial_state(
    model: ConfigDict, tx: optax.GradientTransformation, ema: bool, key: jax.Array
) -> TrainState:
    """Return the state before the first step. Call it under jax.jit."""
    module = models.build(model, rngs=nnx.Rngs(key))
    params = nnx.to_pure_dict(nnx.state(module, nnx.Param))
    batch_stats = nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))
    return new_state(params, batch_stats, tx, ema)


def new_state(
    params: Any, batch_stats: Any, tx: optax.GradientTransformation, ema: bool
) -> TrainState:
    """Return the state before the first step with these weights. Call it under jax.jit."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=tx.init(params),
        ema=jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats}) if ema else None,
    )


def abstract_state(
    model: ConfigDict, tx: optax.GradientTransformation, ema: bool, mesh: Mesh
) -> TrainState:
    """Return shapes, dtypes and shardings of the state on `mesh`, for restoring a checkpoint."""
    _, params, batch_stats = models.outline(model)
    shapes = jax.eval_shape(lambda p, s: new_state(p, s, tx, ema), params, batch_stats)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        shapes,
        state_sharding(shapes, mesh),
    )


def create_state(
    model: ConfigDict, tx: optax.GradientTransformation, ema: bool, mesh: Mesh, seed: int
) -> TrainState:
    """Create the initial state, sharded over `mesh`, with one compiled program."""
    shardings = get_shardings(abstract_state(model, tx, ema, mesh))
    make = jax.jit(
        lambda key: initial_state(model, tx, ema, key),
        out_shardings=shardings,
        compiler_options=xla.options(optimize=False),
    )
    return make(jax.random.key(seed))


@jax.jit
def copy_state(state: TrainState) -> TrainState:
    """Return a copy of the arrays, for a step that donates its input."""
    return jax.tree.map(jnp.copy, state)


def count_parameters(params: Any) -> int:
    """Return the number of trainable parameters."""
    return sum(math.prod(p.shape) for p in jax.tree.leaves(params))


StepSize = Callable[[jax.Array], jax.Array | float]


def make_ema_step_size(config: ConfigDict, warmup_steps: int) -> StepSize:
    """Return the step size of the EMA, 1 - decay, as a function of the step (0, 1, ...).

    ema <- ema + step_size * (weights - ema), for parameters and batch-norm statistics (Polyak &
    Juditsky 1992). `config.ema.form` is one of:

    "constant"     1 - decay, as in flax's ImageNet example and timm's ModelEmaV2.
    "torchvision"  min(1, (1 - decay) * batch_size * every_steps / epochs), which makes `decay`
                   independent of batch size and run length. During learning-rate warm-up
                   (`warmup_steps`), and at the first update after it, it is 1, so that the EMA is a
                   copy of the weights (references/classification/train.py and
                   utils.ExponentialMovingAverage).
    "timm"         max(1 - decay, (1 + t / gamma) ** -power) at step t, which is 1 at step 0, as in
                   ModelEmaV3 with use_warmup.

    The EMA is updated only at steps divisible by `every_steps`; at other steps the step size is 0.
    torchvision restarts that count in each epoch; this function does not.
    """
    ema, every, floor = config.ema, config.ema.every_steps, 1.0 - config.ema.decay
    scaled = min(1.0, floor * config.batch_size * every / config.epochs)
    forms: dict[str, StepSize] = {
        "constant": lambda step: floor,
        "torchvision": lambda step: jnp.where(step < warmup_steps + every, 1.0, scaled),
        "timm": lambda step: jnp.maximum((1.0 + step / ema.gamma) ** -ema.power, floor),
    }
    check_choice("config.ema.form", ema.form, forms)
    step_size = forms[ema.form]
    if every == 1:
        return step_size
    return lambda step: jnp.where(step % every == 0, step_size(step), 0.0)
