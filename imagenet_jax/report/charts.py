"""The charts of a report as values: the page and the PNGs draw the same ones."""

import bisect
import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from imagenet_jax.report.records import Run

MOST_POINTS = 4000  # of a curve; more are thinned out, and the page says so
NAMED_CLASSES = 40  # more have no room for their names on an axis
SQUARE_CLASSES = 100  # more make no readable confusion matrix


class Series(NamedTuple):
    """A line of a chart.

    Attributes:
      run: index of its run.
      role: "train", "ema", "raw" or "classes": how it is drawn.
      x, y: of its points; None is a gap.
      text: what to say of each point when hovering.
      size: of its marks, pixels; () where they are all alike.
    """

    run: int
    role: str
    name: str
    x: list[float | None]
    y: list[float | None]
    text: list[str]
    size: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Chart:
    """One chart: title, axes with units, lines.

    Attributes:
      key: of the page's element, and name of a file.
      kind: "curve", "reliability", "histogram", "classes" (bars by name), "ranks" or "confusion".
      value_format: of y, as d3-format and Python have it in common.
      logarithmic: whether y starts on a logarithmic axis; None where it must not.
      cells: of a confusion matrix, [true][predicted] counts.
      names: of classes along an axis.
    """

    key: str
    kind: str
    title: str
    x_title: str
    y_title: str
    value_format: str
    series: tuple[Series, ...]
    logarithmic: bool | None = None
    cells: list[list[int]] | None = None
    names: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return fields | {"series": [line._asdict() for line in self.series]}


# key, title, axis, format, logarithmic, value while training, value of an evaluation
_CURVES = (
    ("loss", "Loss", "cross-entropy (nats)", ".4f", True, "loss", "loss"),
    ("top1", "Top-1 accuracy", "top-1 (% of images)", ".2%", None, "top1", "top1"),
    ("learning_rate", "Learning rate", "learning rate", ".3g", False, "learning_rate", None),
    ("grad_norm", "Gradient norm", "global L2 norm", ".4g", True, "grad_norm", None),
)
_SPEED = (
    ("images_per_second", "Throughput", "images per second", ",.0f", None,
     "images_per_second", None),
    ("input_wait", "Waiting for input", "share of time (%)", ".1%", None, "input_wait", None),
)  # fmt: skip


def curves(runs: Sequence[Run]) -> list[Chart]:
    """Loss, top-1, learning rate and gradient norm; those that no run has are left out."""
    return _charts(runs, _CURVES)


def speed(runs: Sequence[Run]) -> list[Chart]:
    """Throughput and the share of time that the step waits for input."""
    return _charts(runs, _SPEED)


def _charts(runs: Sequence[Run], kinds: Sequence[tuple]) -> list[Chart]:
    charts = []
    in_epochs = all(run.steps_per_epoch for run in runs)
    for key, title, axis, value_format, logarithmic, trained, evaluated in kinds:
        series = []
        for i, run in enumerate(runs):
            lines = [line for line in run.metrics if line["split"] == "train"]
            name = f"{run.name}: training" if evaluated else run.name
            series += _line(i, run, "train", name, lines, trained, in_epochs)
            for weights in ("ema", "raw") if evaluated else ():
                lines = [line for line in run.evaluations if line["weights"] == weights]
                split = lines[0]["split"] if lines else ""
                name = f"{run.name}: {split}, {'average' if weights == 'ema' else 'raw'} weights"
                series += _line(i, run, weights, name, lines, evaluated, in_epochs)
        if series:
            x_title = "epoch" if in_epochs else "step"
            charts.append(
                Chart(
                    key, "curve", title, x_title, axis, value_format, tuple(series), logarithmic
                )
            )  # fmt: skip
    return charts


def _line(
    index: int,
    run: Run,
    role: str,
    name: str,
    lines: list[dict[str, Any]],
    field: str,
    in_epochs: bool,
) -> list[Series]:
    lines = [line for line in lines if field in line]
    if not lines:
        return []
    lines = lines[:: math.ceil(len(lines) / MOST_POINTS)]
    return [
        Series(
            index,
            role,
            name,
            _epochs(run, lines) if in_epochs else [line["step"] for line in lines],
            [finite(line[field]) for line in lines],
            [f"step {line['step']:,}" for line in lines],
        )
    ]


