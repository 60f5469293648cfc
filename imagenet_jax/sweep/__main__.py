"""Run an ablation, every setting with several seeds, and tell what differs and how surely.

  python -m imagenet_jax.sweep --config=configs/quickstart.py --seeds=3 --out=runs/ablation \\
    --grid='optim.base_lr=0.05,0.1 augment.mixup=0,0.2' --config.epochs=4
  python -m imagenet_jax.sweep --table --out=runs/ablation --plot=ablation.png

Each cell is `python -m imagenet_jax.main` in the folder DIR/base_lr=0.1,mixup=0.2,seed=1, output
to its log.txt. Ctrl-C and SIGTERM let the cells save; the same command continues, and runs no
finished cell again. More values and seeds may be added to a folder; another base config is refused.
sweeps/quickstart_ablation.py is a file for --sweep. Exits with 0 when all cells have finished.
"""

from collections.abc import Sequence

from imagenet_jax import cli
from imagenet_jax.errors import UserError, expand_user

_RUN = (
    "config",
    "sweep",
    "grid",
    "seeds",
    "jobs",
    "launch",
    "launch_flags",
    "retry_failed",
    "dry_run",
)
_LOOK = ("metric", "baseline", "format", "plot")


def main(argv: Sequence[str]) -> int:
    argv, overrides = cli.split_overrides(argv)
    parser = cli.parser("imagenet_jax.sweep", __doc__)
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder of the sweep")
    run = parser.add_argument_group("running").add_argument
    run("--config", metavar="FILE[:ARG]", help="the base config")
    run("--config.FIELD", metavar="VALUE", help="set one field for all cells")
    run("--sweep", metavar="FILE", help="a Python file with get_sweep()")
    run("--grid", metavar="FIELDS", help="'FIELD=VALUE,VALUE ...': all combinations")
    run("--seeds", type=int, metavar="N", help="seeds 0 to N - 1 (default 1)")
    run("--jobs", type=int, metavar="N", help="so many at once, on disjoint devices (default 1)")
    run("--launch", choices=("slurm", "skypilot"), help="submit the cells through launch/ instead")
    run("--launch_flags", metavar="FLAGS", help="for sbatch, or for sky jobs launch")
    run("--retry_failed", action="store_true", help="try failed cells again too")
    run("--dry_run", action="store_true", help="print the commands, start nothing")
    look = parser.add_argument_group("looking").add_argument
    look("--table", action="store_true", help="means and differences, over seeds")
    look("--metric", metavar="NAME", help="top1 (default), top5 or loss")
    look("--baseline", metavar="CELL", help="what the others are compared with")
    look("--format", choices=("text", "markdown", "latex", "csv"), help="of the table")
    look("--plot", metavar="FILE", help="also draw it: .png, .pdf or .svg")
    args = parser.parse_args(argv)
    given = [f"config.{field}" for field, _ in overrides] if args.table else []
    given += [name for name in (_RUN if args.table else _LOOK) if getattr(args, name)]
    if given:
        raise UserError(
            f"--{given[0]} is not for use {'with' if args.table else 'without'} --table"
        )
    out = expand_user(args.out)

    if args.table:
        from imagenet_jax.sweep.outcomes import show_table

        plot = expand_user(args.plot) if args.plot else None
        show_table(out, args.metric or "top1", args.baseline, args.format or "text", plot)
        return 0

    from imagenet_jax.sweep import plan as sweep
    from imagenet_jax.sweep import run as sweep_run
    from imagenet_jax.sweep import submit as sweep_submit

    plan = sweep.plan_from(args.config, args.sweep, args.grid, args.seeds, overrides)
    how = {"jobs": args.jobs, "retry_failed": args.retry_failed, "dry_run": args.dry_run}
    if args.launch or args.launch_flags:
        return sweep_submit.submit(plan, out, args.launch, args.launch_flags or "", **how)
    return sweep_run.run_here(plan, out, **how)


if __name__ == "__main__":
    cli.run(main)
