"""The table and the picture of a sweep, from what its runs wrote."""

import math
from pathlib import Path
from typing import Any

from imagenet_jax import config as config_io
from imagenet_jax import strict_json
from imagenet_jax.errors import UserError
from imagenet_jax.runtime.provenance import describe_code
from imagenet_jax.sweep import folder
from imagenet_jax.sweep.compare import Line, Outcome, compare
from imagenet_jax.sweep.plan import Cell, Plan, short, shown
from imagenet_jax.sweep.plot import plot_ablation
from imagenet_jax.sweep.table import label_of, render


def show_table(
    out: Path, metric: str, baseline: str | None, style: str, picture: Path | None
) -> None:
    """Print the table of the sweep in `out`, and draw it; see `table_of`, `render`."""
    lines, notes = table_of(out, metric, baseline)
    print(render(lines, metric, notes, style), end="", flush=True)
    if picture:
        plot_ablation(lines, metric, picture)


def table_of(out: Path, metric: str, baseline: str | None) -> tuple[list[Line], list[str]]:
    """(lines, notes) of the sweep in `out`.

    Args:
      metric: a number of the evaluation after the last step: "top1", "top5" or "loss".
      baseline: name of a setting, or of one of its cells; None: that of the sweep.

    Raises UserError for a folder without a sweep, an unknown metric or an unknown baseline.
    """
    plan = folder.read_plan(out)
    names = [setting.name for setting in plan.settings]
    if baseline is None:
        baseline = plan.baseline
    else:
        baseline = {c.name: c.setting.name for c in plan.cells}.get(baseline, baseline)
    if baseline not in names:
        raise UserError(f"--baseline={baseline} is not in {out}; it has {'; '.join(names)}")
    states = folder.states_of(out, plan.cells)
    lines = compare(_outcomes(out, plan, states, metric), baseline)
    return lines, _notes(out, plan, states, metric, baseline, lines)


def _outcomes(out: Path, plan: Plan, states: dict[str, folder.State], metric: str) -> list[Outcome]:
    fields = list(dict.fromkeys(name for s in plan.settings for name, _ in s.overrides))
    outcomes = []
    for setting in plan.settings:
        cells = [cell for cell in plan.cells if cell.setting == setting]
        flat = config_io.flatten(cells[0].config)
        finished = [cell for cell in cells if states[cell.name].result]
        costs = [_cost(out, cell, states[cell.name]) for cell in finished]
        outcomes.append(
            Outcome(
                name=setting.name,
                values={short(f, fields): shown(flat[f]) for f in fields} or {"setting": "base"},
                metric={c.seed: _metric(states[c.name].result or {}, metric) for c in finished},
                states={cell.seed: states[cell.name].kind for cell in cells},
                device_seconds=[seconds for seconds, _ in filter(None, costs)],
                images_per_second=[rate for _, rate in filter(None, costs)],
            )
        )
    return outcomes


def _metric(result: dict[str, Any], metric: str) -> float:
    value = result.get(metric)
    if not isinstance(value, int | float):
        known = [n for n, v in result.items() if isinstance(v, float)]
        raise UserError(f"--metric={metric} is not measured; there are {', '.join(known)}")
    return float(value)


def _cost(out: Path, cell: Cell, state: folder.State) -> tuple[float, float] | None:
    """(device-seconds of the training steps, images/s over all devices), where a run told."""
    # Intervals have the same number of steps: their harmonic mean is images over seconds.
    slowness = [1 / h["images_per_second"] for h in state.history if h.get("images_per_second")]
    if not slowness:
        return None
    rate = len(slowness) / sum(slowness)
    seconds = state.total * cell.config.batch_size / rate
    return seconds * len(_provenance(out, cell).get("devices", ["?"])), rate


def _provenance(out: Path, cell: Cell) -> dict[str, Any]:
    try:
        return strict_json.loads((out / cell.name / "provenance.json").read_text())
    except (OSError, ValueError):
        return {}


def _notes(
    out: Path,
    plan: Plan,
    states: dict[str, folder.State],
    metric: str,
    baseline: str,
    lines: list[Line],
) -> list[str]:
    compared = sum(line.p is not None for line in lines)
    split = plan.base.data.eval_split
    notes = [
        f"{label_of(metric)}: {split} after the last step, mean over seeds ± half of its 95 % "
        "confidence interval (Student's t); sd: standard deviation.",
        f"difference: to {baseline}, paired by seed; p: paired t-test, two-sided; p (Holm): "
        f"adjusted for {compared} comparisons; * below 0.05.",
        "device time: of a run's training steps, without compilation and evaluation.",
    ]
    if all(line.summary is None or line.summary.count == 1 for line in lines):
        notes.append(
            "One seed tells no deviation, interval or significance: use --seeds=3 or more."
        )
    for cell in plan.cells:
        state = states[cell.name]
        value = _metric(state.result, metric) if state.result else 0.0
        if not math.isfinite(value):
            notes.append(
                f"not finite: {cell.name}: {metric} is {value}, so its setting has no mean"
            )
        if state.kind == folder.FAILED:
            notes.append(f"failed: {cell.name}: {state.reason}")
        elif state.kind in (folder.RUNNING, folder.UNFINISHED):
            at = f" at step {state.step} of {state.total}" if state.total else ""
            notes.append(f"{state.kind}: {cell.name}{at}")
    finished = [cell for cell in plan.cells if states[cell.name].kind == folder.FINISHED]
    revisions = {describe_code(_provenance(out, cell), 10) for cell in finished} - {""}
    if len(revisions) > 1:
        short_ones = ", ".join(sorted(revisions))
        notes.append(f"The cells were trained by different code: {short_ones}.")
    return notes
