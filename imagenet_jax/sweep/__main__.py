# PYTHON_ARGCOMPLETE_OK
"""Train every setting of a sweep with several seeds, and compare the settings.

  python -m imagenet_jax.sweep --config=configs/quickstart.py --seeds=3 --out=runs/ablation \\
    --grid='optim.base_lr=0.05,0.1 augment.mixup=0,0.2' --config.epochs=4
  python -m imagenet_jax.sweep --table --out=runs/ablation --plot=ablation.png

Each trial (one setting with one seed) is a run of `python -m imagenet_jax.main` in its own folder,
such as DIR/base_lr=0.1,mixup=0.2,seed=1, with its output in log.txt. Ctrl-C and SIGTERM stop the
trials after they have saved. The same command continues and does not repeat finished trials.
Values and seeds may be added to a sweep later, but the base config cannot change. --sweep takes a
file such as sweeps/quickstart_ablation.py. The exit code is 0 if all trials have finished.
"""

from collections.abc import Sequence

from imagenet_jax import cli
from imagenet_jax.errors import UserError, expand_user

_RUN_FLAGS = (
    "config", "sweep", "grid", "seeds", "jobs", "launch", "launch_flags", "retry_failed", "dry_run",
)  # fmt: skip
_TABLE_FLAGS = ("metric", "baseline", "format", "plot")


def main(argv: Sequence[str]) -> int:
    argv, overrides = cli.split_overrides(argv)
    parser = cli.parser("imagenet_jax.sweep", __doc__)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the sweep")
    running = parser.add_argument_group("run trials")
    run = running.add_argument
    cli.add_config(running, what="the base config")
    run("--sweep", metavar="FILE", help="a Python file that defines get_sweep()")
    run("--grid", metavar="FIELDS", help="all combinations of 'FIELD=VALUE,VALUE ...'")
    run("--seeds", type=int, metavar="N", help="use seeds 0 to N - 1 (default: 1)")
    run("--jobs", type=int, metavar="N", help="parallel trials, on separate devices (default: 1)")
    run("--launch", choices=("slurm", "skypilot"), help="submit the trials with launch/ instead")
    run("--launch_flags", metavar="FLAGS", help="flags for sbatch or sky jobs launch")
    run("--retry_failed", action="store_true", help="also run failed trials again")
    run("--dry_run", action="store_true", help="print the commands without running them")
    table = parser.add_argument_group("show results").add_argument
    table("--table", action="store_true", help="print means and differences over the seeds")
    table("--metric", metavar="NAME", help="metric to show: top1 (default), top5, loss, ...")
    table("--baseline", metavar="SETTING", help="the setting to compare the others with")
    table("--format", choices=("text", "markdown", "latex", "csv"), help="format of the table")
    table("--plot", metavar="FILE", help="also write a plot: .png, .pdf or .svg")
    args = parser.parse_args(argv)
    unused = [f"config.{field}" for field, _ in overrides] if args.table else []
    unused += [name for name in (_RUN_FLAGS if args.table else _TABLE_FLAGS) if getattr(args, name)]
    if unused:
        place = "with" if args.table else "without"
        raise UserError(f"--{unused[0]} cannot be used {place} --table")
    out = expand_user(args.out)

    if args.table:
        from imagenet_jax.sweep.results import read_results
        from imagenet_jax.sweep.show_results import format_table, plot_sweep

        metric = args.metric or "top1"
        rows, notes = read_results(out, metric, args.baseline)
        print(format_table(rows, metric, notes, args.format or "text"), end="", flush=True)
        if args.plot:
            plot_sweep(rows, metric, expand_user(args.plot))
        return 0

    from imagenet_jax.sweep.plan import plan_from_flags
    from imagenet_jax.sweep.run import run_here
    from imagenet_jax.sweep.submit import submit

    plan = plan_from_flags(args.config, args.sweep, args.grid, args.seeds, overrides)
    start = submit if args.launch or args.launch_flags else run_here
    return start(plan, out, args)


if __name__ == "__main__":
    cli.run(main)
