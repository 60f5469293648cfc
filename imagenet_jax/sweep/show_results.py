"""Shows the results of a sweep as a table (text, Markdown, LaTeX with booktabs, CSV) and a plot."""

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imagenet_jax.errors import UserError
from imagenet_jax.formatting import format_duration
from imagenet_jax.sweep.folder import FAILED, FINISHED, NOT_STARTED, RUNNING, UNFINISHED
from imagenet_jax.sweep.results import SIGNIFICANT, Row, SettingResult, Summary, axis_label
from imagenet_jax.training.metrics import METRICS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NONE = "–"
_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", _NONE: "--", "<": "$<$", ">": "$>$", "|": r"\textbar{}",
} | {c: f"\\{c}" for c in "&%$#_{}"}  # fmt: skip
_TRIAL, _MEAN, _BASE, _SIGNIFICANT = "0.6", "tab:blue", "0.2", "tab:orange"  # colors


def format_table(rows: Sequence[Row], metric: str, notes: Sequence[str], style: str) -> str:
    """Return the table as text, markdown, latex or csv. CSV has plain numbers and no notes."""
    fields = _list_numbers if style == "csv" else _list_cells
    cells = [fields(row, metric) for row in rows]
    table = [[name for name, _ in cells[0]], *([value for _, value in row] for row in cells)]
    if style == "csv":
        file = io.StringIO()
        csv.writer(file, lineterminator="\n").writerows(table)  # None becomes an empty field
        return file.getvalue()
    texts = len(rows[0].result.values)  # columns of text; the others are numbers
    draw = {"text": _draw_text, "markdown": _draw_markdown, "latex": _draw_latex}[style]
    return "\n".join(draw(table, texts, notes)) + "\n"


def escape_latex(text: str) -> str:
    """Escape `text` so that LaTeX prints it verbatim."""
    return "".join(_LATEX.get(c, c) for c in text)


def _list_cells(row: Row, metric: str) -> list[tuple[str, str]]:
    """Return (column, text) of each cell of a row."""
    result, summary, difference = row.result, row.summary, row.difference
    deviation = summary.deviation if summary else None
    change = _format_interval(difference, metric, sign="+") if difference else _NONE
    seconds, speed = _mean(result.device_seconds), _mean(result.images_per_second)
    return [
        *result.values.items(),
        (axis_label(metric), _format_interval(summary, metric) if summary else _missing(result)),
        ("sd", _NONE if deviation is None else f"{_scale(metric) * deviation:.2f}"),
        ("seeds", _format_progress(result)),
        ("difference", "baseline" if row.is_baseline else change),
        ("p", _format_p(difference.p if difference else None)),
        ("p (Holm)", _format_p(row.p) + " *" * row.is_significant),
        ("device time", _NONE if seconds is None else format_duration(seconds)),
        ("images/s", _NONE if speed is None else f"{speed:,.0f}"),
    ]


def _list_numbers(row: Row, metric: str) -> list[tuple[str, Any]]:
    """Return (column, value) of each cell of a row of the CSV file."""
    result, s, d = row.result, row.summary, row.difference
    return [
        ("setting", result.name),
        *result.values.items(),
        ("baseline", int(row.is_baseline)),
        ("runs", len(result.states)),
        (FINISHED, result.count(FINISHED)),
        (FAILED, result.count(FAILED)),
        (f"{metric}_mean", s and s.mean),
        (f"{metric}_sd", s and s.deviation),
        (f"{metric}_ci95_half_width", s and s.half_width),
        ("pairs", d and d.count),
        ("difference", d and d.mean),
        ("difference_ci95_half_width", d and d.half_width),
        ("p", d and d.p),
        ("p_holm", row.p),
        ("device_seconds", _mean(result.device_seconds)),
        ("images_per_second", _mean(result.images_per_second)),
    ]


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _scale(metric: str) -> float:
    return 100.0 if METRICS[metric].is_share else 1.0  # shares are shown in percent


def _missing(result: SettingResult) -> str:
    """Return the state to show for a setting without a finished trial."""
    states = result.states.values()
    return next(s for s in (FAILED, RUNNING, UNFINISHED, NOT_STARTED) if s in states)


def _format_interval(s: Summary, metric: str, sign: str = "") -> str:
    digits = re.sub(r"[^.\d]", "", METRICS[metric].format)  # ".2" of ".2%"
    mean = f"{_scale(metric) * s.mean:{sign}{digits}f}"
    if s.half_width is None:
        return mean
    return f"{mean} ± {_scale(metric) * s.half_width:{digits}f}"


def _format_progress(result: SettingResult) -> str:
    """Return "3", or "2 of 3, 1 failed" if not all trials are finished."""
    finished, total = result.count(FINISHED), len(result.states)
    others = [state for state in dict.fromkeys(result.states.values()) if state != FINISHED]
    counts = [f"{result.count(state)} {state}" for state in others]
    return ", ".join([f"{finished} of {total}", *counts]) if others else str(finished)


