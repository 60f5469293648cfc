# PYTHON_ARGCOMPLETE_OK
"""Report on training runs with an HTML page, figures for a paper, or Markdown for a repository.

  python -m imagenet_jax.report runs/resnet50 --out=report.html
  python -m imagenet_jax.report runs/a runs/b runs/c --out=ablation.html
  python -m imagenet_jax.report runs/resnet50 --png=figures/ --markdown=report.md
  python -m imagenet_jax.report runs/resnet50 --png=overview.png

The page is one file of about 5 MB (with plotly.js) that works without a network. It has curves with
hover and zoom, the config as in the tables of papers, provenance, throughput, accuracy of each
class, confusions, calibration, mistakes, filters, feature maps and Grad-CAM. Several runs share
their charts, and a table shows how their configs and results differ. The evaluation split of each
run is predicted once. If the data is in another folder on this machine, give its path:

  --config.data.path=/data/imagenet
"""

from collections.abc import Sequence

from imagenet_jax import cli
from imagenet_jax.errors import UserError, expand_user
from imagenet_jax.progress import announce


def main(argv: Sequence[str]) -> int:
    argv, overrides = cli.split_overrides(argv)
    parser = cli.parser("imagenet_jax.report", __doc__)
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR", help="workdir of a training run")
    parser.add_argument("--out", metavar="FILE", help="write the page")
    parser.add_argument(
        "--png", metavar="DIR|FILE",
        help="write each figure to a folder, or an overview as one picture FILE.png",
    )  # fmt: skip
    parser.add_argument("--markdown", metavar="FILE", help="write the tables as Markdown")
    parser.add_argument(
        "--checkpoint", default="latest", metavar="latest|best|STEP",
        help="make predictions with this checkpoint (default: latest)",
    )  # fmt: skip
    parser.add_argument("--config.FIELD", metavar="VALUE", help="set one field of the configs")
    args = parser.parse_args(argv)
    given = {"out": args.out, "png": args.png, "markdown": args.markdown}
    outputs = {flag: expand_user(path) for flag, path in given.items() if path}
    if not outputs:
        raise UserError("nothing to write: give --out=report.html, --png=DIR or --markdown=FILE")
    for flag, path in outputs.items():
        if flag != "png" and path.is_dir():
            raise UserError(f"--{flag}={path} is a folder; name a file in it")

    with announce("importing JAX and plotly"):
        from imagenet_jax.report.make import make_report

    workdirs = [expand_user(workdir) for workdir in args.workdirs]
    make_report(workdirs, outputs, args.checkpoint, overrides)
    return 0


if __name__ == "__main__":
    cli.run(main)
