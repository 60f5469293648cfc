"""Report on training runs: one page to look at, pictures for a paper, Markdown for a repository.

  python -m imagenet_jax.report runs/resnet50 --out=report.html
  python -m imagenet_jax.report runs/a runs/b runs/c --out=ablation.html
  python -m imagenet_jax.report runs/resnet50 --png=figures/ --markdown=report.md

The page is one file of about 5 MB (plotly.js is inside) that opens from disk without network:
curves with hover and zoom, the config as the paper's table, provenance, throughput, accuracy of
each class, confusions, calibration, mistakes, filters, feature maps and Grad-CAM. Of several runs
the curves lie in one chart, and a table says where configs and results differ. The evaluation split
is read once for each run; where the data lies elsewhere on this machine:

  --config.data.path=/data/imagenet
"""

from collections.abc import Sequence

from imagenet_jax import cli
from imagenet_jax.errors import UserError, expand_user


def main(argv: Sequence[str]) -> int:
    argv, overrides = cli.split_overrides(argv)
    parser = cli.parser("imagenet_jax.report", __doc__)
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR", help="of a training run")
    parser.add_argument("--out", metavar="FILE", help="the page to write")
    parser.add_argument(
        "--png", metavar="DIR|FILE",
        help="write the figures into a folder, or the most important ones as one picture FILE.png",
    )  # fmt: skip
    parser.add_argument("--markdown", metavar="FILE", help="write the tables as Markdown")
    parser.add_argument(
        "--checkpoint", default="latest", metavar="latest|best|STEP",
        help="which one predictions are made with (default: latest)",
    )  # fmt: skip
    parser.add_argument("--config.FIELD", metavar="VALUE", help="set one field of the configs")
    args = parser.parse_args(argv)
    targets = {"out": args.out, "png": args.png, "markdown": args.markdown}
    if not any(targets.values()):
        raise UserError("nothing to write: give --out=report.html, --png=DIR or --markdown=FILE")
    paths = {name: expand_user(t) if t else None for name, t in targets.items()}
    for name in ("out", "markdown"):
        if (path := paths[name]) and path.is_dir():
            raise UserError(f"--{name}={path} is a folder; name a file in it")

    from imagenet_jax.report.make import make_report

    make_report(
        [expand_user(workdir) for workdir in args.workdirs],
        checkpoint=args.checkpoint,
        overrides=overrides,
        out=paths["out"],
        png=paths["png"],
        text=paths["markdown"],
    )
    return 0


if __name__ == "__main__":
    cli.run(main)