def _format_p(p: float | None) -> str:
    if p is None:
        return _NONE
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _draw_text(table: Sequence[Sequence[str]], texts: int, notes: Sequence[str]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    layout = "  ".join(f"{{:{'<' if i < texts else '>'}{w}}}" for i, w in enumerate(widths))
    rows = (table[0], ["-" * width for width in widths], *table[1:])
    return [*(layout.format(*row).rstrip() for row in rows), "", *notes]


def _draw_markdown(table: Sequence[Sequence[str]], texts: int, notes: Sequence[str]) -> list[str]:
    rule = ["---"] * texts + ["---:"] * (len(table[0]) - texts)
    rows = [[cell.replace("|", r"\|").replace("*", r"\*") for cell in row] for row in table]
    lines = [f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:])]
    return [*lines, "", *(note.replace("*", r"\*") for note in notes)]


def _draw_latex(table: Sequence[Sequence[str]], texts: int, notes: Sequence[str]) -> list[str]:
    lines = []
    for row in table:
        cells = [escape_latex(cell) for cell in row]
        # In math mode, the sign of a number is a minus, not a hyphen.
        cells[texts:] = [re.sub(r"^([+-])(?=\d)", r"$\1$", cell) for cell in cells[texts:]]
        lines.append(" & ".join(cells) + r" \\")
    columns = "l" * texts + "r" * (len(table[0]) - texts)
    return [
        r"% \usepackage{booktabs}", rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule", r"\end{tabular}",
        *(f"% {note}" for note in notes),
    ]  # fmt: skip


def plot_sweep(rows: Sequence[Row], metric: str, out: Path) -> None:
    """Draw a line for each setting: its trials with their mean, and its paired difference.

    Bars are 95 % confidence intervals. Differences that are significant after Holm's correction
    have a different color. Raises UserError if no trial has finished or the file cannot be written.
    """
    from matplotlib.figure import Figure

    if not any(row.summary for row in rows):
        raise UserError("--plot: no run has finished, so there is nothing to draw")
    panels = 2 if any(row.difference for row in rows) else 1
    size = (10 if panels == 2 else 6, 1.2 + 0.42 * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
    _draw_trials(axes[0], rows, metric)
    if panels == 2:
        _draw_differences(axes[1], rows, metric)
    for axis in axes:
        axis.legend(
            frameon=False, fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3
        )
        axis.grid(axis="x", alpha=0.3)
        axis.tick_params(axis="y", length=0)
        axis.spines[["top", "right", "left"]].set_visible(False)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, dpi=100)
    except (OSError, ValueError) as e:
        raise UserError(f"--plot={out} cannot be written: {e}") from e


def _draw_trials(axis: "Axes", rows: Sequence[Row], metric: str) -> None:
    scale = _scale(metric)
    for y, row in enumerate(rows):
        values = [scale * value for value in row.result.metric.values()]
        axis.plot(values, [y + 0.22] * len(values), "o", color=_TRIAL, alpha=0.7, mew=0)
        if row.summary:
            _draw_interval(axis, y, row.summary, scale, _BASE if row.is_baseline else _MEAN)
            if row.is_baseline:
                axis.axvline(scale * row.summary.mean, color=_BASE, linewidth=0.8, linestyle=":")
        else:
            axis.annotate(
                _missing(row.result), (0.02, y), xycoords=("axes fraction", "data"), va="center",
                color="tab:red", style="italic",
            )  # fmt: skip
    names = [", ".join(f"{k} = {v}" for k, v in row.result.values.items()) for row in rows]
    axis.set_yticks(range(len(rows)), names)
    for tick, row in zip(axis.get_yticklabels(), rows, strict=True):
        tick.set_fontweight("bold" if row.is_baseline else "normal")
    axis.set_ylim(len(rows) - 0.5, -0.5)  # the first setting at the top, as in the table
    axis.plot([], [], "o", color=_TRIAL, mew=0, label="run")
    axis.plot([], [], "D", color=_MEAN, mew=0, label="mean, 95 % interval")
    axis.plot([], [], "D", color=_BASE, label="baseline")
    axis.set_xlabel(axis_label(metric))


def _draw_differences(axis: "Axes", rows: Sequence[Row], metric: str) -> None:
    scale = _scale(metric)
    axis.axvline(0.0, color=_BASE, linewidth=0.8, linestyle=":")
    for y, row in enumerate(rows):
        if row.difference:
            color = _SIGNIFICANT if row.is_significant else _MEAN
            _draw_interval(axis, y, row.difference, scale, color)
    axis.plot([], [], "D", color=_SIGNIFICANT, label=f"p < {SIGNIFICANT} (Holm)")
    axis.plot([], [], "D", color=_MEAN, label=f"p ≥ {SIGNIFICANT}")
    points = " (percentage points)" if scale > 1 else ""
    axis.set_xlabel(f"paired difference from the baseline{points}")


def _draw_interval(axis: "Axes", y: int, summary: Summary, scale: float, color: str) -> None:
    half = scale * (summary.half_width or 0.0)
    axis.errorbar(scale * summary.mean, y, xerr=half or None, fmt="D", color=color, capsize=3)
