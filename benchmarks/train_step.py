"""Speed of one config's train step on data that is already on the device.

  python -m benchmarks.train_step --config=configs/resnet50.py
  python -m benchmarks.train_step --config=configs/vgg16.py --config.batch_size=256 --json

Prints images per second and achieved FLOP/s; floating-point operations are those that XLA counts
in the compiled program.
"""

import argparse
import json
import statistics
import time
from typing import Any

import jax
import numpy as np

from imagenet_jax import cli
from imagenet_jax import config as config_io
from imagenet_jax.training import optim
from imagenet_jax.training.sharding import batch_sharding, check_batch_size, make_mesh
from imagenet_jax.training.state import abstract_state, create_state, graph_of
from imagenet_jax.training.step import compile_train_step


def measure(config: Any, repeats: int = 5, steps: int = 10) -> dict[str, Any]:
    """Median over `repeats` of the time of `steps` steps in a row, after two to warm up."""
    mesh = make_mesh(config.mesh.fsdp)
    check_batch_size("batch_size", config.batch_size, mesh)
    schedule = optim.learning_rate(
        config.optim, batch_size=config.batch_size, steps_per_epoch=1000.0, total_steps=90_000
    )
    tx = optim.optimizer(config.optim, schedule)
    ema = config.ema.decay > 0
    abstract = abstract_state(config.model, tx, ema, mesh)
    step = compile_train_step(abstract, mesh, graph_of(config.model), tx, schedule, config)
    state = create_state(config.model, tx, ema, mesh, config.seed)
    side = config.augment.image_size
    rng = np.random.default_rng(0)
    batch = jax.device_put(
        {
            "image": rng.integers(0, 256, (config.batch_size, side, side, 3), dtype=np.uint8),
            "label": rng.integers(0, config.model.num_classes, config.batch_size).astype(np.int32),
        },
        batch_sharding(mesh),
    )
    compiled = step.lower(state, batch).compile()
    costs = compiled.cost_analysis() or {}
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
    per_step = statistics.median(seconds)
    flops = float(costs.get("flops", 0.0)) * mesh.size  # XLA counts those of one device
    return {
        "model": config.model.name,
        "dtype": config.model.dtype,
        "batch_size": config.batch_size,
        "image_size": side,
        "devices": f"{mesh.size} x {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
        "step_ms": 1e3 * per_step,
        "step_ms_spread": 1e3 * (max(seconds) - min(seconds)),
        "images_per_second": config.batch_size / per_step,
        "gflop_per_image": flops / config.batch_size / 1e9,
        "tflop_per_second": flops / per_step / 1e12,
    }


def main(argv: Any) -> None:
    argv, overrides = cli.split_overrides(argv)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, metavar="FILE[:ARG]")
    parser.add_argument("--steps", type=int, default=10, help="steps per measurement")
    parser.add_argument("--repeats", type=int, default=5, help="measurements; the median counts")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)
    result = measure(config_io.load(args.config, overrides), args.repeats, args.steps)
    if args.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:20} {value:,.2f}" if isinstance(value, float) else f"{name:20} {value}")


if __name__ == "__main__":
    cli.run(main)
