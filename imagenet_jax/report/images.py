"""What a checkpoint says of the evaluation split, and the images that show it."""

from collections.abc import Sequence

import numpy as np

from imagenet_jax.classify.by_class import by_class, reliability
from imagenet_jax.classify.images import Predictions, predict_split
from imagenet_jax.data import pipeline, sources
from imagenet_jax.report.explained import explain
from imagenet_jax.report.records import Explained, Pair, Predicted, Sample
from imagenet_jax.training.load_weights import Weights

_PAIRS, _OF_A_PAIR = 10, 6
_MISTAKES = 24
_RIGHT, _WRONG = 6, 6  # images that are explained


def look(weights: Weights, step: int, fingerprint: str) -> tuple[Predicted, Explained]:
    """One pass over the evaluation split, then the few images that the report shows.

    `fingerprint` is that of the run's split, "" where nothing says it.

    Raises UserError where the data is not there or does not fit the weights.
    """
    found = predict_split(weights, fingerprint)
    images = _Images(weights, found)
    labels, probabilities = found.labels, found.probabilities
    predicted = probabilities.argmax(axis=1)
    confidence = probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")]
    # In the top 5 where fewer than 5 classes are more likely.
    of_label = probabilities[np.arange(len(labels)), labels]
    better = (probabilities > of_label[:, None]).sum(axis=1)
    config = weights.config
    classes = by_class(labels, probabilities, images.class_names)
    summary = Predicted(
        step=step,
        weights="ema" if config.ema.decay > 0 else "raw",
        split=config.data.eval_split,
        images=len(labels),
        top1=classes.accuracy,
        top5=float((better < 5).mean()),
        by_class=classes,
        reliability=reliability(labels, probabilities),
        pairs=_pairs(classes.confusion, wrong, labels, predicted, images),
        mistakes=tuple(images(wrong[:_MISTAKES])),
        wrong=len(wrong),
    )
    right = np.flatnonzero(predicted == labels)
    right = right[np.unique(np.linspace(0, len(right) - 1, min(_RIGHT, len(right))).astype(int))]
    chosen = np.concatenate([right, wrong[:_WRONG]])
    return summary, explain(weights, images(chosen), found.outputs[predicted[chosen]])


def _pairs(
    confusion: np.ndarray,
    wrong: np.ndarray,
    labels: np.ndarray,
    predicted: np.ndarray,
    images: "_Images",
) -> tuple[Pair, ...]:
    """The largest numbers beside the diagonal of i64[C, C]."""
    off = confusion.copy()
    np.fill_diagonal(off, 0)
    largest = np.argsort(-off, axis=None, kind="stable")[:_PAIRS]
    pairs = []
    for true, other in zip(*np.unravel_index(largest, off.shape), strict=True):
        count = int(off[true, other])
        if count:
            these = wrong[(labels[wrong] == true) & (predicted[wrong] == other)]
            pairs.append(
                Pair(
                    images.class_names[true],
                    images.class_names[other],
                    count,
                    count / int(confusion[true].sum()),
                    tuple(images(these[:_OF_A_PAIR])),
                )
            )
    return tuple(pairs)


class _Images:
    """Rows of predictions -> Samples; each image is decoded as evaluation decodes it."""

    def __init__(self, weights: Weights, found: Predictions):
        config = weights.config
        self._config, self._found = config, found
        self._source = sources.open_source(config.data, config.data.eval_split)
        self.class_names = found.class_names

    def __call__(self, rows: Sequence[int] | np.ndarray) -> list[Sample]:
        rows = np.asarray(rows, np.int64)
        if not len(rows):
            return []
        found, config = self._found, self._config
        subset = sources.Subset(self._source, found.indices[rows])
        batches = pipeline.eval_batches(subset, config.data, config.eval)
        pixels = np.concatenate([batch["image"] for batch in batches])[: len(rows)]
        predicted = found.probabilities[rows].argmax(axis=1)
        return [
            Sample(
                pixels[i].copy(),
                subset[i]["id"],
                self.class_names[found.labels[row]],
                self.class_names[predicted[i]],
                float(found.probabilities[row, predicted[i]]),
            )
            for i, row in enumerate(rows.tolist())
        ]
