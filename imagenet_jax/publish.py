"""Publish a finished run as a baseline that others can check.

  python -m imagenet_jax.publish runs/resnet50 --out=baselines/resnet50_v1
  python -m imagenet_jax.publish --table            # the README's table of all baselines
  python -m imagenet_jax.publish --table --check    # exit code 1 if that is stale

The folder holds config, provenance and metrics of the run, results (also by class), a fingerprint
to know the run again by (data; loss and gradient norm of the first 50 steps; SHA-256 of the
weights), the weights, and a model card. It is written whole or not at all, from code that is
committed: then `python -m imagenet_jax.reproduce` can tell whether the run can be had again.
Where the data lies elsewhere on this machine: --config.data.path=/data/imagenet
"""

from collections.abc import Sequence

from imagenet_jax import cli
from imagenet_jax.errors import UserError, expand_user


def main(argv: Sequence[str]) -> int:
    argv, overrides = cli.split_overrides(argv)
    parser = cli.parser("imagenet_jax.publish", __doc__)
    parser.add_argument("workdir", nargs="?", metavar="WORKDIR", help="of a finished run")
    parser.add_argument("--out", metavar="DIR", help="baselines/NAME, which is not there yet")
    parser.add_argument(
        "--checkpoint", metavar="latest|best|STEP",
        help="which one; best is by config.checkpoint.best_metric (default: latest)",
    )  # fmt: skip
    parser.add_argument(
        "--no_weights", action="store_true",
        help="leave weights.safetensors out, and keep the checksums: for files too large for git",
    )  # fmt: skip
    parser.add_argument(
        "--allow_dirty", action="store_true",
        help="publish although the code was not committed, or changed during the run",
    )  # fmt: skip
    parser.add_argument(
        "--table", nargs="?", const="README.md", metavar="FILE",
        help="write the table of all baselines beside FILE into it (default: README.md)",
    )  # fmt: skip
    parser.add_argument("--check", action="store_true", help="with --table: compare, write nothing")
    parser.add_argument("--config.FIELD", metavar="VALUE", help="of the evaluation here")
    args = parser.parse_args(argv)
    of_a_run = args.out or args.checkpoint or args.no_weights or args.allow_dirty or overrides
    if args.table and (args.workdir or of_a_run):
        raise UserError("--table stands alone, or with --check")
    if args.check and not args.table:
        raise UserError("--check goes with --table")
    if not args.table and not (args.workdir and args.out):
        raise UserError("give WORKDIR and --out=baselines/NAME, or --table")

    if args.table:
        from imagenet_jax.baselines import results_table

        readme = expand_user(args.table)
        print(results_table.update(readme, readme.parent / "baselines", check=args.check))
        return 0

    from imagenet_jax.baselines.publishing import publish

    line = publish(
        expand_user(args.workdir),
        expand_user(args.out),
        checkpoint=args.checkpoint or "latest",
        allow_dirty=args.allow_dirty,
        with_weights=not args.no_weights,
        overrides=overrides,
    )
    print(line)
    return 0


if __name__ == "__main__":
    cli.run(main)
