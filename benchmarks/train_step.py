"""Measure the speed of the train or evaluation step on data that is already on the device.

  python -m benchmarks.train_step --config=configs/resnet50.py
  python -m benchmarks.train_step --config=configs/vgg.py --config.batch_size=256 --json

Reports images per second and achieved FLOP/s, counting operations as in the log of a run. --eval
also measures the evaluation step, with config.eval.batch_size. --plain alternates between our
network and the same network in plain Flax (benchmarks/compile.py).
"""

import contextlib
import statistics
from typing import Any

import jax
import numpy as np

from benchmarks.common import make_parser, print_result
from benchmarks.compile import find_plain, replaced
from imagenet_jax import cli
from imagenet_jax import config as config_io
from imagenet_jax.debug.cost import (
    make_bare_step,
    repeat_step,
    step_cost,
    time_steps,
    without_data,
)
from imagenet_jax.errors import UserError
from imagenet_jax.training.evaluate import compile_eval_step
from imagenet_jax.training.experiment import make_evaluation
from imagenet_jax.training.sharding import batch_sharding


def measure(config: Any, repeats: int = 5, steps: int = 10) -> dict[str, Any]:
    """Return figures for the median time, over `repeats`, of `steps` consecutive steps."""
    cost = step_cost(config, repeats=repeats, steps=steps)
    return {
        "model": config.model.name,
        "dtype": config.model.dtype,
        "batch_size": config.batch_size,
        "image_size": config.augment.image_size,
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
        "step_ms": 1e3 * cost.step_seconds,
        "step_ms_spread": 1e3 * (max(cost.seconds) - min(cost.seconds)),
        "images_per_second": config.batch_size / cost.step_seconds,
        "gflop_per_image": cost.flops / config.batch_size / 1e9,
        "tflop_per_second": cost.flops / cost.step_seconds / 1e12,
    }


def measure_evaluation(config: Any, repeats: int, steps: int) -> dict[str, float]:
    """Return the speed of the evaluation step, like `measure`. The data set is not needed."""
    evaluation = make_evaluation(without_data(config))
    step = compile_eval_step(evaluation)
    weights = make_bare_step(config).create_state().weights("raw")
    rows, side = config.eval.batch_size, config.eval.image_size
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (rows, side, side, 3), dtype=np.uint8),
        "label": rng.integers(0, config.model.num_classes, rows).astype(np.int32),
        "mask": np.ones(rows, np.float32),
    }
    batch = jax.device_put(batch, batch_sharding(evaluation.mesh))
    seconds = time_steps(lambda: step(weights, batch), repeats=repeats, steps=steps)
    median = statistics.median(seconds)
    return {"eval_step_ms": 1e3 * median, "eval_images_per_second": rows / median}


def measure_plain(config: Any, repeats: int, steps: int) -> dict[str, float]:
    """Return the median speeds of our step and of plain Flax, timed in turns, and their ratio.

    Raises UserError if there is no plain network for the model.
    """
    name = config.model.name
    network = find_plain(name)
    if network is None:
        raise UserError(f"--plain: {name} has no counterpart in benchmarks/compile.py")
    run = {}
    for form in ("ours", "plain"):
        with replaced(name, network) if form == "plain" else contextlib.nullcontext():
            bare = make_bare_step(config)
            run[form] = repeat_step(bare, bare.step, config)
            run[form]()  # compiles
    seconds: dict[str, list[float]] = {form: [] for form in run}
    for _ in range(repeats):
        for form, step in run.items():
            seconds[form] += time_steps(step, repeats=1, steps=steps)
    ours, plain = (statistics.median(seconds[form]) for form in ("ours", "plain"))
    speeds = {form: config.batch_size / t for form, t in (("ours", ours), ("plain", plain))}
    return {f"{form}_images_per_second": speed for form, speed in speeds.items()} | {
        "ours_over_plain": plain / ours
    }


def main(argv: Any) -> None:
    argv, overrides = cli.split_overrides(argv)
    parser = make_parser(__doc__, "configs/resnet50.py")
    parser.add_argument("--steps", type=int, default=10, help="steps per measurement")
    parser.add_argument(
        "--repeats", type=int, default=5, help="number of measurements; the median is reported"
    )
    parser.add_argument("--eval", action="store_true", help="also time the evaluation step")
    parser.add_argument("--plain", action="store_true", help="compare with plain Flax instead")
    args = parser.parse_args(argv)
    config = config_io.load(args.config, overrides)
    if args.plain:
        print_result(measure_plain(config, args.repeats, args.steps), args.json)
        return
    result = measure(config, args.repeats, args.steps)
    if args.eval:
        result |= measure_evaluation(config, args.repeats, args.steps)
    print_result(result, args.json)


if __name__ == "__main__":
    cli.run(main)
