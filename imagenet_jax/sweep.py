"""Run an ablation, every setting with several seeds, and tell what differs and how surely.

  python -m imagenet_jax.sweep --config=configs/quickstart.py --seeds=3 --out=runs/ablation \\
    --grid='optim.peak_lr=0.05,0.1 augment.mixup=0,0.2' --config.epochs=4
  python -m imagenet_jax.sweep --table --out=runs/ablation --plot=ablation.png

Each cell is `python -m imagenet_jax.main` in a process of its own, in the folder
DIR/peak_lr=0.1,mixup=0.2,seed=1, with its output in log.txt there. All are checked before one starts.
Ctrl-C and SIGTERM let the cells save; the same command continues, and runs no finished cell again.
More values, settings or seeds may be added to a folder; another base config is refused.

A file for --sweep has get_sweep(), which returns a Sweep (imagenet_jax/studies/sweep.py);
sweeps/quickstart_ablation.py is one. Exits with 0 when every cell has finished, 1 when one failed.
"""

from collections.abc import Sequence
from pathlib import Path

from imagenet_jax import cli
from imagenet_jax.errors import UserError


def main(argv: Sequence[str]) -> int:
    argv, overrides = cli.split_overrides(argv)
    parser = cli.parser("imagenet_jax.sweep", __doc__)
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder of the sweep")
    run = parser.add_argument_group("running")
    run.add_argument(
        "--config", metavar="FILE[:ARG]", help="the base config, as of imagenet_jax.main"
    )
    run.add_argument("--config.FIELD", metavar="VALUE", help="set one field for all cells")
    what = run.add_mutually_exclusive_group()
    what.add_argument("--sweep", metavar="FILE", help="a Python file with get_sweep()")
    what.add_argument("--grid", metavar="FIELDS", help="'FIELD=VALUE,VALUE ...': all combinations")
    run.add_argument("--seeds", type=int, metavar="N", help="seeds 0 to N - 1 (default 1)")
    run.add_argument("--jobs", type=int, metavar="N", help="so many at once, on disjoint devices")
    run.add_argument("--retry_failed", action="store_true", help="try failed cells again too")
    run.add_argument("--dry_run", action="store_true", help="print the commands, start nothing")
    table = parser.add_argument_group("looking")
    table.add_argument("--table", action="store_true", help="means, deviations, paired differences")
    args = parser.parse_args(argv)
    out = Path(args.out).expanduser()

    from imagenet_jax.studies import sweep, sweep_run

    plan = sweep.plan_from(args.config, args.sweep, args.grid, args.seeds, overrides)
    if args.dry_run:
        sweep_run.print_commands(plan, out)
        return 0
    return sweep_run.run_here(plan, out, jobs=args.jobs or 1, retry_failed=args.retry_failed)


if __name__ == "__main__":
    cli.run(main)
