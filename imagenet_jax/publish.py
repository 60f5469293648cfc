# PYTHON_ARGCOMPLETE_OK
"""Publish a finished run as a baseline that others can check.

  python -m imagenet_jax.publish runs/resnet50 --out=baselines/resnet50_v1
  python -m imagenet_jax.publish --table            # update the README's table of all baselines
  python -m imagenet_jax.publish --table --check    # exit code 1 if that table is out of date

The folder has the config, provenance and metrics of the run, its results (including those of each
class), the weights, a model card, and a fingerprint that identifies the run: the data, the loss and
gradient norm of the first 50 steps, and the SHA-256 of the weights. The code must be committed, so
that `python -m imagenet_jax.reproduce` can check the run. The folder is written completely or not
at all. If the data has moved on this machine, add --config.data.path=/data/imagenet
"""

from collections.abc import Sequence

from imagenet_jax import cli
from imagenet_jax.errors import UserError, expand_user


def main(argv: Sequence[str]) -> int:
    argv, overrides = cli.split_overrides(argv)
    parser = cli.parser("imagenet_jax.publish", __doc__)
    add = parser.add_argument
    add("workdir", nargs="?", metavar="WORKDIR", help="workdir of a finished run")
    add("--out", metavar="DIR", help="a new folder baselines/NAME")
    add(
        "--checkpoint", metavar="latest|best|STEP",
        help="checkpoint to publish; best: by config.checkpoint.best_metric (default: latest)",
    )  # fmt: skip
    add(
        "--no_weights", action="store_true",
        help="publish only the checksums of the weights, if the weights are too large for git",
    )  # fmt: skip
    add(
        "--allow_dirty", action="store_true",
        help="publish even if the code was not committed or has changed during the run",
    )  # fmt: skip
    add(
        "--table", nargs="?", const="README.md", metavar="FILE",
        help="update the table of all baselines in FILE (default: README.md)",
    )  # fmt: skip
    add("--check", action="store_true", help="with --table: only compare the table")
    add("--config.FIELD", metavar="VALUE", help="set a field for the evaluation on this machine")
    args = parser.parse_args(argv)
    of_a_run = args.out or args.checkpoint or args.no_weights or args.allow_dirty or overrides
    if args.table and (args.workdir or of_a_run):
        raise UserError("--table can only be combined with --check")
    if args.check and not args.table:
        raise UserError("--check needs --table")
    if not args.table and not (args.workdir and args.out):
        raise UserError("give WORKDIR and --out=baselines/NAME, or --table")

    if args.table:
        from imagenet_jax.baselines.markdown import update_table

        readme = expand_user(args.table)
        print(update_table(readme, readme.parent / "baselines", check=args.check))
        return 0

    from imagenet_jax.baselines.publishing import publish

    line = publish(
        expand_user(args.workdir), expand_user(args.out), checkpoint=args.checkpoint or "latest",
        allow_dirty=args.allow_dirty, with_weights=not args.no_weights, overrides=overrides,
    )  # fmt: skip
    print(line)
    return 0


if __name__ == "__main__":
    cli.run(main)
