# PYTHON_ARGCOMPLETE_OK
"""Train a published baseline again and check that the result is the same.

  python -m imagenet_jax.reproduce baselines/quickstart              # the first 50 steps
  python -m imagenet_jax.reproduce baselines/quickstart --steps=10
  python -m imagenet_jax.reproduce baselines/resnet50_v1 --full --workdir=runs/again \\
    --config.data.path=/data/imagenet2012/5.1.0

The command prints which versions, devices and processors differ, rejects different data, and trains
from the same seed. The loss and gradient norm of each step are compared bit for bit if versions and
hardware are the same, otherwise within a tolerance that grows with the step (see
baselines/reproduction.py). --full also compares the final weights, or the top-1 accuracy if bits
cannot agree. The last line is PASS, or FAIL with the first step and quantity that differ; the exit
code is 0 or 1. With --workdir, the same command continues a run that was stopped.
"""

from collections.abc import Sequence

from imagenet_jax import cli
from imagenet_jax.errors import UserError, expand_user


def main(argv: Sequence[str]) -> int:
    argv, overrides = cli.split_overrides(argv)
    parser = cli.parser("imagenet_jax.reproduce", __doc__)
    add = parser.add_argument
    add("baseline", metavar="BASELINE", help="a folder such as baselines/NAME")
    add("--steps", type=int, metavar="N", help="steps to compare (default: all published steps)")
    add("--full", action="store_true", help="train to the published checkpoint")
    add("--workdir", metavar="DIR", help="where to train (default: a temporary folder)")
    add("--config.FIELD", metavar="VALUE", help="set a field such as data.path or data.threads")
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
