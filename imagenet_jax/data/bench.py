# PYTHON_ARGCOMPLETE_OK
"""How fast the input pipeline of a config is on this machine, stage by stage, and what to change.

  python -m imagenet_jax.data.bench --config=configs/resnet50.py
  python -m imagenet_jax.data.bench --config=configs/resnet50.py --need=3000

Records are read in the order of training. --need is what the accelerators take, in images per
second: `images_per_second` in metrics.jsonl where `input_wait` is 0, or benchmarks/train_step.py.
"""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from imagenet_jax import cli, strict_json
from imagenet_jax.errors import UserError


def main(argv: Sequence[str]) -> int:
    argv, overrides = cli.split_overrides(argv)
    parser = cli.parser("imagenet_jax.data.bench", __doc__)
    cli.add_config(parser, what="as for training", required=True)
    parser.add_argument(
        "--seconds", type=float, default=3.0, metavar="S", help="for each stage (default: 3)"
    )
    parser.add_argument("--need", type=float, metavar="N", help="images per second that are wanted")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    args = parser.parse_args(argv)
    for flag, value in (("seconds", args.seconds), ("need", args.need)):
        if value is not None and value <= 0:
            raise UserError(f"--{flag}={value}: give a number above 0")

    from imagenet_jax import config as config_io  # jax is imported after --help was answered
    from imagenet_jax.data.stages import advice, measure

    config = config_io.load(args.config, overrides)
    rates = measure(config, args.seconds)
    lines = advice(config, rates, args.need)
    if args.json:
        stages = {rate.stage: rate.images_per_second for rate in rates}
        print(strict_json.dumps({"images_per_second": stages, "advice": lines}))
        return 0
    where = "synthetic data" if config.data.source == "synthetic" else config.data.path
    table = Table(title=f"{config.data.train_split} of {where}")
    table.add_column("stage")
    for column in ("img/s", "ms per image", "cores"):
        table.add_column(column, justify="right")
    for rate in rates:
        speed = rate.images_per_second
        table.add_row(rate.stage, f"{speed:,.0f}", f"{1000 / speed:.2f}", str(rate.cores))
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(table)
    for line in lines:
        console.print(f"- {line}")
    return 0


if __name__ == "__main__":
    cli.run(main, lost_output="ends")
