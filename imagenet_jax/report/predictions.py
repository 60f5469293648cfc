"""Predictions of a checkpoint on the evaluation split, and the images, filters and maps to show."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from imagenet_jax.classify.by_class import (
    ByClass,
    Predictions,
    Reliability,
    by_class,
    predict_split,
    reliability,
)  # fmt: skip
from imagenet_jax.data import pipeline, sources
from imagenet_jax.explain import methods, pictures
from imagenet_jax.explain.explain import build_model, normalize_pixels
from imagenet_jax.progress import announce
from imagenet_jax.training.load_weights import Weights

_PAIRS, _SAMPLES_PER_PAIR = 10, 6
_MISTAKES = 24
_RIGHT, _WRONG = 6, 6  # explained images
_FILTERS = 64
_LAYERS, _CHANNELS = 4, 24  # of feature maps


class Sample(NamedTuple):
    """An image of the evaluation split and its prediction.

    Attributes:
      pixels: u8[S, S, 3], the model's input.
      name: name of the record.
      true, predicted: class names.
      confidence: probability of the predicted class.
    """

    pixels: np.ndarray
    name: str
    true: str
    predicted: str
    confidence: float

    @property
    def is_right(self) -> bool:
        return self.true == self.predicted


class Pair(NamedTuple):
    """Two classes that are confused.

    Attributes:
      images: number of images of `true` predicted as `predicted`.
      fraction: `images` as a fraction of all images of `true`.
      samples: the images with the highest confidence.
    """

    true: str
    predicted: str
    images: int
    fraction: float
    samples: tuple[Sample, ...]


@dataclasses.dataclass(frozen=True)
class Predicted:
    """Predictions of one checkpoint on the evaluation split.

    Attributes:
      step: step of the checkpoint.
      weights: "raw" or "ema".
      split: name of the evaluation split.
      images: number of images.
      pairs: the most confused classes, most frequent first.
      mistakes: misclassified images with the highest confidence.
      wrong: total number of misclassified images.
    """

    step: int
    weights: str
    split: str
    images: int
    top1: float
    top5: float
    by_class: ByClass
    reliability: Reliability
    pairs: tuple[Pair, ...]
    mistakes: tuple[Sample, ...]
    wrong: int


class LayerImages(NamedTuple):
    """Images of some channels of a layer.

    Attributes:
      name: name of the layer.
      images: u8[N, h, w] or u8[N, h, w, 3].
      channels: number of channels of the layer, at least N.
    """

    name: str
    images: np.ndarray
    channels: int


@dataclasses.dataclass(frozen=True)
class Explained:
    """First-layer filters, feature maps and Grad-CAM of one checkpoint.

    Attributes:
      filters: filters of the first convolution.
      maps: feature maps of the first image of `cams`, from input to output.
      cam_layer: the layer of the Grad-CAM maps.
      cams: images, each with its overlay u8[S, S, 3] of the map of the predicted class.
    """

    filters: LayerImages
    maps: tuple[LayerImages, ...]
    cam_layer: str
    cams: tuple[tuple[Sample, np.ndarray], ...]


def predict_and_explain(
    weights: Weights, step: int, fingerprint: str
) -> tuple[Predicted, Explained]:
    """Predict the evaluation split in one pass, then load and explain the images to show.

    Args:
      step: step of the checkpoint.
      fingerprint: fingerprint of the split that the run was evaluated on; "" if unknown.

    Raises UserError if the data is missing or does not fit the weights.
    """
    config, found = weights.config, predict_split(weights, fingerprint)
    source = sources.open_source(config.data, config.data.eval_split)
    load = partial(_load_samples, weights, source, found)
    labels, probabilities = found.labels, found.probabilities
    guesses, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(guesses != labels)
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")]
    of_label = probabilities[np.arange(len(labels)), labels]
    more_likely = (probabilities > of_label[:, None]).sum(axis=1)
    classes = by_class(labels, probabilities, found.class_names)
    with announce("reading the images to show"):
        pairs = _find_pairs(classes, labels[wrong], guesses[wrong], lambda i: load(wrong[i]))
        mistakes = load(wrong[:_MISTAKES])
    predicted = Predicted(
        step=step,
        weights="ema" if config.ema.decay > 0 else "raw",
        split=config.data.eval_split,
        images=len(labels),
        top1=classes.accuracy,
        top5=float((more_likely < 5).mean()),
        by_class=classes,
        reliability=reliability(labels, probabilities),
        pairs=pairs,
        mistakes=mistakes,
        wrong=len(wrong),
    )
    right = np.flatnonzero(guesses == labels)
    right = right[np.unique(np.linspace(0, len(right) - 1, min(_RIGHT, len(right))).astype(int))]
    chosen = np.concatenate([right, wrong[:_WRONG]])
    with announce("computing feature maps and Grad-CAM"):
        explained = _explain(weights, load(chosen), found.outputs[guesses[chosen]])
    return predicted, explained


def _find_pairs(
    classes: ByClass,
    labels: np.ndarray,
    guesses: np.ndarray,
    load: Callable[[np.ndarray], tuple[Sample, ...]],
) -> tuple[Pair, ...]:
    """Return the largest off-diagonal entries of the confusion matrix.

    `labels` and `guesses` are those of the wrong predictions, most confident first. `load` returns
    samples, given indices of wrong predictions.
    """
    confusion, names = classes.confusion.copy(), classes.class_names
    np.fill_diagonal(confusion, 0)
    largest = np.argsort(-confusion, axis=None, kind="stable")[:_PAIRS]
    pairs = []
    for true, guess in zip(*np.unravel_index(largest, confusion.shape), strict=True):
        count = int(confusion[true, guess])
        if count:
            rows = np.flatnonzero((labels == true) & (guesses == guess))[:_SAMPLES_PER_PAIR]
            fraction = count / int(classes.support[true])
            pairs.append(Pair(names[true], names[guess], count, fraction, load(rows)))
    return tuple(pairs)


def _load_samples(
    weights: Weights, source: sources.Source, found: Predictions, rows: np.ndarray
) -> tuple[Sample, ...]:
    """Return the images of some rows of the predictions, as decoded in evaluation."""
    if not len(rows):
        return ()
    config, names = weights.config, found.class_names
    subset = sources.Subset(source, found.indices[rows])
    batches = pipeline.eval_batches(subset, config)
    pixels = np.concatenate([batch["image"] for batch in batches])[: len(rows)]
    guesses = found.probabilities[rows].argmax(axis=1)
    return tuple(
        Sample(
            pixels[i].copy(),
            subset[i]["id"],
            names[found.labels[row]],
            names[guesses[i]],
            float(found.probabilities[row, guesses[i]]),
        )
        for i, row in enumerate(rows.tolist())
    )


def _explain(weights: Weights, samples: Sequence[Sample], outputs: np.ndarray) -> Explained:
    """Return feature maps of the first sample, and Grad-CAM of each for its predicted class.

    `outputs` i[N] are the model's outputs for the predicted classes.
    """
    model = build_model(weights)
    images = normalize_pixels(weights, np.stack([sample.pixels for sample in samples]))
    names = methods.conv_layers(model)
    kernel = np.asarray(methods.first_kernel(model), np.float32)
    heats = np.asarray(methods.grad_cam(model, images, jnp.asarray(outputs), names[-1]))
    feature_maps = []
    for i in np.unique(np.linspace(0, len(names) - 1, _LAYERS).round().astype(int)):
        maps = np.asarray(methods.activations(model, images[:1], names[i])[0], np.float32)
        scaled = np.round(255 * pictures.scale_channels(maps, _CHANNELS)).astype(np.uint8)
        feature_maps.append(LayerImages(names[i], scaled, maps.shape[-1]))
    filters = pictures.filter_tiles(kernel[..., :_FILTERS])
    overlays = [pictures.overlay(s.pixels, heat) for s, heat in zip(samples, heats, strict=True)]
    return Explained(
        filters=LayerImages(names[0], filters, kernel.shape[-1]),
        maps=tuple(feature_maps),
        cam_layer=names[-1],
        cams=tuple(zip(samples, overlays, strict=True)),
    )
