"""The results of a sweep: reads them from the files of its trials, and compares the settings.

The statistics are made for a few seeds: Student's intervals, paired t-tests and Holm's correction.
None stands for a quantity that needs more values.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special

from imagenet_jax import config as config_io
from imagenet_jax.errors import UserError
from imagenet_jax.files import read_json
from imagenet_jax.runtime.provenance import describe_code
from imagenet_jax.sweep import folder
from imagenet_jax.sweep.folder import State
from imagenet_jax.sweep.plan import Plan, Setting, Trial, format_value, short_name
from imagenet_jax.training.metrics import METRICS

CONFIDENCE = 0.95
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Summary:
    """Mean and spread of a sample, or of the differences of two paired samples.

    Attributes:
      mean: NaN if a value is NaN or infinite.
      deviation: the standard deviation with n - 1 in the denominator; None for a single value and
        if the mean is NaN.
      half_width: half-width of the 95 % confidence interval of the mean, t * s / sqrt(n) (Student
        1908).
      p: for differences, the p-value of the two-sided paired t-test that the mean is 0. None for a
        single pair, and for equal differences, whose t is undefined.
    """

    count: int
    mean: float
    deviation: float | None
    half_width: float | None
    p: float | None = None


@dataclass(frozen=True)
class SettingResult:
    """The results of one setting.

    Attributes:
      name: name of the setting.
      values: {column: text} of the swept fields.
      metric: {seed: value} of the finished trials.
      states: {seed: state} of all trials.
      device_seconds: device time of training, for each finished trial that recorded its speed.
      images_per_second: speed of the same trials.
    """

    name: str
    values: Mapping[str, str]
    metric: Mapping[int, float]
    states: Mapping[int, str]
    device_seconds: Sequence[float]
    images_per_second: Sequence[float]

    def count(self, state: str) -> int:
        """Return the number of trials in this state."""
        return list(self.states.values()).count(state)


@dataclass(frozen=True)
class Row:
    """A setting's result with its statistics; None if too few trials have finished.

    Attributes:
      difference: difference from the baseline over the seeds that both have finished; None for the
        baseline.
      p: p-value of the difference, adjusted for all rows that have one (Holm).
    """

    result: SettingResult
    is_baseline: bool
    summary: Summary | None
    difference: Summary | None
    p: float | None

    @property
    def is_significant(self) -> bool:
        return self.p is not None and self.p < SIGNIFICANT


def read_results(out: Path, metric: str, baseline: str | None) -> tuple[list[Row], list[str]]:
    """Return (rows, notes) of the table of the sweep in `out`.

    Args:
      metric: name in `METRICS`; its value is taken from the evaluation after the last step.
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


def axis_label(metric: str) -> str:
    """Return the label of a metric, with the unit % if it is a fraction: "top-1 (%)"."""
    return METRICS[metric].label + " (%)" * METRICS[metric].is_share


def compare(results: Sequence[SettingResult], baseline: str) -> list[Row]:
    """Return one row per result, compared with the result named `baseline`."""
    (base,) = [result for result in results if result.name == baseline]
    differences = []
    for result in results:
        seeds = sorted(result.metric.keys() & base.metric.keys())
        pair = [[r.metric[seed] for seed in seeds] for r in (result, base)]
        differences.append(paired_difference(*pair) if seeds and result is not base else None)
    adjusted = holm([d.p if d else None for d in differences])
    return [
        Row(r, r is base, summarize(list(r.metric.values())) if r.metric else None, d, p)
        for r, d, p in zip(results, differences, adjusted, strict=True)
    ]


def summarize(values: Sequence[float]) -> Summary:
    """Return the summary of `values`. Raises ValueError if there are none."""
    if not len(values):
        raise ValueError("no values")
    x = np.asarray(values, np.float64)
    n, mean = len(x), float(x.mean()) if np.isfinite(x).all() else math.nan
    if n == 1 or math.isnan(mean):
        return Summary(n, mean, None, None)
    deviation = float(x.std(ddof=1))
    quantile = float(special.stdtrit(n - 1, (1 + CONFIDENCE) / 2))
    return Summary(n, mean, deviation, quantile * deviation / math.sqrt(n))


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> Summary:
    """Summarize and test `values[i] - baseline[i]`. Raises ValueError for unequal lengths."""
    summary = summarize([a - b for a, b in zip(values, baseline, strict=True)])
    # Because of rounding, equal differences may have a small deviation.
    noise = 1e-12 * max(map(abs, (*values, *baseline)))
    if summary.deviation is None or summary.deviation <= noise:
        return summary
    t = summary.mean / (summary.deviation / math.sqrt(summary.count))
    return replace(summary, p=2 * float(special.stdtr(summary.count - 1, -abs(t))))


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Return p-values, in order, adjusted for multiple comparisons (Holm 1979). None stays None.

    If they are compared with a level, the probability of any false positive is below that level,
    however the tests depend on each other.
    """
    known = sorted((p, i) for i, p in enumerate(ps) if p is not None)
    adjusted: list[float | None] = [None] * len(ps)
    scaled = (min(1.0, (len(known) - rank) * p) for rank, (p, _) in enumerate(known))
    for (_, i), largest in zip(known, itertools.accumulate(scaled, max), strict=True):
        adjusted[i] = largest
    return adjusted


def _read_setting(
    out: Path, plan: Plan, setting: Setting, states: dict[str, State], metric: str
) -> SettingResult:
    fields = list(dict.fromkeys(name for s in plan.settings for name, _ in s.overrides))
    flat = config_io.flatten(setting.config)
    values = {short_name(f, fields): format_value(flat[f]) for f in fields}
    trials = [trial for trial in plan.trials if trial.setting == setting]
    results = {t.seed: r for t in trials if (r := states[t.name].result)}
    costs = [c for t in trials if t.seed in results and (c := _read_cost(out, t, states[t.name]))]
    return SettingResult(
        name=setting.name,
        values=values or {"setting": "base"},
        metric={seed: _value(result, metric) for seed, result in results.items()},
        states={trial.seed: states[trial.name].kind for trial in trials},
        device_seconds=[seconds for seconds, _ in costs],
        images_per_second=[rate for _, rate in costs],
    )


def _value(result: dict[str, Any], metric: str) -> float:
    if not isinstance(result.get(metric), int | float):
        known = ", ".join(name for name in METRICS if name in result)
        raise UserError(f"--metric={metric} was not measured by these runs; use one of {known}")
    return float(result[metric])


def _read_cost(out: Path, trial: Trial, state: State) -> tuple[float, float] | None:
    """Return (device-seconds of the train steps, images/s over all devices), or None."""
    # The intervals have equal numbers of steps, so the mean rate is the harmonic mean.
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
        "device time: train steps of one run, without compilation and evaluation.",
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
                effect = f"{metric} is {value}, so its setting has no mean"
                notes.append(f"not finite: {trial.name}: {effect}")
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
