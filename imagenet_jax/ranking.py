"""Order of evaluations: which one is best by a metric."""

import math
from collections.abc import Mapping
from typing import Any


def rank(metrics: Mapping[str, Any], name: str) -> float:
    """Return the metric's value with the sign that makes higher better: minus the loss.

    A value that is NaN, infinite or missing ranks last.
    """
    value = metrics.get(name)
    if value is None or not math.isfinite(value):
        return -math.inf
    return -value if name == "loss" else value
