"""Draw a run: its curves, and predictions of its last checkpoint, as one PNG.

For example:

  python -m imagenet_jax.plot --workdir=runs/quickstart --out=docs/quickstart.png
"""

from collections.abc import Sequence
from pathlib import Path

from imagenet_jax import cli
from imagenet_jax.errors import expand_user


def main(argv: Sequence[str]) -> int:
    parser = cli.parser("imagenet_jax.plot", __doc__)
    parser.add_argument("--workdir", required=True, metavar="DIR", help="of a training run")
    parser.add_argument("--out", required=True, metavar="FILE", help="the picture to write")
    args = parser.parse_args(argv)

    from imagenet_jax.report.plots import plot_run, read_metrics
    from imagenet_jax.training.evaluate import predict_samples

    workdir = expand_user(args.workdir)
    samples = predict_samples(workdir, 24)
    plot_run(read_metrics(workdir), *samples, Path(args.out))
    print(args.out)
    return 0


if __name__ == "__main__":
    cli.run(main)
