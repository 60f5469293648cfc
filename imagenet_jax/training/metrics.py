"""Classification metrics. To add a metric, add an entry to `METRICS`.

Evaluation computes it, and so does the train step if it has `in_training`. The console,
metrics.jsonl, TensorBoard, eval files, tables, reports and model cards then show it.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from imagenet_jax.training.losses import cross_entropy


def label_rank(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the number of classes that rank before the label in each row; 0: top-1 is correct.

    Of equal logits, the lower class index ranks first, as in argmax. In a row with a NaN, the label
    ranks last.

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
    """How a metric is computed and shown.

    Its value over a split or a logging interval is `finish(mean of per_image over the images)`.

    Attributes:
      name: key in metrics.jsonl and eval files, and tag in TensorBoard.
      label: name in tables and on the console.
      per_image: (logits f32[B, C], labels i32[B]) -> [B], a number or bool for each image.
      format: format of printed values; "%" formats are for fractions in [0, 1].
      unit: unit of the value, such as "nats"; "" if it has none.
      higher_is_better: whether larger values are better.
      ranks_checkpoints: whether config.checkpoint.best_metric may name it; that field must list it
        too.
      in_training: whether the train step computes it. The training loss is always logged.
      min_classes: with fewer classes, the metric is trivial and not printed, only written to files.
      finish: function applied to the mean, such as `math.exp` for a perplexity.
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
        """Return `value` in the format of the metric, or a dash for None."""
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
            # Below C, so that a row with a NaN, whose label has rank C, is never correct.
            lambda logits, labels: label_rank(logits, labels) < min(5, logits.shape[-1]),
            min_classes=6,
        ),
        Metric("loss", "loss", cross_entropy, ".4f", unit="nats", higher_is_better=False),
    )
}  # fmt: skip


# What the two kinds of weights are called in text; files have the keys.
WEIGHTS_LABELS = {"raw": "raw", "ema": "EMA"}


def shown_metrics(num_classes: int) -> list[Metric]:
    """Return the metrics to print for a data set with `num_classes` classes."""
    return [metric for metric in METRICS.values() if num_classes >= metric.min_classes]


def finish_means(means: Mapping[str, float]) -> dict[str, float]:
    """Apply `finish` to the mean of each metric; other values stay as they are."""
    return {n: METRICS[n].finish(mean) if n in METRICS else mean for n, mean in means.items()}


def score(values: Mapping[str, Any], name: str) -> float:
    """Return the value of the metric `name`, negated if lower is better.

    A missing, NaN or infinite value becomes -inf, so that it ranks last.
    """
    value = values.get(name)
    if value is None or not math.isfinite(value):
        return -math.inf
    return value if METRICS[name].higher_is_better else -value
