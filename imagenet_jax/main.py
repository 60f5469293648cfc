# PYTHON_ARGCOMPLETE_OK
"""Train a model.

  python -m imagenet_jax.main --config=configs/resnet50.py --workdir=runs/resnet50

The same command continues a stopped run from its last checkpoint, with the same samples. Every
field of the config can be set on the command line; --help_config lists the fields:

  --config.batch_size=1024 --config.data.path=/data/imagenet --config.optim.nesterov=true

Training writes config.json, provenance.json, metrics.jsonl, tensorboard/ and checkpoints/ to the
workdir. SIGTERM and ctrl-C finish the step, save, and exit with 143 or 130; a second signal at
least two seconds later exits at once. A run without progress for config.log.watchdog_seconds prints
the stack of every thread and exits with 142.
"""

import functools
from collections.abc import Sequence

from imagenet_jax import cli
from imagenet_jax.errors import UserError, expand_user


def main(argv: Sequence[str]) -> int:
    argv, overrides = cli.split_overrides(argv)
    parser = cli.parser("imagenet_jax.main", __doc__)
    cli.add_config(parser, what="a Python file with get_config(variant='')", required=True)
    flag = parser.add_argument
    # fmt: off
    flag("--workdir", metavar="DIR", help="folder of the run, created if needed")
    flag("--weights", metavar="FILE|NAME",
        help="initial weights; short for --config.init.weights=FILE. A NAME sets data.mean, "
        "data.std and data.interpolation too")
    cli.add_weights_key(parser)
    flag("--dry_run", action="store_true",
        help="print the recipe, its memory and its training time, and write nothing; if the data "
        "is not on this machine, add --config.data.source=synthetic")
    flag("--target", metavar="NAME", default="",
        help="with --dry_run: compile for other hardware, such as v5e:2x4 or h100:8")
    flag("--price", metavar="DOLLARS", type=float,
        help="with --target: price of a TPU chip or a GPU per hour")
    flag("--strict_restore", action="store_true",
        help="exit if the last checkpoint is damaged (default: continue from an earlier one)")
    flag("--quiet", action="store_true", help="print only errors and the final result")
    # fmt: on
    cli.add_process_flags(parser)
    args = parser.parse_args(argv)
    if args.weights is not None:
        overrides.append(("init.weights", args.weights))
    if args.weights_key is not None:
        overrides.append(("init.weights_key", args.weights_key))

    if not args.dry_run and not args.workdir:
        raise UserError("give --workdir=DIR, the folder of the run; only --dry_run needs none")
    if (args.target or args.price is not None) and not args.dry_run:
        raise UserError("--target and --price need --dry_run")

    say = (lambda text: None) if args.quiet else functools.partial(print, flush=True)
    say("loading JAX ...")
    from imagenet_jax import config as config_io  # imported here: these imports take seconds
    from imagenet_jax.runtime import processes
    from imagenet_jax.train import train

    overrides, note = cli.match_initial_weights(overrides)
    if note:
        say(note)
    config = config_io.load(args.config, overrides)
    say(f"opening the data of {args.config} and creating the model ...")
    if args.dry_run:
        from imagenet_jax.debug.dry_run import dry_run

        dry_run(config, args.target, args.price)
        return 0
    processes.connect(args.coordinator, args.num_processes, args.process_id)
    workdir = expand_user(args.workdir)
    return train(config, workdir, strict_restore=args.strict_restore, quiet=args.quiet)


if __name__ == "__main__":
    cli.run(main, lost_output="ignored")
