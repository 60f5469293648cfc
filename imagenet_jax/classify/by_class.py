"""Predicts a split: precision, recall, F1 and confusions of each class, and calibration."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from imagenet_jax.classify.images import compile_model, watch
from imagenet_jax.errors import UserError, writing
from imagenet_jax.files import write_atomically, write_json
from imagenet_jax.runtime.processes import run_on_first
from imagenet_jax.training.evaluate import eval_batches
from imagenet_jax.training.experiment import make_evaluation
from imagenet_jax.training.load_weights import Weights

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BINS = 15  # bins of confidence, as in Guo et al. 2017
_SHOWN = 50  # number of classes in the printed table; the JSON has all
NAMED_CLASSES = 40  # with more classes, an axis has no room for their names


class Predictions(NamedTuple):
    """Class probabilities of a split.

    Attributes:
      indices: i64[N], the records that can be decoded, in order.
      labels: i32[N], their labels.
      probabilities: f32[N, K], for the classes of the data.
      class_names: readable name of each label.
      outputs: i[K], the model's output for each label.
    """

    indices: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    class_names: tuple[str, ...]
    outputs: np.ndarray


def predict_split(weights: Weights, fingerprint: str = "") -> Predictions:
    """Predict every image of config.data.eval_split, and show progress.

    Every process must call it.

    Args:
      fingerprint: the fingerprint that the split must have; "": any.

    Raises UserError if the data does not fit the weights, or has a different fingerprint.
    """
    config = weights.config
    evaluation = make_evaluation(config, weights.mesh, weights.known)
    source, outputs = evaluation.source, evaluation.outputs
    if fingerprint and source.fingerprint != fingerprint:
        raise UserError(
            f"{source.name} differs from the images that the run was evaluated on, or stores them "
            f"differently (fingerprint {source.fingerprint}, not {fingerprint}); set their folder "
            "with --config.data.path=DIR"
        )
    step, size = compile_model(weights, outputs), config.eval.batch_size
    batches = watch(eval_batches(evaluation), evaluation, "classifying")
    indices, labels, probabilities = [], [], []
    for k, batch in enumerate(batches):
        batch.pop("skipped", None)
        out = jax.device_get(step(weights.tree, batch))
        (rows,) = np.nonzero(out["mask"] > 0)
        indices.append(k * size + rows)
        labels.append(out["label"][rows])
        probabilities.append(out["probabilities"][rows])
    if outputs is None:
        outputs = np.arange(weights.known.count)
    names = weights.class_names
    return Predictions(
        indices=np.concatenate(indices),
        labels=np.concatenate(labels),
        probabilities=np.concatenate(probabilities),
        class_names=tuple(names[i] for i in outputs) if names else source.class_names,
        outputs=outputs,
    )


@dataclasses.dataclass(frozen=True)
class ByClass:
    """Statistics of the predictions of a split, by class.

    Attributes:
      class_names: name of each label.
      accuracy: fraction of correct predictions.
      calibration_error: see `Reliability.error`.
      precision, recall, f1: f64[C]; 0 for a class that is never predicted, or has no images.
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
        """Return a JSON value, with the classes in the order of their labels."""
        scores = {"precision": self.precision, "recall": self.recall, "f1": self.f1}
        columns = {"name": self.class_names, **scores, "images": self.support}
        rows = zip(*(np.asarray(values).tolist() for values in columns.values()), strict=True)
        return {
            "accuracy": self.accuracy,
            "calibration_error": self.calibration_error,
            # Unweighted means over the classes that have images.
            **{name: float(values[self.support > 0].mean()) for name, values in scores.items()},
            "classes": [dict(zip(columns, row, strict=True)) for row in rows],
            "confusion": self.confusion.tolist(),
        }


def by_class(labels: np.ndarray, probabilities: np.ndarray, names: tuple[str, ...]) -> ByClass:
    """Return the statistics for i[N] labels and f[N, C] probabilities."""
    predicted = probabilities.argmax(axis=1)
    classes = np.arange(len(names))
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=classes, zero_division=0.0
    )
    accuracy = float((predicted == labels).mean())
    error = reliability(labels, probabilities).error
    confusion = confusion_matrix(labels, predicted, labels=classes)
    return ByClass(names, accuracy, error, precision, recall, f1, support, confusion)


class Reliability(NamedTuple):
    """Confidence and accuracy in bins of equal width. Bin i is (i / B, (i + 1) / B].

    Attributes:
      images: i64[B], number of images in each bin.
      confidence, accuracy: f64[B], means over the images; NaN for an empty bin.
    """

    images: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def error(self) -> float:
        """Expected calibration error (Guo et al. 2017, arXiv:1706.04599, equation 3).

        The difference between accuracy and confidence of each bin, averaged over the images.
        """
        filled = self.images > 0
        gaps = np.abs(self.accuracy - self.confidence)[filled]
        return float((gaps * self.images[filled]).sum() / self.images.sum())


