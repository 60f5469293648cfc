"""The results of a sweep, from the files of its trials."""

import math
from pathlib import Path
from typing import Any

from imagenet_jax import config as config_io
from imagenet_jax.errors import UserError
from imagenet_jax.files import read_json
from imagenet_jax.runtime.provenance import describe_code
from imagenet_jax.sweep import folder
from imagenet_jax.sweep.folder import State
from imagenet_jax.sweep.plan import Plan, Setting, Trial, format_value, short_name
from imagenet_jax.sweep.statistics import Row, SettingResult, compare
from imagenet_jax.sweep.table import axis_label
from imagenet_jax.training.metrics import METRICS


def read_results(out: Path, metric: str, baseline: str | None) -> tuple[list[Row], list[str]]:
    """Return (rows, notes) of the table of the sweep in `out`.

    Args:
      metric: name in `METRICS`; its value is that of the evaluation after the last step.
      baseline: name of a setting or of one of its trials; None: the baseline of the sweep.

    Raises UserError for a folder without a sweep, an unknown metric or an unknown baseline.
    """
    if metric not in METRICS:
        raise UserError(f"--metric={metric} is unknown; use one of {', '.join(METRICS)}")
    plan = folder.read_plan(out)
    names = [setting.name for setting in plan.settings]
    baseline = baseline or plan.baseline
    baseline = {t.name: t.setting.name for t in plan.trials}.get(baseline, baseline)
    if baseline not in names:
        raise UserError(f"--baseline={baseline} is not in {out}; it has {'; '.join(names)}")
    states = folder.read_states(out, plan.trials)
    results = [_read_setting(out, plan, setting, states, metric) for setting in plan.settings]
    rows = compare(results, baseline)
    return rows, _explain(plan, metric, baseline, rows) + _list_problems(out, plan, states, metric)


def _read_setting(
    out: Path, plan: Plan, setting: Setting, states: dict[str, State], metric: str
) -> SettingResult:
    fields = list(dict.fromkeys(name for s in plan.settings for name, _ in s.overrides))
    flat = config_io.flatten(setting.config)
    values = {short_name(f, fields): format_value(flat[f]) for f in fields}
    trials = [trial for trial in plan.trials if trial.setting == setting]
    results = {t.seed: r for t in trials if (r := states[t.name].result)}
    costs = [_read_cost(out, t, states[t.name]) for t in trials if t.seed in results]
    return SettingResult(
        name=setting.name,
        values=values or {"setting": "base"},
        metric={seed: _value(result, metric) for seed, result in results.items()},
        states={trial.seed: states[trial.name].kind for trial in trials},
        device_seconds=[seconds for seconds, _ in filter(None, costs)],
        images_per_second=[rate for _, rate in filter(None, costs)],
    )


def _value(result: dict[str, Any], metric: str) -> float:
    if not isinstance(result.get(metric), int | float):
        known = ", ".join(name for name in METRICS if name in result)
        raise UserError(f"--metric={metric} was not measured by these runs; use one of {known}")
    return float(result[metric])


def _read_cost(out: Path, trial: Trial, state: State) -> tuple[float, float] | None:
    """Return (device-seconds of the train steps, images/s over all devices), or None."""
    # Intervals have equal numbers of steps, so the mean rate is the harmonic mean.
    slowness = [1 / h["images_per_second"] for h in state.history if h.get("images_per_second")]
    if not slowness:
        return None
    rate = len(slowness) / sum(slowness)
    devices = len(_read_provenance(out, trial).get("devices", ["?"]))
    return state.total * trial.config.batch_size / rate * devices, rate


def _read_provenance(out: Path, trial: Trial) -> dict[str, Any]:
    try:
        return read_json(out / trial.name / "provenance.json")
    except (OSError, ValueError):
        return {}


def _explain(plan: Plan, metric: str, baseline: str, rows: list[Row]) -> list[str]:
    """Return the notes that explain the columns."""
    tests = sum(row.p is not None for row in rows)
    notes = [
        f"{axis_label(metric)}: on {plan.base.data.eval_split} after the last step, mean over "
        "seeds ± half-width of the 95 % confidence interval (Student's t); sd: standard deviation.",
        f"difference: from {baseline}, paired by seed; p: two-sided paired t-test; p (Holm): "
        f"adjusted for {tests} comparisons; * below 0.05.",
        "device time: the train steps of one run, without compilation and evaluation.",
    ]
    if all(row.summary is None or row.summary.count == 1 for row in rows):
        notes.append("One seed gives no deviation, interval or p: use --seeds=3 or more.")
    return notes


def _list_problems(out: Path, plan: Plan, states: dict[str, State], metric: str) -> list[str]:
    """Return notes about trials that failed, have not finished, or cannot be compared."""
    notes, revisions = [], set()
    for trial in plan.trials:
        state = states[trial.name]
        if state.result:
            revisions.add(describe_code(_read_provenance(out, trial), 10))
            value = _value(state.result, metric)
            if not math.isfinite(value):
                notes.append(
                    f"not finite: {trial.name}: {metric} is {value}, so its setting has no mean"
                )
        if state.kind == folder.FAILED:
            notes.append(f"failed: {trial.name}: {state.reason}")
        elif state.kind in (folder.RUNNING, folder.UNFINISHED):
            at = f" at step {state.step} of {state.total}" if state.total else ""
            notes.append(f"{state.kind}: {trial.name}{at}")
    revisions.discard("")
    if len(revisions) > 1:
        names = ", ".join(sorted(revisions))
        notes.append(f"The trials were trained with different code: {names}.")
    return notes
