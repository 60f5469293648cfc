"""Speed of the train step on data that is already on the device.

  python -m benchmarks.train_step --config=configs/resnet50.py
  python -m benchmarks.train_step --config=configs/vgg.py --config.batch_size=256 --json

Reports images per second and achieved FLOP/s. XLA counts the floating-point operations in the
compiled program.
"""

from typing import Any

import jax

from benchmarks.common import make_parser, print_result
from imagenet_jax import cli
from imagenet_jax import config as config_io
from imagenet_jax.debug.cost import step_cost


def measure(config: Any, repeats: int = 5, steps: int = 10) -> dict[str, Any]:
    """Return figures from the median time of `steps` consecutive steps over `repeats`."""
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


def main(argv: Any) -> None:
    argv, overrides = cli.split_overrides(argv)
    parser = make_parser(__doc__, "configs/resnet50.py")
    parser.add_argument("--steps", type=int, default=10, help="steps per measurement")
    parser.add_argument(
        "--repeats", type=int, default=5, help="measurements, of which the median is reported"
    )
    args = parser.parse_args(argv)
    result = measure(config_io.load(args.config, overrides), args.repeats, args.steps)
    print_result(result, args.json)


if __name__ == "__main__":
    cli.run(main)