def reliability(labels: np.ndarray, probabilities: np.ndarray, bins: int = _BINS) -> Reliability:
    """Return the reliability diagram (Guo et al.) for i[N] labels and f[N, C] probabilities."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    # As in the paper, bins include their upper bound but not their lower bound.
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    images = np.bincount(bin_of, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = [
            np.bincount(bin_of, weights=v, minlength=bins) / images for v in (confidence, right)
        ]
    return Reliability(images, *means)


def write_by_class(weights: Weights, directory: Path, stem: str) -> None:
    """Print the statistics. Write STEM_by_class.json and STEM_confusion.png to `directory`.

    Every process must call it; the first one prints and writes. Raises UserError if writing fails.
    """
    found = predict_split(weights)
    report = by_class(found.labels, found.probabilities, found.class_names)

    def write() -> None:
        print_by_class(report)
        table = directory / f"{stem}_by_class.json"
        picture = directory / f"{stem}_confusion.png"
        with writing(f"--by_class={directory}"):
            directory.mkdir(parents=True, exist_ok=True)
            write_json(table, report.as_json())
            write_atomically(picture, lambda part: save_confusion(report, part))
        print(f"by class: {table}  confusions: {picture}", flush=True)

    run_on_first(write)


CLASS_COLUMNS = ("class", "precision", "recall", "F1", "images", "most often predicted as")


def tabulate_classes(report: ByClass, limit: int) -> list[tuple[str, ...]]:
    """Return rows of `CLASS_COLUMNS` as text for at most `limit` classes, lowest F1 first."""
    rows: list[tuple[str, ...]] = []
    for label in np.argsort(report.f1, kind="stable")[:limit].tolist():
        wrong = report.confusion[label].copy()
        wrong[label] = 0
        other = int(wrong.argmax())
        rows.append(
            (
                report.class_names[label],
                f"{report.precision[label]:.1%}",
                f"{report.recall[label]:.1%}",
                f"{report.f1[label]:.1%}",
                f"{report.support[label]:,}",
                f"{report.class_names[other]} ({wrong[other]:,})" if wrong[other] else "",
            )
        )
    return rows


def print_by_class(report: ByClass) -> None:
    """Print the classes as a table, lowest F1 first, and the means."""
    table = Table(title="by class, lowest F1 first")
    for i, column in enumerate(CLASS_COLUMNS):
        table.add_column(column, justify="right" if 0 < i < 5 else "left")
    rows = tabulate_classes(report, _SHOWN)
    for row in rows:
        table.add_row(*row)
    console = Console(file=sys.stdout, highlight=False, markup=False)
    console.print(table)
    if len(report.f1) > len(rows):
        console.print(f"and {len(report.f1) - len(rows):,} more")
    means = report.as_json()
    console.print(
        f"accuracy {report.accuracy:.2%}; means over classes: precision {means['precision']:.2%}, "
        f"recall {means['recall']:.2%}, F1 {means['f1']:.2%}; expected calibration error "
        f"{report.calibration_error:.2%}",
        soft_wrap=True,
    )


def save_confusion(report: ByClass, path: Path) -> None:
    """Write the confusion matrix as a picture."""
    from matplotlib.figure import Figure

    classes = len(report.class_names)
    side = min(12.0, 3.0 + 0.35 * classes) if classes <= NAMED_CLASSES else 8.0
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel="predicted", ylabel="true", title=f"accuracy {report.accuracy:.2%}")
    draw_confusion(axes, report.confusion, report.class_names)
    figure.savefig(path, dpi=100)


def draw_confusion(
    axes: "Axes", confusion: np.ndarray, names: Sequence[str], numbered: int = NAMED_CLASSES
) -> None:
    """Draw counts i[C, C] [true, predicted] as fractions of each row.

    Args:
      numbered: maximum number of classes for which the cells show the counts.
    """
    fractions = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    picture = axes.imshow(fractions, vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
    if len(names) <= NAMED_CLASSES:
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        axes.set_yticks(range(len(names)), names, fontsize=7)
    if len(names) <= numbered:
        for true, predicted in zip(*np.nonzero(confusion), strict=True):
            axes.text(
                predicted, true, f"{confusion[true, predicted]:,}", ha="center", va="center",
                fontsize=7, color="white" if fractions[true, predicted] > 0.5 else "black",
            )  # fmt: skip
    axes.figure.colorbar(picture, ax=axes, label="fraction of the true class", shrink=0.8)