def _epochs(run: Run, lines: list[dict[str, Any]]) -> list[float | None]:
    """Return where the lines are in epochs: as written, or from the last line before that says."""
    known = {0: 0.0} | {line["step"]: line["epoch"] for line in run.metrics if "epoch" in line}
    steps = sorted(known)
    found: list[float | None] = []
    for line in lines:
        last = steps[bisect.bisect_right(steps, line["step"]) - 1]
        found.append(known[last] + (line["step"] - last) / (run.steps_per_epoch or 1))
    return found


def thinned(runs: Sequence[Run]) -> bool:
    """Whether a curve does not show all its points."""
    return any(sum(line["split"] == "train" for line in run.metrics) > MOST_POINTS for run in runs)


def reliability(runs: Sequence[Run]) -> Chart | None:
    """Accuracy over confidence, of all runs that were predicted with."""
    series = []
    for i, run in enumerate(runs):
        if not run.predicted:
            continue
        bins = run.predicted.reliability
        series.append(
            Series(
                i,
                "reliability",
                run.name,
                [finite(x) for x in bins.confidence],
                [finite(y) for y in bins.accuracy],
                [f"{n:,} image{'' if n == 1 else 's'}" for n in bins.images.tolist()],
                # The area of a mark says how many images it stands for.
                tuple((4 + 14 * np.sqrt(bins.images / bins.images.max())).tolist()),
            )
        )
    if not series:
        return None
    return Chart(
        "reliability", "reliability", "Reliability", "confidence (%)", "accuracy (%)", ".1%",
        tuple(series),
    )  # fmt: skip


def confidences(runs: Sequence[Run]) -> Chart | None:
    """How many images each bin of the reliability diagram has."""
    series = []
    for i, run in enumerate(runs):
        if run.predicted:
            images = run.predicted.reliability.images
            centres = (np.arange(len(images)) + 0.5) / len(images)
            shares = images / images.sum()
            text = [f"{n:,} image{'' if n == 1 else 's'}" for n in images.tolist()]
            series.append(Series(i, "bars", run.name, centres.tolist(), shares.tolist(), text))
    if not series:
        return None
    return Chart(
        "confidence", "histogram", "Confidence", "confidence (%)", "images (%)", ".1%",
        tuple(series),
    )  # fmt: skip


def class_accuracy(runs: Sequence[Run]) -> Chart | None:
    """Recall of each class, which is its accuracy: bars by name, or a line by rank where there are
    many classes."""
    with_classes = [(i, run.predicted) for i, run in enumerate(runs) if run.predicted]
    if not with_classes:
        return None
    most = max(len(predicted.by_class.class_names) for _, predicted in with_classes)
    series = []
    for i, predicted in with_classes:
        found = predicted.by_class
        there = np.flatnonzero(found.support)
        if most > NAMED_CLASSES:
            there = there[np.argsort(found.recall[there], kind="stable")]
        text = [found.class_names[label] for label in there.tolist()]
        x = np.arange(1.0, len(there) + 1) if most > NAMED_CLASSES else there.astype(float)
        values = found.recall[there].tolist()
        series.append(Series(i, "classes", runs[i].name, x.tolist(), values, text))
    if most > NAMED_CLASSES:
        return Chart(
            "classes", "ranks", "Accuracy of each class, lowest first", "rank of the class",
            "accuracy (%)", ".1%", tuple(series),
        )  # fmt: skip
    names = max((p.by_class.class_names for _, p in with_classes), key=len)
    return Chart(
        "classes", "classes", "Accuracy of each class", "class", "accuracy (%)", ".1%",
        tuple(series), names=names,
    )  # fmt: skip


def confusion(index: int, run: Run) -> Chart | None:
    """The confusion matrix, where it is small enough to be read."""
    if not run.predicted or len(run.predicted.by_class.class_names) > SQUARE_CLASSES:
        return None
    found = run.predicted.by_class
    return Chart(
        f"confusion-{index}", "confusion", f"Confusion matrix, {run.name}", "predicted class",
        "true class", ",d", (), cells=found.confusion.tolist(), names=found.class_names,
    )  # fmt: skip


def hidden_roles(runs: Sequence[Run]) -> list[str]:
    """Lines that several runs would crowd the charts with, until they are asked for."""
    kinds = {line["weights"] for run in runs for line in run.evaluations}
    return ["raw"] if len(runs) > 1 and kinds == {"ema", "raw"} else []


def finite(value: float) -> float | None:
    """`value` as JSON can hold it."""
    return float(value) if math.isfinite(value) else None
