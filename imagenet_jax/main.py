# PYTHON_ARGCOMPLETE_OK
"""Train a model.

  python -m imagenet_jax.main --config=configs/resnet50.py --workdir=runs/resnet50

Run the same command again and it continues from the last checkpoint, in mid-epoch, on the same
samples. Any field of the config can be set on the command line, and --help_config prints them all:

  --config.batch_size=1024 --config.data.path=/data/imagenet --config.optim.nesterov=true

The workdir gets config.json, provenance.json, metrics.jsonl, tensorboard/ and checkpoints/.
SIGTERM and ctrl-C finish the step, save and exit with 143 or 130; a second one, at least two
seconds later, exits at once. A run that stands still for config.log.watchdog_seconds shows why and
exits with 142.
"""

from collections.abc import Sequence

from imagenet_jax import cli
from imagenet_jax.errors import UserError, expand_user


def main(argv: Sequence[str]) -> int:
    argv, overrides = cli.split_overrides(argv)
    parser = cli.parser("imagenet_jax.main", __doc__)
    cli.add_config(parser, what="a Python file with get_config(variant='')", required=True)
    parser.add_argument("--workdir", metavar="DIR", help="where the run is written, and continued")
    parser.add_argument(
        "--weights", metavar="FILE", help="start from these: short for --config.init.weights=FILE"
    )
    cli.add_weights_key(parser)
    parser.add_argument(
        "--dry_run", action="store_true",
        help="print the recipe, its memory and how long it would take; write nothing. Without the "
        "data: --config.data.source=synthetic",
    )  # fmt: skip
    parser.add_argument(
        "--strict_restore", action="store_true",
        help="stop where the last checkpoint is damaged; else the one before it is continued",
    )  # fmt: skip
    parser.add_argument(
        "--quiet", action="store_true", help="print only errors and the final result"
    )
    cli.add_process_flags(parser)
    args = parser.parse_args(argv)
    if args.weights is not None:
        overrides.append(("init.weights", args.weights))
    if args.weights_key is not None:
        overrides.append(("init.weights_key", args.weights_key))

    if not args.dry_run and not args.workdir:
        raise UserError("--workdir=DIR says where the run is written; --dry_run needs none")

    from imagenet_jax import config as config_io  # jax is imported after --help was answered
    from imagenet_jax.runtime import distributed
    from imagenet_jax.train import train

    config = config_io.load(args.config, overrides)
    if args.dry_run:
        from imagenet_jax.debug.dry_run import dry_run

        dry_run(config)
        return 0
    distributed.start(args.coordinator, args.num_processes, args.process_id)
    workdir = expand_user(args.workdir)
    return train(config, workdir, strict_restore=args.strict_restore, quiet=args.quiet)


if __name__ == "__main__":
    cli.run(main, lost_output="ignored")
