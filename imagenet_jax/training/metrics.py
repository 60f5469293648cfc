"""Classification metrics, one entry each in `METRICS`.

To add a metric, add an entry. Evaluation and, with `in_training`, the train step compute it; the
console, metrics.jsonl, TensorBoard, the eval files, tables, reports and model cards show it.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from imagenet_jax.training.losses import cross_entropy


def label_rank(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return how many classes rank before the label in each row; 0 means top-1 is right.

    Ties go to the lower class index, as in argmax, so equal logits earn nothing; a row with a NaN
    ranks its label last.

    Args:
      logits: f32[B, C].
      labels: i32[B].

    Returns:
      i32[B] in [0, C].
    """
    num_classes = logits.shape[-1]
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    tie_before = (logits == own) & (jnp.arange(num_classes) < labels[:, None])
    rank = jnp.sum((logits > own) | tie_before, axis=-1)
    return jnp.where(jnp.isnan(logits).any(axis=-1), num_classes, rank)


@dataclasses.dataclass(frozen=True)
class Metric:
    """One metric: how it is computed from a batch, and how it is shown.

    Its value over a split or a logging interval is `finish(mean over the images of per_image)`.

    Attributes:
      name: key in metrics.jsonl and the eval files; also the tag in TensorBoard.
      label: name in tables and on the console.
      per_image: (logits f32[B, C], labels i32[B]) -> [B], a number or bool for each image.
      format: how a value is printed; "%" formats mark shares of 1.
      unit: of the value, such as "nats"; "" for a share or a pure number.
      higher_is_better: the direction of improvement.
      ranks_checkpoints: config.checkpoint.best_metric may name it (list it in that field, too).
      in_training: the train step also computes it. The training loss is logged in any case.
      min_classes: with fewer classes the value says nothing and is not printed; files keep it.
      finish: applied to the mean, such as `math.exp` for a perplexity.
    """

    name: str
    label: str
    per_image: Callable[[jax.Array, jax.Array], jax.Array]
    format: str = ".2%"
    unit: str = ""
    higher_is_better: bool = True
    ranks_checkpoints: bool = True
    in_training: bool = False
    min_classes: int = 2
    finish: Callable[[float], float] = float

    @property
    def is_share(self) -> bool:
        return self.format.endswith("%")

    def text(self, value: float | None) -> str:
        """Return `value` in the metric's format, or a dash if there is none."""
        return "–" if value is None else format(value, self.format)


# In the order of the columns of tables.
METRICS = {
    metric.name: metric
    for metric in (
        Metric(
            "top1", "top-1",
            lambda logits, labels: label_rank(logits, labels) < 1,
            in_training=True,
        ),
        Metric(
            "top5", "top-5",
            # At most C: a row with a NaN, which ranks its label C, is never right.
            lambda logits, labels: label_rank(logits, labels) < min(5, logits.shape[-1]),
            min_classes=6,
        ),
        Metric("loss", "loss", cross_entropy, ".4f", unit="nats", higher_is_better=False),
    )
}  # fmt: skip


# Names of the two kinds of weights in text; files have the keys.
WEIGHTS_LABELS = {"raw": "raw", "ema": "EMA"}


def shown_metrics(num_classes: int) -> list[Metric]:
    """Return the metrics that are printed for a data set of `num_classes` classes."""
    return [metric for metric in METRICS.values() if num_classes >= metric.min_classes]


def finish_means(means: Mapping[str, float]) -> dict[str, float]:
    """Return the values of metrics from means over images; names without an entry stay."""
    return {n: METRICS[n].finish(mean) if n in METRICS else mean for n, mean in means.items()}


def score(values: Mapping[str, Any], name: str) -> float:
    """Return the value of the metric `name`, with the sign that makes higher better.

    -inf for a value that is missing, NaN or infinite, so that it ranks last.
    """
    value = values.get(name)
    if value is None or not math.isfinite(value):
        return -math.inf
    return value if METRICS[name].higher_is_better else -value
