"""The folder of a sweep: sweep.json, and a workdir for each cell.

OUT/sweep.json              base config, settings, cells, baseline
OUT/base_lr=0.1,seed=0/     the workdir of a cell; log.txt, and failed.json where it failed
OUT/compiled/               XLA's programs, shared by the cells
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from imagenet_jax import config as config_io
from imagenet_jax import strict_json
from imagenet_jax.data.sampler import in_steps
from imagenet_jax.errors import UserError, writing
from imagenet_jax.files import read_json, read_json_lines, write_json
from imagenet_jax.runtime import workdir as workdirs
from imagenet_jax.runtime.lock import is_training
from imagenet_jax.sweep.plan import Cell, Plan, Setting, cell_of, config_of, identity

FINISHED, RUNNING, FAILED = "finished", "running", "failed"
UNFINISHED, NOT_STARTED = "unfinished", "not started"


@dataclass(frozen=True)
class State:
    """How far a cell is.

    Attributes:
      kind: one of the five above.
      step: the last one in metrics.jsonl.
      total: steps of the whole run; 0 where metrics.jsonl does not tell yet.
      history: the lines of metrics.jsonl.
      result: the first validation line of the last step, of the averaged weights where the run
        keeps them; None before the end.
      reason: of a failed one.
    """

    kind: str
    step: int = 0
    total: int = 0
    history: tuple[dict[str, Any], ...] = ()
    result: dict[str, Any] | None = None
    reason: str = ""


def state_of(out: Path, cell: Cell) -> State:
    """The state of a cell, from what its run wrote.

    It is finished when the last step of its config is evaluated in metrics.jsonl and the checkpoint
    of that step is there, or the user has removed all checkpoints.
    """
    workdir = out / cell.name
    history = _history(workdir / "metrics.jsonl")
    step = max((line["step"] for line in history), default=0)
    total = _total_steps(history, cell.config.epochs)
    last = [line for line in history if line["step"] == total and "weights" in line]
    state = State(UNFINISHED, step, total, history)
    checkpoints = workdir / "checkpoints"
    saved = not checkpoints.exists() or (checkpoints / str(total)).exists()
    if is_training(workdir):
        return replace(state, kind=RUNNING)
    if last and saved:
        return replace(state, kind=FINISHED, result=last[0])
    if (workdir / "failed.json").is_file():
        return replace(state, kind=FAILED, reason=_reason(workdir / "failed.json"))
    if not (workdir / "config.json").is_file():
        return replace(state, kind=NOT_STARTED)
    return state


def states_of(out: Path, cells: Sequence[Cell]) -> dict[str, State]:
    """{name: state} of cells; UserError where another config trained in the folder of one."""
    for cell in cells:
        workdir = out / cell.name
        if not (workdir / "config.json").is_file():
            continue
        changed = config_io.differences(workdirs.read_config(workdir), cell.config)
        if changed:
            raise UserError(
                f"{workdir} was trained otherwise ({'; '.join(changed)}); move it away, or use "
                "another --out"
            )
    return {cell.name: state_of(out, cell) for cell in cells}


def mark_failed(workdir: Path, code: int, reason: str) -> None:
    """Record that the cell's process ended with `code`; a later success outweighs it."""
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / "failed.json", {"exit_code": code, "reason": reason}, indent=None)


def read_plan(out: Path) -> Plan:
    """The sweep that sweep.json of `out` holds; nothing is executed. UserError where none does."""
    path = out / "sweep.json"
    if not path.is_file():
        raise UserError(f"no sweep.json in {out}: no sweep was run there")
    try:
        tree = read_json(path)
        base = config_io.from_json(strict_json.dumps(tree["base"]), path)
        settings = [
            (Setting(s["name"], tuple(s["overrides"].items())), s["seeds"])
            for s in tree["settings"]
        ]
        spec, shared, baseline = tree["config"], tuple(tree["overrides"].items()), tree["baseline"]
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{path} is damaged ({e}); start the sweep again to write it") from e
    cells = []
    for setting, seeds in settings:
        config = config_of(base, shared, setting.overrides)
        cells += [cell_of(setting, seed, config) for seed in seeds]
    return Plan(spec, shared, base, tuple(cells), baseline)


def write_plan(out: Path, plan: Plan) -> None:
    """sweep.json of a plan."""
    seeds: dict[Setting, list[int]] = {}
    for cell in plan.cells:
        seeds.setdefault(cell.setting, []).append(cell.seed)
    tree = {
        "config": plan.spec,
        "overrides": dict(plan.overrides),
        "baseline": plan.baseline,
        "settings": [
            {"name": s.name, "overrides": dict(s.overrides), "seeds": of} for s, of in seeds.items()
        ],
        "base": plan.base.to_dict(),
    }
    with writing(f"--out={out}"):
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "sweep.json", tree)


def joined(out: Path, plan: Plan) -> tuple[Plan, Plan]:
    """(what to run, what sweep.json is to hold) of `plan` in a folder that may have had another.

    A setting that is there already keeps its name, so that no cell runs under a second one.
    Raises UserError where the folder's sweep has another base config, naming what differs.
    """
    if not (out / "sweep.json").exists():
        return plan, plan
    old = read_plan(out)
    changed = config_io.differences(old.base, plan.base)
    if changed:
        raise UserError(
            f"{out} has a sweep of another base config ({'; '.join(changed)}); use another --out"
        )
    known = {identity(cell.config): cell.setting for cell in old.cells}
    taken = {setting.name for setting in known.values()}
    renamed: dict[Setting, Setting] = {}
    cells = []
    for cell in plan.cells:
        setting = known.get(identity(cell.config), cell.setting)
        if setting is cell.setting and setting.name in taken:
            raise UserError(f"{out} has another setting named {setting.name}; use another --out")
        renamed[cell.setting] = setting
        cells.append(cell_of(setting, cell.seed, cell.config))
    baseline = next(new.name for s, new in renamed.items() if s.name == plan.baseline)
    wanted = replace(plan, cells=tuple(cells), baseline=baseline)
    both = {cell.name: cell for cell in (*old.cells, *cells)}
    return wanted, replace(wanted, cells=tuple(both.values()))


def _history(path: Path) -> tuple[dict[str, Any], ...]:
    """The lines of metrics.jsonl; the last one may be half written."""
    try:
        lines = read_json_lines(path, skip_damaged=True)
    except FileNotFoundError:
        return ()
    return tuple(line for line in lines if isinstance(line, dict) and "step" in line)


def _total_steps(history: tuple[dict[str, Any], ...], epochs: float) -> int:
    """Steps of the whole run, as `make_experiment` counts them; 0 where no line tells."""
    for line in history:
        if line.get("epoch"):
            return math.ceil(in_steps(epochs, line["step"] / line["epoch"]))
    return 0


def _reason(path: Path) -> str:
    try:
        record = read_json(path)
        return f"exit code {record['exit_code']}: {record['reason']}"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{path} says so and cannot be read"
