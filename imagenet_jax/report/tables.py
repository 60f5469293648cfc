"""Tables of a report as rows of text, and the report as Markdown."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from imagenet_jax.classify.by_class import CLASS_COLUMNS, tabulate_classes
from imagenet_jax.formatting import counted
from imagenet_jax.report.predictions import Predicted
from imagenet_jax.report.read import Run
from imagenet_jax.training.metrics import METRICS, WEIGHTS_LABELS, score, shown_metrics

Rows = list[tuple[str, ...]]
Fields = list[tuple[str, str]]

_MARKDOWN_CLASSES = 20
_MARKDOWN_SPECIAL = str.maketrans({c: f"\\{c}" for c in "\\`*_[]<>|#"})


def tabulate_results(run: Run) -> tuple[list[str], Rows]:
    """Return the header, and the rows of the last and the best evaluation of a run."""
    metrics = shown_metrics(run.num_classes)
    labels = [
        f"{metric.label} ({metric.unit})" if metric.unit else metric.label for metric in metrics
    ]
    head = ["checkpoint", "weights", *labels, "step", "split", "images"]
    lines = select_evaluations(run)
    if not lines:
        return head, []
    last = lines[-1]["step"]
    best = max(lines, key=lambda line: (score(line, run.best_metric), line["step"]))["step"]
    steps = {"last": last, f"best by {METRICS[run.best_metric].label}": best}
    if best == last:
        steps = {", ".join(steps): last}
    rows = [
        (
            title,
            WEIGHTS_LABELS[line["weights"]],
            *(metric.text(line.get(metric.name)) for metric in metrics),
            f"{step:,}",
            line["split"],
            f"{line['count']:,}",
        )
        for title, step in steps.items()
        for line in run.evaluations
        if line["step"] == step
    ]
    return head, rows


def select_evaluations(run: Run) -> list[dict[str, Any]]:
    """Return the evaluations of EMA weights, or of raw weights if the run has no EMA weights."""
    kinds = {line["weights"] for line in run.evaluations}
    kept = "ema" if "ema" in kinds else "raw"
    return [line for line in run.evaluations if line["weights"] == kept]


def tabulate_comparison(runs: Sequence[Run]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return rows (quantity, [(value, difference from the first run) of each run]).

    Both are "" if the run does not have the quantity. Quantities that no run has are left out.
    """
    evaluations = [select_evaluations(run) or [{}] for run in runs]
    predicted = [run.predicted for run in runs]
    quantities: dict[str, tuple[str, list[float | None]]] = {
        f"{metric.label}, last": (
            metric.format,
            [lines[-1].get(metric.name) for lines in evaluations],
        )
        for metric in shown_metrics(max(run.num_classes for run in runs))
    } | {
        "top-1, best": (
            ".2%",
            [max(lines, key=lambda line: score(line, "top1")).get("top1") for lines in evaluations],
        ),
        "F1, class mean": (".2%", [p and p.by_class.as_json()["f1"] for p in predicted]),
        "expected calibration error": (".2%", [p and p.reliability.error for p in predicted]),
        "training loss, last": (
            ".4f",
            [next(reversed(collect_logged(run, "loss")), None) for run in runs],
        ),
        "images per second, median": (",.0f", [find_median(r, "images_per_second") for r in runs]),
        "input wait, median": (".1%", [find_median(run, "input_wait") for run in runs]),
    }
    return [
        (name, [_compare(value, values[0] if i else None, form) for i, value in enumerate(values)])
        for name, (form, values) in quantities.items()
        if any(value is not None for value in values)
    ]


def _compare(value: float | None, first: float | None, form: str) -> tuple[str, str]:
    """Return `value` and its difference from `first` as text."""
    if value is None:
        return "", ""
    difference = ""
    if first is not None:
        points = form.endswith("%")
        difference = (
            f"{100 * (value - first):+.2f} points" if points else f"{value - first:+{form}}"
        )
    return f"{value:{form}}", difference


def collect_logged(run: Run, field: str) -> list[float]:
    """Return the values of a field in the training lines of metrics.jsonl."""
    return [line[field] for line in run.metrics if line["split"] == "train" and field in line]


