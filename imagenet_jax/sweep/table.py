"""The table of a sweep as text, Markdown, LaTeX (booktabs) or CSV."""

import csv
import io
import re
from collections.abc import Sequence

import numpy as np

from imagenet_jax.formatting import format_duration
from imagenet_jax.sweep.folder import FAILED, FINISHED, NOT_STARTED, RUNNING, UNFINISHED
from imagenet_jax.sweep.statistics import Row, SettingResult, Summary
from imagenet_jax.training.metrics import METRICS

FORMATS = ("text", "markdown", "latex", "csv")
_NONE = "–"

_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", _NONE: "--", "<": "$<$", ">": "$>$", "|": r"\textbar{}",
} | {c: f"\\{c}" for c in "&%$#_{}"}  # fmt: skip


def render(rows: Sequence[Row], metric: str, notes: Sequence[str], style: str) -> str:
    """Return the table in one of FORMATS; CSV has plain numbers and no notes."""
    if style == "csv":
        return _csv(rows, metric)
    header = [
        *rows[0].result.values, axis_label(metric), "sd", "seeds", "difference", "p", "p (Holm)",
        "device time", "images/s",
    ]  # fmt: skip
    table = [header, *(_cells(row, metric) for row in rows)]
    texts = len(rows[0].result.values)  # columns of text; the others are numbers
    return {"text": _text, "markdown": _markdown, "latex": _latex}[style](table, texts, notes)


def axis_label(metric: str) -> str:
    """Return the label of a metric in the units of `find_scale`: "top-1 (%)"."""
    return METRICS[metric].label + (" (%)" if METRICS[metric].is_share else "")


def find_scale(metric: str) -> float:
    """Return the factor for display: 100 for shares, which are shown in percent."""
    return 100.0 if METRICS[metric].is_share else 1.0


def missing(result: SettingResult) -> str:
    """Return the state to show for a setting without a finished trial."""
    states = result.states.values()
    return next(s for s in (FAILED, RUNNING, UNFINISHED, NOT_STARTED) if s in states)


def escape_latex(text: str) -> str:
    """Escape `text` so that LaTeX prints it verbatim."""
    return "".join(_LATEX.get(c, c) for c in text)


def _cells(row: Row, metric: str) -> list[str]:
    result, summary, difference = row.result, row.summary, row.difference
    deviation = summary.deviation if summary else None
    speeds = result.images_per_second
    return [
        *result.values.values(),
        _interval(summary, metric) if summary else missing(result),
        _NONE if deviation is None else f"{find_scale(metric) * deviation:.2f}",
        _progress(result),
        "baseline"
        if row.is_baseline
        else _NONE
        if difference is None
        else _interval(difference, metric, sign="+"),
        _format_p(difference.p if difference else None),
        _format_p(row.p) + " *" * row.is_significant,
        format_duration(float(np.mean(result.device_seconds))) if result.device_seconds else _NONE,
        f"{np.mean(speeds):,.0f}" if speeds else _NONE,
    ]


def _interval(s: Summary, metric: str, sign: str = "") -> str:
    digits = re.sub(r"[^.\d]", "", METRICS[metric].format)  # ".2" of ".2%"
    mean = f"{find_scale(metric) * s.mean:{sign}{digits}f}"
    if s.half_width is None:
        return mean
    return f"{mean} ± {find_scale(metric) * s.half_width:{digits}f}"


def _progress(result: SettingResult) -> str:
    """Return "3", or "2 of 3, 1 failed" if not all trials are finished."""
    finished, total = result.count(FINISHED), len(result.states)
    others = [state for state in dict.fromkeys(result.states.values()) if state != FINISHED]
    counts = [f"{result.count(state)} {state}" for state in others]
    return ", ".join([f"{finished} of {total}", *counts]) if others else str(finished)


def _format_p(p: float | None) -> str:
    if p is None:
        return _NONE
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _text(table: list[list[str]], texts: int, notes: Sequence[str]) -> str:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if i < texts else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (table[0], ["-" * width for width in widths], *table[1:])
    ]
    return "\n".join([*lines, "", *notes]) + "\n"


def _markdown(table: list[list[str]], texts: int, notes: Sequence[str]) -> str:
    rule = ["---"] * texts + ["---:"] * (len(table[0]) - texts)
    rows = [[cell.replace("|", r"\|").replace("*", r"\*") for cell in row] for row in table]
    lines = [f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:])]
    return "\n".join([*lines, "", *(note.replace("*", r"\*") for note in notes)]) + "\n"


def _latex(table: list[list[str]], texts: int, notes: Sequence[str]) -> str:
    header, *rows = [
        # In math mode the sign of a number is a minus, not a hyphen.
        [
            re.sub(r"^([+-])(?=\d)", r"$\1$", cell) if i >= texts else cell
            for i, cell in enumerate(map(escape_latex, row))
        ]
        for row in table
    ]
    lines = [
        r"% \usepackage{booktabs}",
        rf"\begin{{tabular}}{{{'l' * texts + 'r' * (len(header) - texts)}}}",
        r"\toprule",
        " & ".join(header) + r" \\",
        r"\midrule",
        *(" & ".join(row) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
        *(f"% {note}" for note in notes),
    ]
    return "\n".join(lines) + "\n"


def _csv(rows: Sequence[Row], metric: str) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        [
            "setting", *rows[0].result.values, "baseline", "runs", FINISHED, FAILED,
            f"{metric}_mean", f"{metric}_sd", f"{metric}_ci95_half_width", "pairs", "difference",
            "difference_ci95_half_width", "p", "p_holm", "device_seconds", "images_per_second",
        ]
    )  # fmt: skip
    for row in rows:
        result, s = row.result, row.summary
        d = row.difference
        writer.writerow(  # None becomes an empty field
            [
                result.name,
                *result.values.values(),
                int(row.is_baseline),
                len(result.states),
                result.count(FINISHED),
                result.count(FAILED),
                *((s.mean, s.deviation, s.half_width) if s else (None,) * 3),
                *((d.count, d.mean, d.half_width, d.p) if d else (None,) * 4),
                row.p,
                float(np.mean(result.device_seconds)) if result.device_seconds else None,
                float(np.mean(result.images_per_second)) if result.images_per_second else None,
            ]
        )
    return file.getvalue()
