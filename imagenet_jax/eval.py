# PYTHON_ARGCOMPLETE_OK
"""Evaluate the checkpoints of a training run, or a weights file.

  python -m imagenet_jax.eval --workdir=runs/resnet50
  python -m imagenet_jax.eval --workdir=runs/resnet50 --checkpoint=best
  python -m imagenet_jax.eval --workdir=runs/resnet50 --follow
  python -m imagenet_jax.eval --weights=resnet50.safetensors --config=configs/resnet50.py
  python -m imagenet_jax.eval --weights=torchvision/resnet50.v2

Every image of the evaluation split is counted once. To evaluate a run, only its workdir and the
data are needed. The EMA weights, if the run keeps them, and the raw weights are evaluated. The
results are printed and written to eval/STEP.json in the workdir. If settings or data differ from
the run's, the file name includes the difference, as in eval/STEP-size256-resize292.json. For
--weights, the config sets the model and the data. Published weights, which
python -m imagenet_jax.weights lists, set their model and preprocessing, and their published
accuracy is printed beside the measured one.

To set the path of the data, or a batch size for other devices:

  --config.data.path=/data/imagenet --config.eval.batch_size=64
"""

from collections.abc import Sequence

from imagenet_jax import cli
from imagenet_jax.errors import UserError
from imagenet_jax.progress import announce


def main(argv: Sequence[str]) -> int:
    argv, overrides = cli.split_overrides(argv)
    parser = cli.parser("imagenet_jax.eval", __doc__)
    cli.add_weights(parser)
    parser.add_argument(
        "--follow", action="store_true",
        help="also evaluate newer checkpoints, until training ends",
    )  # fmt: skip
    parser.add_argument(
        "--json", nargs="?", const="-", metavar="FILE",
        help="print the result as JSON instead of a table; with FILE, print the table and write "
        "JSON to FILE",
    )  # fmt: skip
    parser.add_argument(
        "--by_class", nargs="?", const="", metavar="DIR",
        help="also print the calibration error and the precision, recall and F1 of every class, "
        "for the EMA weights if there are any, and write STEP_by_class.json and "
        "STEP_confusion.png to DIR (default: eval/ in the workdir)",
    )  # fmt: skip
    cli.add_process_flags(parser)
    args = parser.parse_args(argv)
    cli.check_weights(args)
    if args.weights and args.follow:
        raise UserError("--follow goes with --workdir")
    if args.by_class is not None and (args.follow or args.json == "-"):
        raise UserError("--by_class goes with neither --follow nor --json on standard output")
    if args.by_class == "" and not args.workdir:
        raise UserError("give the folder for the files of --by_class: --by_class=DIR")

    with announce("loading JAX"):
        from imagenet_jax.classify.evaluate_weights import evaluate_and_report
        from imagenet_jax.runtime import processes

    processes.connect(args.coordinator, args.num_processes, args.process_id)
    evaluate_and_report(args, overrides)
    return 0


if __name__ == "__main__":
    cli.run(main)
