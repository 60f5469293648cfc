"""Evaluate the checkpoints of a training run.

  python -m imagenet_jax.eval --workdir=runs/resnet50
  python -m imagenet_jax.eval --workdir=runs/resnet50 --checkpoint=best
  python -m imagenet_jax.eval --workdir=runs/resnet50 --follow

Needs the workdir and the data, nothing else. Every image of the evaluation split is counted once.
Raw and, where the run keeps them, EMA weights are measured; the result is printed and written to
eval/STEP.json in the workdir. Where the data lies elsewhere on this machine, or the devices differ:

  --config.data.path=/data/imagenet --config.eval.batch_size=64
"""

from collections.abc import Sequence
from pathlib import Path

from imagenet_jax import cli


def main(argv: Sequence[str]) -> int:
    argv, overrides = cli.split_overrides(argv)
    parser = cli.parser("imagenet_jax.eval", __doc__)
    parser.add_argument("--workdir", required=True, metavar="DIR", help="of a training run")
    parser.add_argument(
        "--checkpoint", default="latest", metavar="latest|best|STEP",
        help="which one; best is by config.checkpoint.best_metric (default: latest)",
    )  # fmt: skip
    parser.add_argument(
        "--follow", action="store_true",
        help="wait for newer checkpoints while training runs; end when it has ended",
    )  # fmt: skip
    parser.add_argument("--config.FIELD", metavar="VALUE", help="set one field of the run's config")
    args = parser.parse_args(argv)

    from imagenet_jax.reporting.tables import print_result
    from imagenet_jax.training.evaluation import evaluate_workdir

    workdir = Path(args.workdir).expanduser()
    for result in evaluate_workdir(workdir, args.checkpoint, overrides, follow=args.follow):
        print_result(result, workdir)
    return 0


if __name__ == "__main__":
    cli.run(main)
