"""The charts of a report as data. The page and the PNG files draw the same charts."""

import bisect
import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from imagenet_jax.classify.by_class import NAMED_CLASSES
from imagenet_jax.formatting import counted
from imagenet_jax.report.read import Run
from imagenet_jax.training.metrics import WEIGHTS_LABELS, shown_metrics

MAX_POINTS = 4000  # of a curve; longer curves are thinned, and the page says so
CONFUSION_CLASSES = 100  # with more classes, a confusion matrix is unreadable


@dataclasses.dataclass(frozen=True)
class Series:
    """A line of a chart.

    Attributes:
      run: index of the run.
      role: "train", "ema", "raw", or the kind of the chart; determines how the line is drawn.
      x, y: coordinates of the points; None is a gap.
      text: hover text of each point.
      size: sizes of the markers in pixels; () if they are all equal.
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
    """A chart.

    Attributes:
      key: part of the id of its element in the page.
      kind: "curve", "reliability", "histogram", "classes" (bars), "ranks" or "confusion".
      value_format: format of y, in the common subset of d3-format and Python.
      logarithmic: whether the y axis is initially logarithmic; None: always linear.
      cells: counts [true][predicted] of a confusion matrix.
      names: names of the classes along an axis.
    """

    key: str
    kind: str
    title: str
    y_title: str
    value_format: str
    x_title: str = ""
    series: tuple[Series, ...] = ()
    logarithmic: bool | None = None
    cells: list[list[int]] | None = None
    names: tuple[str, ...] = ()


_OPTIMIZATION = (
    Chart("learning_rate", "curve", "Learning rate", "learning rate", ".3g", logarithmic=False),
    Chart("grad_norm", "curve", "Gradient norm", "global L2 norm", ".4g", logarithmic=True),
)
_SPEED = (
    Chart("images_per_second", "curve", "Throughput", "images per second", ",.0f"),
    Chart("input_wait", "curve", "Waiting for input", "fraction of time (%)", ".1%"),
)


def make_curves(runs: Sequence[Run]) -> list[Chart]:
    """Return the charts of each metric, the learning rate and the gradient norm, if logged."""
    charts = []
    for metric in shown_metrics(max(run.num_classes for run in runs)):
        unit = "%" if metric.is_share else metric.unit
        charts.append(
            Chart(
                metric.name,
                "curve",
                metric.label[0].upper() + metric.label[1:],
                f"{metric.label} ({unit})" if unit else metric.label,
                metric.format,
                logarithmic=None if metric.is_share else not metric.higher_is_better,
            )
        )
    return _fill((*charts, *_OPTIMIZATION), runs)


def make_speed(runs: Sequence[Run]) -> list[Chart]:
    """Return the charts of throughput and of the time spent waiting for input, if logged."""
    return _fill(_SPEED, runs)


def _fill(charts: Sequence[Chart], runs: Sequence[Run]) -> list[Chart]:
    """Return the charts with a line for each run and kind of weights that have the field."""
    x_title = "epoch" if all(run.steps_per_epoch for run in runs) else "step"
    filled = []
    for chart in charts:
        series = []
        for i, run in enumerate(runs):
            groups = {"train": [line for line in run.metrics if line["split"] == "train"]}
            for line in run.evaluations:
                groups.setdefault(line["weights"], []).append(line)
            for role in ("train", *WEIGHTS_LABELS):
                lines = [line for line in groups.get(role, ()) if chart.key in line]
                lines = lines[:: math.ceil(len(lines) / MAX_POINTS) or 1]
                if not lines:
                    continue
                name = "training"
                if role != "train":
                    name = f"{lines[0]['split']}, {WEIGHTS_LABELS[role]} weights"
                steps = [line["step"] for line in lines]
                series.append(
                    Series(
                        run=i,
                        role=role,
                        name=f"{run.name}: {name}" if len(runs) > 1 else name,
                        x=_find_epochs(run, steps) if x_title == "epoch" else steps,
                        y=[_finite(line[chart.key]) for line in lines],
                        text=[f"step {step:,}" for step in steps],
                    )
                )
        if series:
            filled.append(dataclasses.replace(chart, x_title=x_title, series=tuple(series)))
    return filled


def _find_epochs(run: Run, steps: Sequence[int]) -> list[float | None]:
    """Return the epoch of each step: as logged, or computed from the last logged one."""
    known = {0: 0.0} | {line["step"]: line["epoch"] for line in run.metrics if "epoch" in line}
    logged = sorted(known)
    before = [logged[bisect.bisect_right(logged, step) - 1] for step in steps]
    per_epoch = run.steps_per_epoch or 1
    return [
        known[last] + (step - last) / per_epoch for step, last in zip(steps, before, strict=True)
    ]


def is_thinned(runs: Sequence[Run]) -> bool:
    """Return whether a curve omits some of its points."""
    return any(sum(line["split"] == "train" for line in run.metrics) > MAX_POINTS for run in runs)


def make_calibration(runs: Sequence[Run]) -> list[Chart]:
    """Return the reliability diagram and the histogram of confidences, [] without predictions."""
    accuracy, fraction = [], []
    for i, run in enumerate(runs):
        if not run.predicted:
            continue
        bins = run.predicted.reliability
        text = [counted(n, "image") for n in bins.images.tolist()]
        # The area of a marker is proportional to its number of images.
        size = tuple((4 + 14 * np.sqrt(bins.images / bins.images.max())).tolist())
        x = [_finite(value) for value in bins.confidence]
        y = [_finite(value) for value in bins.accuracy]
        accuracy.append(Series(i, "reliability", run.name, x, y, text, size))
        centers = (np.arange(len(bins.images)) + 0.5) / len(bins.images)
        height = bins.images / bins.images.sum()
        fraction.append(Series(i, "histogram", run.name, centers.tolist(), height.tolist(), text))
    x_title = "confidence (%)"
    charts = (
        Chart("reliability", "reliability", "Reliability", "accuracy (%)", ".1%", x_title),
        Chart("confidence", "histogram", "Confidence", "images (%)", ".1%", x_title),
    )
    lines = zip(charts, (accuracy, fraction), strict=True)
    return [dataclasses.replace(chart, series=tuple(own)) for chart, own in lines if own]


def make_class_accuracy(runs: Sequence[Run]) -> list[Chart]:
    """Return the chart of the accuracy (recall) of each class, [] without predictions.

    It has a bar per class name, or a line by rank if there are more than `NAMED_CLASSES` classes.
    """
    series = []
    all_names = (run.predicted.by_class.class_names for run in runs if run.predicted)
    names = max(all_names, key=len, default=())
    ranked = len(names) > NAMED_CLASSES
    for i, run in enumerate(runs):
        if not run.predicted:
            continue
        found = run.predicted.by_class
        present = np.flatnonzero(found.support)
        if ranked:
            present = present[np.argsort(found.recall[present], kind="stable")]
        x = np.arange(1.0, len(present) + 1) if ranked else present.astype(float)
        text = [found.class_names[label] for label in present.tolist()]
        y = found.recall[present].tolist()
        series.append(Series(i, "classes", run.name, x.tolist(), y, text))
    chart = Chart(
        key="classes",
        kind="ranks" if ranked else "classes",
        title="Accuracy of each class" + ", lowest first" * ranked,
        y_title="accuracy (%)",
        value_format=".1%",
        x_title="rank of the class" if ranked else "class",
        series=tuple(series),
        names=() if ranked else names,
    )
    return [chart] if series else []


def make_confusion(index: int, run: Run) -> list[Chart]:
    """Return the confusion matrix, [] without predictions or with too many classes."""
    if not run.predicted or len(run.predicted.by_class.class_names) > CONFUSION_CLASSES:
        return []
    found = run.predicted.by_class
    return [
        Chart(
            key=f"confusion-{index}",
            kind="confusion",
            title=f"Confusion matrix, {run.name}",
            y_title="true class",
            value_format=",d",
            x_title="predicted class",
            cells=found.confusion.tolist(),
            names=found.class_names,
        )
    ]


def find_hidden_roles(runs: Sequence[Run]) -> list[str]:
    """Return the roles of lines to hide initially: raw weights, if several runs have both kinds."""
    kinds = {line["weights"] for run in runs for line in run.evaluations}
    return ["raw"] if len(runs) > 1 and kinds == {"ema", "raw"} else []


def _finite(value: float) -> float | None:
    """Return `value`, or None if JSON cannot represent it."""
    return float(value) if math.isfinite(value) else None