def find_median(run: Run, field: str) -> float | None:
    """Return the median of `collect_logged`, or None if there are no values."""
    values = collect_logged(run, field)
    return float(np.median(values)) if values else None


def tabulate_config(run: Run) -> Fields:
    """Return (field, value) of every config field."""
    return [(field, _format(value)) for field, value in run.config.items()]


def tabulate_provenance(run: Run) -> Fields:
    """Return (name, value) of provenance.json. Entries of groups are named like "packages.jax"."""
    rows: Fields = []
    for name, value in run.provenance.items():
        if name == "resumed":
            rows.append(("resumed", counted(len(value), "time")))
        elif isinstance(value, dict):
            rows += [(f"{name}.{key}", _format(inner)) for key, inner in value.items()]
        else:
            rows.append((name, _format(value)))
    return rows


def find_differences(runs: Sequence[Run], tabulate: Callable[[Run], Fields]) -> Rows:
    """Return (field, value in each run) of the fields that differ between the runs' tables."""
    columns = [dict(tabulate(run)) for run in runs]
    fields = dict.fromkeys(field for column in columns for field in column)
    rows = [(field, *(column.get(field, "") for column in columns)) for field in fields]
    return [row for row in rows if len(set(row[1:])) > 1]


def _format(value: Any) -> str:
    """Return a value of a config or of provenance.json as text."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "unknown"}[value]
    if isinstance(value, float):
        return f"{value:.12g}"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_format(inner)}" for key, inner in value.items()) or "none"
    if isinstance(value, list | tuple):
        counts = Counter(map(_format, value))
        return ", ".join(t if n == 1 else f"{n} x {t}" for t, n in counts.items()) or "none"
    return str(value)


def format_markdown(runs: Sequence[Run]) -> str:
    """Return results, differences, configs, provenance, hardest classes and confused pairs."""
    parts = [f"# {_escape(' / '.join(run.name for run in runs))}"]
    if len(runs) > 1:
        names = [run.name for run in runs]
        compared = [
            (name, *(f"{value} ({gap})" if gap else value for value, gap in cells))
            for name, cells in tabulate_comparison(runs)
        ]
        parts += ["## Results", "In parentheses: the difference from the first run."]
        parts.append(_markdown_table(["", *names], compared))
        differences = find_differences(runs, tabulate_config)
        if differences:
            parts += ["## Config differences", _markdown_table(["field", *names], differences)]
    for run in runs:
        parts += [f"## {_escape(run.name)}", _escape(run.status)]
        head, rows = tabulate_results(run)
        if rows:
            parts.append(_markdown_table(head, rows))
        parts += ["### Config", _markdown_table(["", ""], run.recipe)]
        parts += ["### Provenance", _markdown_table(["", ""], tabulate_provenance(run))]
        if run.predicted:
            parts += _format_predictions(run.predicted)
        else:
            parts.append(_escape(f"No predictions: {run.missing}"))
    return "\n\n".join(parts) + "\n"


def _format_predictions(predicted: Predicted) -> list[str]:
    rows = tabulate_classes(predicted.by_class, _MARKDOWN_CLASSES)
    count = len(predicted.by_class.f1)
    limit = f": the {len(rows)} of {count:,} with the lowest F1" if len(rows) < count else ""
    parts = [
        f"### Classes{limit}",
        f"Expected calibration error {predicted.reliability.error:.2%} on {predicted.images:,} "
        f"images of {_escape(predicted.split)}, step {predicted.step:,}.",
        _markdown_table(CLASS_COLUMNS[:5], [row[:5] for row in rows]),
    ]
    if predicted.pairs:
        head = ["class", "taken for", "images", "of the class"]
        pairs = [
            (p.true, p.predicted, f"{p.images:,}", f"{p.fraction:.1%}") for p in predicted.pairs
        ]
        parts += ["### Most confused pairs", _markdown_table(head, pairs)]
    return parts


def _markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [map(_escape, head), ["---"] * len(head), *(map(_escape, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escape(text: str) -> str:
    """Return `text` so that Markdown shows it unchanged, on one line."""
    return " ".join(text.split()).translate(_MARKDOWN_SPECIAL)
