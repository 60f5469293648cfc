"""The report's tables as Markdown."""

from collections.abc import Iterable, Sequence

import numpy as np

from imagenet_jax.report import results
from imagenet_jax.report.records import Predicted, Run

_MOST_CLASSES = 20
_SPECIAL = str.maketrans({c: f"\\{c}" for c in "\\`*_[]<>|#"})


def markdown_of(runs: Sequence[Run]) -> str:
    """Results, differences, configs, provenance, the hardest classes and confusions."""
    title = " / ".join(run.name for run in runs)
    parts = [f"# {_text(title)}"]
    if len(runs) > 1:
        names = [run.name for run in runs]
        compared = [
            (name, *(f"{value} ({gap})" if gap else value for value, gap in cells))
            for name, cells in results.comparison_rows(runs)
        ]
        parts += ["## Results", "In brackets: the difference from the first run."]
        parts.append(_table(["", *names], compared))
        differing = results.config_differences(runs)
        if differing:
            parts += ["## Where the configs differ", _table(["field", *names], differing)]
    for run in runs:
        parts += [f"## {_text(run.name)}", _text(run.status)]
        rows = results.result_rows(run)
        if rows:
            parts.append(_table(results.RESULT_HEAD, rows))
        parts += ["### Config", _table(["", ""], run.recipe)]
        parts += ["### Provenance", _table(["", ""], results.provenance_rows(run.provenance))]
        if run.predicted:
            parts += _of_classes(run.predicted)
        else:
            parts.append(_text(f"Without predictions, as {run.missing}"))
    return "\n\n".join(parts) + "\n"


def _of_classes(predicted: Predicted) -> list[str]:
    found = predicted.by_class
    order = np.argsort(found.f1, kind="stable")[:_MOST_CLASSES].tolist()
    rows = [
        (
            found.class_names[label],
            f"{found.precision[label]:.1%}",
            f"{found.recall[label]:.1%}",
            f"{found.f1[label]:.1%}",
            f"{found.support[label]:,}",
        )
        for label in order
    ]
    limit = f": the {len(rows)} of lowest F1 of {len(found.f1):,}" * (len(rows) < len(found.f1))
    parts = [
        f"### Classes{limit}",
        f"Expected calibration error {predicted.reliability.error:.2%} on {predicted.images:,} "
        f"images of {_text(predicted.split)}, step {predicted.step:,}.",
        _table(["class", "precision", "recall", "F1", "images"], rows),
    ]
    if predicted.pairs:
        pairs = [(p.true, p.predicted, f"{p.images:,}", f"{p.share:.1%}") for p in predicted.pairs]
        parts += [
            "### Most confused pairs",
            _table(["class", "taken for", "images", "share of the class"], pairs),
        ]
    return parts


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(_text(cell) if cell != "---" else cell for cell in line) + " |"
        for line in lines
    )


def _text(value: str) -> str:
    """`value` as Markdown shows it unchanged, on one line."""
    return " ".join(value.split()).translate(_SPECIAL)
