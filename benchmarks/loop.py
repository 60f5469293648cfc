"""Measure the cost of the training loop: its throughput relative to the bare train step.

  python -m benchmarks.loop

Trains configs/quickstart.py with logging, metrics and prefetch to the device, but with a batch that
is ready in host memory, so that decoding is not measured. A checkpoint is saved only at the end,
because such a small model would otherwise be saved every two seconds. Alternates between bare steps
and the loop in one process, and reports medians. A ratio of 1 means that the loop costs nothing.
"""

import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.common import make_parser, print_result
from imagenet_jax import cli
from imagenet_jax import config as config_io
from imagenet_jax import train as loop
from imagenet_jax.files import read_json_lines
from imagenet_jax.training.experiment import make_experiment
from imagenet_jax.training.sharding import batch_sharding
from imagenet_jax.training.state import create_state
from imagenet_jax.training.step import compile_train_step


class Ready:
    """Replaces the input pipeline with one batch in host memory, repeated."""

    def __init__(self, config: Any):
        rng = np.random.default_rng(0)
        side = config.augment.image_size
        self.batch = {
            "image": rng.integers(0, 256, (config.batch_size, side, side, 3), dtype=np.uint8),
            "label": rng.integers(0, config.model.num_classes, config.batch_size).astype(np.int32),
        }

    def __call__(self, *args: Any, total_steps: int, **kwargs: Any) -> Iterator[dict]:
        return itertools.repeat(self.batch, total_steps)


def measure(config: Any, rounds: int) -> dict[str, float]:
    """Return medians over `rounds` of images per second, for bare steps and in the loop."""
    run = make_experiment(config)
    ready = Ready(config)
    step = compile_train_step(run.parts, run.abstract, run.mesh)
    batch = jax.device_put(ready.batch, batch_sharding(run.mesh))
    images = run.total_steps * config.batch_size
    bare, looped = [], []
    for i in range(rounds + 1):
        state = create_state(
            config.model, run.parts.tx, config.ema.decay > 0, run.mesh, config.seed
        )
        state, metrics = step(state, batch)
        jax.block_until_ready(state)
        start = time.perf_counter()
        for _ in range(run.total_steps):
            state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        seconds = time.perf_counter() - start
        with tempfile.TemporaryDirectory() as directory:
            looped_rate = _loop_rate(config, Path(directory), ready)
        if i:  # the first round warms up
            bare.append(images / seconds)
            looped.append(looped_rate)
    return {
        "bare_images_per_second": statistics.median(bare),
        "loop_images_per_second": statistics.median(looped),
        "ratio": statistics.median(b / a for a, b in zip(bare, looped, strict=True)),
    }


def _loop_rate(config: Any, workdir: Path, ready: Ready) -> float:
    """Return the images per second of a whole run as measured by the loop, from step 2 on."""
    real = loop.pipeline.train_batches
    loop.pipeline.train_batches = ready  # type: ignore[assignment]
    try:
        loop.train(config, workdir)
    finally:
        loop.pipeline.train_batches = real
    lines = read_json_lines(workdir / "metrics.jsonl")
    rates = [line["images_per_second"] for line in lines if "images_per_second" in line]
    return len(rates) / sum(1 / rate for rate in rates)


def main(argv: Any) -> None:
    argv, overrides = cli.split_overrides(argv)
    parser = make_parser(__doc__, "configs/quickstart.py")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(argv)
    defaults = [("epochs", "4"), ("checkpoint.every_epochs", "0"), ("eval.every_epochs", "0")]
    config = config_io.load(args.config, [*defaults, *overrides])
    result = measure(config, args.rounds)
    print_result(result, args.json)


if __name__ == "__main__":
    cli.run(main)
