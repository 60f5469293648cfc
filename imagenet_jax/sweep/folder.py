"""The folder of a sweep, and the states of its trials.

OUT/sweep.json              base config, settings, seeds, baseline
OUT/base_lr=0.1,seed=0/     workdir of a trial; with log.txt, and failed.json if it failed
OUT/compiled/               compilation cache, shared by the trials
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from imagenet_jax import config as config_io
from imagenet_jax.data.sampler import in_steps
from imagenet_jax.errors import UserError, writing
from imagenet_jax.files import dump_json, read_json, read_json_lines, write_json
from imagenet_jax.runtime import workdir as workdirs
from imagenet_jax.runtime.lock import is_training
from imagenet_jax.sweep.plan import Plan, Setting, Trial, identity, make_config, make_trial

FINISHED, RUNNING, FAILED = "finished", "running", "failed"
UNFINISHED, NOT_STARTED = "unfinished", "not started"


@dataclass(frozen=True)
class State:
    """The progress of a trial.

    Attributes:
      kind: one of the five constants above.
      step: the last step in metrics.jsonl.
      total: steps of the whole run; 0 if metrics.jsonl is too short to tell.
      history: the lines of metrics.jsonl.
      result: the first evaluation after the last step (of the EMA weights if the run has them);
        None unless finished.
      reason: why it failed.
    """

    kind: str
    step: int = 0
    total: int = 0
    history: tuple[dict[str, Any], ...] = ()
    result: dict[str, Any] | None = None
    reason: str = ""


def read_state(out: Path, trial: Trial) -> State:
    """Return the state of a trial, from the files in its workdir.

    A trial is finished if metrics.jsonl has an evaluation of the last step, and the checkpoint of
    that step exists, unless the user has deleted all checkpoints.
    """
    workdir = out / trial.name
    path = workdir / "metrics.jsonl"
    lines = read_json_lines(path, skip_damaged=True) if path.exists() else []
    history = tuple(line for line in lines if isinstance(line, dict) and "step" in line)
    step = max((line["step"] for line in history), default=0)
    total = _count_steps(history, trial.config.epochs)
    last = [line for line in history if line["step"] == total and "weights" in line]
    checkpoints = workdir / "checkpoints"
    saved = not checkpoints.exists() or (checkpoints / str(total)).exists()
    state = State(UNFINISHED, step, total, history)
    if is_training(workdir):
        return replace(state, kind=RUNNING)
    if last and saved:
        return replace(state, kind=FINISHED, result=last[0])
    if (workdir / "failed.json").is_file():
        return replace(state, kind=FAILED, reason=_read_reason(workdir / "failed.json"))
    return state if (workdir / "config.json").is_file() else replace(state, kind=NOT_STARTED)


def read_states(out: Path, trials: Sequence[Trial]) -> dict[str, State]:
    """Return {trial name: state}. Raises UserError if a workdir has a run with another config."""
    for trial in trials:
        workdir = out / trial.name
        if not (workdir / "config.json").is_file():
            continue
        changed = config_io.differences(workdirs.read_config(workdir), trial.config)
        if changed:
            raise UserError(
                f"{workdir} was trained with another config ({'; '.join(changed)}); move it away, "
                "or use another --out"
            )
    return {trial.name: read_state(out, trial) for trial in trials}


def mark_failed(workdir: Path, code: int, reason: str) -> None:
    """Record in failed.json that the trial's process exited with `code`."""
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / "failed.json", {"exit_code": code, "reason": reason}, indent=None)


def read_plan(out: Path) -> Plan:
    """Return the plan in sweep.json, without running a config file.

    Raises UserError if there is none.
    """
    path = out / "sweep.json"
    if not path.is_file():
        raise UserError(f"{out} has no sweep.json: it is not the folder of a sweep")
    try:
        tree = read_json(path)
        base = config_io.from_json(dump_json(tree["base"]), path)
        shared = tuple(tree["overrides"].items())
        trials = []
        for entry in tree["settings"]:
            overrides = tuple(entry["overrides"].items())
            setting = Setting(entry["name"], overrides, make_config(base, shared, overrides))
            trials += [make_trial(setting, seed) for seed in entry["seeds"]]
        return Plan(tree["config"], shared, base, tuple(trials), tree["baseline"])
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{path} is damaged ({e}); run the sweep again to rewrite it") from e


def write_plan(out: Path, plan: Plan) -> None:
    """Write sweep.json."""
    settings = []
    for setting in plan.settings:
        seeds = [trial.seed for trial in plan.trials if trial.setting == setting]
        overrides = dict(setting.overrides)
        settings.append({"name": setting.name, "overrides": overrides, "seeds": seeds})
    tree = {
        "config": plan.spec, "overrides": dict(plan.overrides), "baseline": plan.baseline,
        "settings": settings, "base": plan.base.to_dict(),
    }  # fmt: skip
    with writing(f"--out={out}"):
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "sweep.json", tree)


def extend_plan(out: Path, plan: Plan) -> tuple[Plan, Plan]:
    """Return (plan to run, plan to record) for `plan` in a folder that may have an older plan.

    A setting that is already in the folder keeps its name, so that no trial runs under two names.
    Raises UserError if the older sweep has another base config.
    """
    if not (out / "sweep.json").exists():
        return plan, plan
    old = read_plan(out)
    changed = config_io.differences(old.base, plan.base)
    if changed:
        raise UserError(
            f"{out} has a sweep of another base config ({'; '.join(changed)}); use another --out"
        )
    known = {identity(setting.config): setting for setting in old.settings}
    names = {setting.name for setting in old.settings}
    settings: dict[Setting, Setting] = {}
    for setting in plan.settings:
        same = known.get(identity(setting.config))
        if not same and setting.name in names:
            raise UserError(f"{out} has another setting named {setting.name}; use another --out")
        settings[setting] = replace(same, config=setting.config) if same else setting
    trials = tuple(make_trial(settings[trial.setting], trial.seed) for trial in plan.trials)
    baseline = next(new.name for s, new in settings.items() if s.name == plan.baseline)
    wanted = replace(plan, trials=trials, baseline=baseline)
    both = {trial.name: trial for trial in (*old.trials, *trials)}
    return wanted, replace(wanted, trials=tuple(both.values()))


def _count_steps(history: tuple[dict[str, Any], ...], epochs: float) -> int:
    """Return the steps of the whole run, or 0 if no line tells the number of steps per epoch."""
    for line in history:
        if line.get("epoch"):
            return math.ceil(in_steps(epochs, line["step"] / line["epoch"]))
    return 0


def _read_reason(path: Path) -> str:
    try:
        record = read_json(path)
        return f"exit code {record['exit_code']}: {record['reason']}"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{path} exists but cannot be read"
