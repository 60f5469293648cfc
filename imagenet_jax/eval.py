"""Evaluate the checkpoints of a training run.

  python -m imagenet_jax.eval --workdir=runs/resnet50
  python -m imagenet_jax.eval --workdir=runs/resnet50 --checkpoint=best
  python -m imagenet_jax.eval --workdir=runs/resnet50 --follow
  python -m imagenet_jax.eval --weights=resnet50.safetensors --config=configs/resnet50.py

Every image of the evaluation split is counted once. A workdir is all that its evaluation needs
beside the data: raw and, where the run keeps them, EMA weights are measured; the result is printed
and written to eval/STEP.json in it. With other settings or other data than the run's own, the file
is named by what differs, such as eval/STEP-size256-resize292.json. With --weights the config names
the model and the data. Where the data lies elsewhere on this machine, or the devices differ:

  --config.data.path=/data/imagenet --config.eval.batch_size=64
"""

import functools
from collections.abc import Iterable, Sequence

from imagenet_jax import cli
from imagenet_jax.errors import UserError, expand_user


def main(argv: Sequence[str]) -> int:
    argv, overrides = cli.split_overrides(argv)
    parser = cli.parser("imagenet_jax.eval", __doc__)
    parser.add_argument("--workdir", metavar="DIR", help="of a training run")
    parser.add_argument(
        "--checkpoint", metavar="latest|best|STEP",
        help="which one; best is by config.checkpoint.best_metric (default: latest)",
    )  # fmt: skip
    parser.add_argument(
        "--follow", action="store_true",
        help="wait for newer checkpoints while training runs; end when it has ended",
    )  # fmt: skip
    parser.add_argument(
        "--weights", metavar="FILE", help="a state dict in torchvision's layout, not a workdir"
    )
    cli.add_weights_key(parser)
    cli.add_config(parser, what="how --weights is evaluated")
    parser.add_argument(
        "--json", nargs="?", const="-", metavar="FILE",
        help="print the result as JSON instead of a table, or write it to FILE too",
    )  # fmt: skip
    parser.add_argument(
        "--by_class", nargs="?", const="", metavar="DIR",
        help="also precision, recall and F1 of every class, confusions and calibration error, of "
        "the EMA weights if there are any: a table, and STEP_by_class.json and STEP_confusion.png "
        "in DIR (default: eval/ in the workdir)",
    )  # fmt: skip
    cli.add_process_flags(parser)
    args = parser.parse_args(argv)
    cli.check_weights(args)
    if args.weights and args.follow:
        raise UserError("--follow goes with --workdir")
    if args.by_class is not None and (args.follow or args.json == "-"):
        raise UserError("--by_class goes with neither --follow nor --json on standard output")
    if args.by_class == "" and not args.workdir:
        raise UserError("--by_class=DIR says where its files go: there is no workdir")

    from imagenet_jax import config as config_io
    from imagenet_jax.classify.write_by_class import write_by_class
    from imagenet_jax.logs.tables import print_result, write_json
    from imagenet_jax.runtime import distributed
    from imagenet_jax.runtime.eval_variants import explain_variant, result_stem
    from imagenet_jax.runtime.processes import run_on_first
    from imagenet_jax.runtime.workdir import read_config
    from imagenet_jax.training.evaluate import evaluate_file, evaluate_workdir
    from imagenet_jax.training.load_weights import of_file, of_workdir

    distributed.start(args.coordinator, args.num_processes, args.process_id)
    workdir = expand_user(args.workdir) if args.workdir else None
    results: Iterable[dict]
    if workdir:
        config = read_config(workdir, overrides)
        which = args.checkpoint or "latest"
        results = evaluate_workdir(workdir, which, overrides, follow=args.follow)
    else:
        config = config_io.load(args.config, overrides)
        results = [evaluate_file(expand_user(args.weights), config, args.weights_key or "")]

    def tell(result: dict) -> None:
        if args.json != "-":
            num_classes = result.get("classes", config.model.num_classes)
            print_result(result, num_classes, workdir, result_stem(result))
            if workdir and "variant" in result:
                print(explain_variant(workdir, result["measured"]), flush=True)
        if args.json:
            write_json(result, args.json)

    for result in results:
        run_on_first(functools.partial(tell, result))
        if args.by_class is not None:
            if workdir:
                weights = of_workdir(workdir, str(result["step"]), overrides)
            else:
                weights = of_file(expand_user(args.weights), config, args.weights_key or "")
            directory = args.by_class or f"{args.workdir}/eval"
            write_by_class(weights, expand_user(directory), result_stem(result))
    return 0


if __name__ == "__main__":
    cli.run(main)
