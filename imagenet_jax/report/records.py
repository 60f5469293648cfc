"""What a report is drawn from: plain values and arrays of each run."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from imagenet_jax.classify.by_class import ByClass, Reliability


class Sample(NamedTuple):
    """An image of the evaluation split and what was predicted.

    Attributes:
      pixels: u8[S, S, 3], what the model saw.
      name: of the record.
      true, predicted: names of classes.
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
    """A class and what it is most often taken for.

    Attributes:
      images: of `true` predicted as `predicted`.
      share: of all images of `true`.
      samples: the most confident of them.
    """

    true: str
    predicted: str
    images: int
    share: float
    samples: tuple[Sample, ...]


@dataclasses.dataclass(frozen=True)
class Predicted:
    """What one checkpoint says of the evaluation split.

    Attributes:
      step, weights: which checkpoint, and of its weights "raw" or "ema".
      split: name of the evaluation split.
      images: predicted.
      pairs: the most confused, most frequent first.
      mistakes: the most confident, of `wrong` in all.
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


class FeatureMaps(NamedTuple):
    """The strongest channels of one layer for one image: u8[N, h, w], of `channels` in all."""

    layer: str
    maps: np.ndarray
    channels: int


@dataclasses.dataclass(frozen=True)
class Explained:
    """Where one checkpoint looks.

    Attributes:
      filters: u8[N, h, w, 3], of the layer `filters_layer` of `filters_count` filters.
      subject: the image of `feature_maps`, which go from the input to the output.
      cam_layer: of the Grad-CAM pictures.
      cams: images, and u8[S, S, 3] with what speaks for the predicted class laid over them.
    """

    filters: np.ndarray
    filters_layer: str
    filters_count: int
    subject: Sample
    feature_maps: tuple[FeatureMaps, ...]
    cam_layer: str
    cams: tuple[tuple[Sample, np.ndarray], ...]


@dataclasses.dataclass(frozen=True)
class Run:
    """A workdir, read.

    Attributes:
      name: tells it from the others of the report.
      workdir: as the user gave it.
      status: "finished", "training", ..., in a few words.
      config: {"optim.base_lr": 0.1, ...}.
      recipe: (name, value) as a paper's table has them.
      provenance: provenance.json.
      metrics: lines of metrics.jsonl, in order.
      evaluations: {"step", "split", "weights", "count", "top1", "top5", "loss"} by step.
      best_metric: "top1", "top5" or "loss".
      steps_per_epoch: None where nobody knows.
      predicted, explained: None where `missing` says why, in one line.
    """

    name: str
    workdir: str
    status: str
    config: dict[str, Any]
    recipe: list[tuple[str, str]]
    provenance: dict[str, Any]
    metrics: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    best_metric: str
    steps_per_epoch: float | None
    predicted: Predicted | None
    explained: Explained | None
    missing: str
