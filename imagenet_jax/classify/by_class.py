"""A classifier class by class: precision, recall, F1, confusions, calibration."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

_BINS = 15  # of confidence, as in Guo et al. 2017
_SHOWN = 50  # classes in the terminal's table; the JSON has all
_LABELLED = 40  # classes beyond which the picture's axes have no names


@dataclasses.dataclass(frozen=True)
class ByClass:
    """What predictions of a whole split say.

    Attributes:
      class_names: label -> name.
      accuracy: share of right predictions.
      calibration_error: see `calibration_error`.
      precision, recall, f1: f64[C]; 0 where a class was never predicted, or never there.
      support: i64[C], images of each class.
      confusion: i64[C, C], [true, predicted].
    """

    class_names: tuple[str, ...]
    accuracy: float
    calibration_error: float
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    support: np.ndarray
    confusion: np.ndarray

    def as_json(self) -> dict[str, Any]:
        """Plain values; classes in the order of their labels."""
        present = self.support > 0
        columns = {
            "name": self.class_names,
            "precision": self.precision.tolist(),
            "recall": self.recall.tolist(),
            "f1": self.f1.tolist(),
            "images": self.support.tolist(),
        }
        return {
            "accuracy": self.accuracy,
            "calibration_error": self.calibration_error,
            # Means over the classes that are there, each counting once.
            "precision": float(self.precision[present].mean()),
            "recall": float(self.recall[present].mean()),
            "f1": float(self.f1[present].mean()),
            "classes": [
                dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
            ],
            "confusion": self.confusion.tolist(),
        }


def by_class(labels: np.ndarray, probabilities: np.ndarray, names: tuple[str, ...]) -> ByClass:
    """From i[N] labels and f[N, C] probabilities."""
    predicted = probabilities.argmax(axis=1)
    every = np.arange(len(names))
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=every, zero_division=0.0
    )
    return ByClass(
        class_names=names,
        accuracy=float((predicted == labels).mean()),
        calibration_error=calibration_error(labels, probabilities),
        precision=precision,
        recall=recall,
        f1=f1,
        support=support,
        confusion=confusion_matrix(labels, predicted, labels=every),
    )


class Reliability(NamedTuple):
    """Confidence and accuracy within bins of equal width, of (i / B, (i + 1) / B].

    Attributes:
      images: i64[B], images of each bin.
      confidence, accuracy: f64[B], means over them; NaN where there is none.
    """

    images: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def error(self) -> float:
        """Expected calibration error (Guo et al. 2017, arXiv:1706.04599, equation 3)."""
        there = self.images > 0
        gaps = np.abs(self.accuracy - self.confidence)[there]
        return float((gaps * self.images[there]).sum() / self.images.sum())


def reliability(labels: np.ndarray, probabilities: np.ndarray, bins: int = _BINS) -> Reliability:
    """From i[N] labels and f[N, C] probabilities, as the reliability diagrams of Guo et al."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    # Bins are open below and closed above, as in the paper.
    where = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    images = np.bincount(where, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = [
            np.bincount(where, weights=v, minlength=bins) / images for v in (confidence, right)
        ]
    return Reliability(images, *means)


def calibration_error(labels: np.ndarray, probabilities: np.ndarray, bins: int = _BINS) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv:1706.04599, equation 3).

    The mean distance, over images, of confidence and accuracy within bins of equal width.
    """
    return reliability(labels, probabilities, bins).error


def print_by_class(report: ByClass) -> None:
    """A table of the classes, the hardest first, and the means."""
    table = Table(title="by class, lowest F1 first")
    table.add_column("class")
    for column in ("precision", "recall", "F1", "images", "most often taken for"):
        table.add_column(column, justify="left" if column.startswith("most") else "right")
    shown = np.argsort(report.f1, kind="stable")[:_SHOWN]
    for label in shown.tolist():
        wrong = report.confusion[label].copy()
        wrong[label] = 0
        other = int(wrong.argmax())
        table.add_row(
            report.class_names[label],
            f"{report.precision[label]:.1%}",
            f"{report.recall[label]:.1%}",
            f"{report.f1[label]:.1%}",
            f"{report.support[label]:,}",
            f"{report.class_names[other]} ({wrong[other]:,})" if wrong[other] else "",
        )
    console = Console(highlight=False, markup=False)
    console.print(table)
    if len(report.f1) > len(shown):
        console.print(f"and {len(report.f1) - len(shown):,} more")
    means = report.as_json()
    console.print(
        f"accuracy {report.accuracy:.2%}; means over classes: precision {means['precision']:.2%}, "
        f"recall {means['recall']:.2%}, F1 {means['f1']:.2%}; expected calibration error "
        f"{report.calibration_error:.2%}",
        soft_wrap=True,
    )


def draw_confusion(report: ByClass, path: Path) -> None:
    """Write the confusion matrix as a picture: rows are true classes, and add up to 1."""
    from matplotlib.figure import Figure

    classes = len(report.class_names)
    named = classes <= _LABELLED
    side = min(12.0, 3.0 + 0.35 * classes) if named else 8.0
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot()
    shares = report.confusion / np.maximum(report.confusion.sum(axis=1, keepdims=True), 1)
    picture = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
    axes.set(xlabel="predicted", ylabel="true", title=f"accuracy {report.accuracy:.2%}")
    if named:
        axes.set_xticks(range(classes), report.class_names, rotation=90)
        axes.set_yticks(range(classes), report.class_names)
        for true, predicted in zip(*np.nonzero(report.confusion), strict=True):
            axes.text(
                predicted, true, str(report.confusion[true, predicted]),
                ha="center", va="center", fontsize=8,
                color="white" if shares[true, predicted] > 0.5 else "black",
            )  # fmt: skip
    figure.colorbar(picture, label="share of the true class", shrink=0.8)
    figure.savefig(path, dpi=100, format="png")
