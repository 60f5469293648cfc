"""Measure the cost of histograms of weights and gradients, in train steps.

  python -m benchmarks.histograms --config=configs/quickstart.py
  python -m benchmarks.histograms --config=configs/resnet50.py --config.model.name=resnet18

Alternates between steps and histograms in one process, on data that is already on the device, and
reports medians. With config.log.histograms_every_epochs=1, they are computed once per epoch.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

from benchmarks.common import make_parser, print_result
from imagenet_jax import cli
from imagenet_jax import config as config_io
from imagenet_jax.debug.cost import make_bare_step, random_batch
from imagenet_jax.debug.histograms import compile_histograms


def measure(config: Any, rounds: int) -> dict[str, float]:
    """Return medians, over `rounds` after a warm-up round, of the times and their ratio."""
    bare = make_bare_step(config)
    of_gradients, of_weights = compile_histograms(bare.parts, bare.mesh)
    state, batch = bare.create_state(), random_batch(config, bare.mesh)
    steps, gradients, weights = [], [], []
    for i in range(rounds + 1):
        times = [_seconds(of_gradients, state, batch)[0]]
        seconds, (state, _) = _seconds(bare.step, state, batch)
        times.append(_seconds(of_weights, state.params)[0])
        if i:
            steps.append(seconds)
            gradients.append(times[0])
            weights.append(times[1])
    both = [g + w for g, w in zip(gradients, weights, strict=True)]
    return {
        "step_ms": 1e3 * statistics.median(steps),
        "gradients_ms": 1e3 * statistics.median(gradients),
        "weights_ms": 1e3 * statistics.median(weights),
        "steps_per_histogram": statistics.median(b / s for b, s in zip(both, steps, strict=True)),
    }


def _seconds(work: Callable[..., Any], *args: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    result = jax.block_until_ready(work(*args))
    return time.perf_counter() - start, result


def main(argv: Any) -> None:
    argv, overrides = cli.split_overrides(argv)
    parser = make_parser(__doc__, "configs/quickstart.py")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args(argv)
    result = measure(config_io.load(args.config, overrides), args.rounds)
    print_result(result, args.json)


if __name__ == "__main__":
    cli.run(main)
