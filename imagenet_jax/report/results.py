"""The numbers of runs as rows of text: what came out, and where runs differ."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from imagenet_jax.report.records import Run
from imagenet_jax.training.metrics import score

Table = list[tuple[str, ...]]

RESULT_HEAD = (
    "checkpoint", "step", "split", "weights", "images", "top-1", "top-5", "loss (nats)",
)  # fmt: skip
RESULT_NUMBERS = (1, 4, 5, 6, 7)  # columns


def result_rows(run: Run) -> Table:
    """Of the last and the best evaluated step, as `RESULT_HEAD` names the columns."""
    rows: Table = []
    for title, step in marked_steps(run):
        for line in run.evaluations:
            if line["step"] == step:
                kind = "average" if line["weights"] == "ema" else "raw"
                rows.append(
                    (
                        title,
                        f"{step:,}",
                        line["split"],
                        kind,
                        f"{line['count']:,}",
                        f"{line['top1']:.2%}",
                        f"{line['top5']:.2%}",
                        f"{line['loss']:.4f}",
                    )
                )
    return rows


def marked_steps(run: Run) -> list[tuple[str, int]]:
    """[("last", step), ("best ...", step)] among the evaluated ones; one entry where they agree."""
    lines = [line for line in run.evaluations if line["weights"] == weights_of(run)]
    if not lines:
        return []
    best = max(lines, key=lambda line: (score(line, run.best_metric), line["step"]))["step"]
    last = lines[-1]["step"]
    metric = {"top1": "top-1", "top5": "top-5"}.get(run.best_metric, run.best_metric)
    if best == last:
        return [(f"last, best by {metric}", last)]
    return [("last", last), (f"best by {metric}", best)]


def weights_of(run: Run) -> str:
    """The weights that a run is judged by: the average, where it is kept."""
    kinds = {line["weights"] for line in run.evaluations}
    return "ema" if "ema" in kinds else "raw"


def comparison_rows(runs: Sequence[Run]) -> list[tuple[str, list[tuple[str, str]]]]:
    """(quantity, (value, difference to the first run) of each run): "" where there is none."""
    rows = []
    for name, value_of, form, unit in _COMPARED:
        values = [value_of(run) for run in runs]
        if all(value is None for value in values):
            continue
        cells = []
        for i, value in enumerate(values):
            text = "" if value is None else form.format(value)
            difference = ""
            if i and value is not None and values[0] is not None:
                difference = _signed(value - values[0], form, unit)
            cells.append((text, difference))
        rows.append((name, cells))
    return rows


def _signed(difference: float, form: str, unit: str) -> str:
    if unit == "points":  # of a percentage
        return f"{100 * difference:+.2f} points"
    text = form.format(difference)
    return text if text.startswith("-") else f"+{text}"


def _last(field: str):
    def value_of(run: Run) -> float | None:
        lines = [line for line in run.evaluations if line["weights"] == weights_of(run)]
        return lines[-1][field] if lines else None

    return value_of


def _best(run: Run) -> float | None:
    lines = [line for line in run.evaluations if line["weights"] == weights_of(run)]
    return max(lines, key=lambda line: score(line, "top1"))["top1"] if lines else None


def _trained(field: str):
    def value_of(run: Run) -> float | None:
        lines = [line[field] for line in run.metrics if line["split"] == "train" and field in line]
        return lines[-1] if lines else None

    return value_of


def median_of(run: Run, field: str) -> float | None:
    """Of the training lines that have it."""
    values = [line[field] for line in run.metrics if line["split"] == "train" and field in line]
    return float(np.median(values)) if values else None


def _macro_f1(run: Run) -> float | None:
    return run.predicted.by_class.as_json()["f1"] if run.predicted else None


_COMPARED = (
    ("top-1, last", _last("top1"), "{:.2%}", "points"),
    ("top-5, last", _last("top5"), "{:.2%}", "points"),
    ("loss, last", _last("loss"), "{:.4f}", ""),
    ("top-1, best", _best, "{:.2%}", "points"),
    ("F1, mean over classes", _macro_f1, "{:.2%}", "points"),
    (
        "expected calibration error",
        lambda run: run.predicted.reliability.error if run.predicted else None,
        "{:.2%}",
        "points",
    ),
    ("training loss, last", _trained("loss"), "{:.4f}", ""),
    ("images per second, median", lambda run: median_of(run, "images_per_second"), "{:,.0f}", ""),
    ("input wait, median", lambda run: median_of(run, "input_wait"), "{:.1%}", "points"),
)


def config_differences(runs: Sequence[Run]) -> Table:
    """(field, value of each run) of the fields that are not the same everywhere."""
    return _differing([run.config for run in runs])


def provenance_differences(runs: Sequence[Run]) -> Table:
    """As `config_differences`, of provenance.json."""
    return _differing([dict(provenance_rows(run.provenance)) for run in runs])


def provenance_rows(provenance: dict[str, Any]) -> list[tuple[str, str]]:
    """(name, value); a group is written as "packages.jax", a later start as their number."""
    rows: list[tuple[str, str]] = []
    for name, value in provenance.items():
        if name == "resumed":
            rows.append(("continued", f"{len(value)} time{'' if len(value) == 1 else 's'}"))
        elif isinstance(value, dict):
            rows += [(f"{name}.{key}", _text(inner)) for key, inner in value.items()]
        else:
            rows.append((name, _text(value)))
    return rows


def _differing(columns: Sequence[dict[str, Any]]) -> Table:
    fields = dict.fromkeys(field for column in columns for field in column)
    return [
        (field, *(_text(column.get(field, "")) for column in columns))
        for field in fields
        if any(column.get(field) != columns[0].get(field) for column in columns)
    ]


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "unknown"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        counts = Counter(map(_text, value))
        return ", ".join(t if n == 1 else f"{n} x {t}" for t, n in counts.items()) or "()"
    return str(value)
