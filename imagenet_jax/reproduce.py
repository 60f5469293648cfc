"""Train a published baseline again, and say whether it comes out as published.

  python -m imagenet_jax.reproduce baselines/quickstart              # the first 50 steps
  python -m imagenet_jax.reproduce baselines/quickstart --steps=10
  python -m imagenet_jax.reproduce baselines/resnet50_v1 --full --workdir=runs/again \\
    --config.data.path=/data/imagenet2012/5.1.0

Prints what differs of versions, devices and processor, refuses other data, trains from the same
seed, and compares loss and gradient norm of each step: bit for bit where versions and hardware are
those of the baseline, else within a tolerance that grows with the step (see
baselines/comparison.py). --full also compares the weights at the end, or the top-1 where bits
cannot agree. The last line is PASS, or FAIL with the first step and quantity that differ and both
values; the exit code is 0 or 1. With --workdir a run that was stopped goes on by the same command.
"""

from collections.abc import Sequence

from imagenet_jax import cli
from imagenet_jax.errors import UserError, expand_user

_STEPS = 50


def main(argv: Sequence[str]) -> int:
    argv, overrides = cli.split_overrides(argv)
    parser = cli.parser("imagenet_jax.reproduce", __doc__)
    parser.add_argument("baseline", metavar="BASELINE", help="a folder, such as baselines/NAME")
    parser.add_argument(
        "--steps", type=int, metavar="N", help=f"how many to compare (default: {_STEPS}, or all)"
    )
    parser.add_argument("--full", action="store_true", help="train to the published checkpoint")
    parser.add_argument(
        "--workdir", metavar="DIR", help="where to train (default: a folder that is removed after)"
    )
    parser.add_argument(
        "--config.FIELD", metavar="VALUE", help="where the data lies, how many threads read it, ..."
    )
    args = parser.parse_args(argv)
    if args.full and args.steps is not None:
        raise UserError("give either --steps=N or --full")

    from imagenet_jax.baselines.reproduction import reproduce

    return reproduce(
        expand_user(args.baseline),
        steps=args.steps,
        full=args.full,
        workdir=expand_user(args.workdir) if args.workdir else None,
        overrides=overrides,
    )


if __name__ == "__main__":
    cli.run(main)
