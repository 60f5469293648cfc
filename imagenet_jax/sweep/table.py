"""The table of an ablation, as text, Markdown, LaTeX (booktabs) and CSV."""

import csv
import io
import re
from collections.abc import Sequence

from imagenet_jax.sweep.compare import Line
from imagenet_jax.sweep.statistics import Summary

FORMATS = ("text", "markdown", "latex", "csv")
_NOTHING = "–"

# Shares of 1, shown in per cent.
_SHARES = ("top1", "top5")
_LABELS = {"top1": "top-1 (%)", "top5": "top-5 (%)"}

_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", _NOTHING: "--", "<": "$<$", ">": "$>$", "|": r"\textbar{}",
} | {c: f"\\{c}" for c in "&%$#_{}"}  # fmt: skip


def render(lines: Sequence[Line], metric: str, notes: Sequence[str], style: str) -> str:
    """The table in one of FORMATS, with a final newline; CSV has plain numbers and no notes."""
    if style == "csv":
        return _csv(lines, metric)
    header, rows = _cells(lines, metric)
    numeric = len(lines[0].outcome.values)  # columns from here on are numbers
    return {"text": _text, "markdown": _markdown, "latex": _latex}[style](
        header, rows, numeric, notes
    )


def label_of(metric: str) -> str:
    """How a metric is named: "top-1 (%)"."""
    return _LABELS.get(metric, metric)


def scale_of(metric: str) -> float:
    """What a metric is multiplied with for people: 100 for shares."""
    return 100.0 if metric in _SHARES else 1.0


def duration(seconds: float) -> str:
    """ "41 s", "12.5 min" or "3.2 h"."""
    if seconds < 100:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"


def _cells(lines: Sequence[Line], metric: str) -> tuple[list[str], list[list[str]]]:
    scale = scale_of(metric)
    header = [
        *lines[0].outcome.values, label_of(metric), "sd", "seeds", "difference", "p", "p (Holm)",
        "device time", "images/s",
    ]  # fmt: skip
    rows = []
    for line in lines:
        o, s, d = line.outcome, line.summary, line.difference
        mean = _interval(s, scale, "") if s else missing(line)
        sd = f"{scale * s.deviation:.2f}" if s and s.deviation is not None else _NOTHING
        difference = "baseline" if line.is_baseline else _NOTHING
        if d:
            difference = _interval(d.summary, scale, "+")
        rows.append(
            [
                *o.values.values(),
                mean,
                sd,
                o.progress,
                difference,
                _p(d.p if d else None),
                _p(line.p) + " *" * line.is_significant,
                duration(_mean(o.device_seconds)) if o.device_seconds else _NOTHING,
                f"{_mean(o.images_per_second):,.0f}" if o.images_per_second else _NOTHING,
            ]
        )
    return header, rows


def _interval(s: Summary, scale: float, sign: str) -> str:
    digits = 2 if scale > 1 else 4
    mean = f"{scale * s.mean:{sign}.{digits}f}"
    return mean if s.half_width is None else f"{mean} ± {scale * s.half_width:.{digits}f}"


def missing(line: Line) -> str:
    """What became of a setting without a finished run."""
    states = line.outcome.states.values()
    return next(s for s in ("failed", "running", "unfinished", "not started") if s in states)


def _p(p: float | None) -> str:
    if p is None:
        return _NOTHING
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _text(header: list[str], rows: list[list[str]], numeric: int, notes: Sequence[str]) -> str:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if i < numeric else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (header, ["-" * width for width in widths], *rows)
    ]
    return "\n".join([*lines, "", *notes]) + "\n"


def _markdown(header: list[str], rows: list[list[str]], numeric: int, notes: Sequence[str]) -> str:
    rule = ["---"] * numeric + ["---:"] * (len(header) - numeric)
    escaped = [[cell.replace("|", r"\|").replace("*", r"\*") for cell in row] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in (header, rule, *escaped)]
    return "\n".join([*lines, "", *(note.replace("*", r"\*") for note in notes)]) + "\n"


def _latex(header: list[str], rows: list[list[str]], numeric: int, notes: Sequence[str]) -> str:
    columns = "l" * numeric + "r" * (len(header) - numeric)
    lines = [
        r"% \usepackage{booktabs}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        " & ".join(map(escape_latex, header)) + r" \\",
        r"\midrule",
        *(" & ".join(_latex_cell(c, i >= numeric) for i, c in enumerate(r)) + r" \\" for r in rows),
        r"\bottomrule",
        r"\end{tabular}",
        *(f"% {note}" for note in notes),
    ]
    return "\n".join(lines) + "\n"


def escape_latex(text: str) -> str:
    """`text` as LaTeX prints it."""
    return "".join(_LATEX.get(c, c) for c in text)


def _latex_cell(cell: str, numeric: bool) -> str:
    """Signs of numbers in mathematics: a minus, not a hyphen."""
    text = escape_latex(cell)
    return re.sub(r"^([+-])(?=\d)", r"$\1$", text) if numeric else text


def _csv(lines: Sequence[Line], metric: str) -> str:
    file = io.StringIO()
    fields = list(lines[0].outcome.values)
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        [
            "setting",
            *fields,
            "baseline",
            "runs",
            "finished",
            "failed",
            f"{metric}_mean",
            f"{metric}_sd",
            f"{metric}_ci95_half_width",
            "pairs",
            "difference",
            "difference_ci95_half_width",
            "p",
            "p_holm",
            "device_seconds",
            "images_per_second",
        ]  # fmt: skip
    )
    for line in lines:
        o, s = line.outcome, line.summary
        d = line.difference.summary if line.difference else None
        writer.writerow(
            [
                o.name,
                *o.values.values(),
                int(line.is_baseline),
                len(o.states),
                o.count("finished"),
                o.count("failed"),
                *((s.mean, s.deviation, s.half_width) if s else (None,) * 3),
                *((d.count, d.mean, d.half_width) if d else (None,) * 3),
                line.difference.p if line.difference else None,
                line.p,
                _mean(o.device_seconds) if o.device_seconds else None,
                _mean(o.images_per_second) if o.images_per_second else None,
            ]  # fmt: skip
        )  # None becomes an empty field
    return file.getvalue()
