"""Statistics of a few seeds: Student's intervals, the paired t-test, Holm's correction.

Every function takes plain numbers; None stands for what so few of them do not tell.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """Of a sample: its size, mean, standard deviation and half the width of the interval.

    Attributes:
      mean: NaN where a value is NaN or infinite.
      deviation: with n - 1 in the denominator; None of one value, or where the mean is NaN.
      half_width: of the 95 % confidence interval of the mean, Student (1908): t * s / sqrt(n).
    """

    count: int
    mean: float
    deviation: float | None
    half_width: float | None


@dataclass(frozen=True)
class Difference:
    """Of paired samples: the summary of the differences and the paired t-test's p, two-sided.

    Attributes:
      p: None for one pair, and where all differences are the same: t has no value there.
    """

    summary: Summary
    p: float | None


def summarize(values: Sequence[float]) -> Summary:
    """Return mean, deviation and interval of `values`; a NaN or infinite one has no interval.

    Raises ValueError where there are no values.
    """
    if not len(values):
        raise ValueError("no values")
    x = np.asarray(values, np.float64)
    if not np.isfinite(x).all():
        return Summary(len(x), math.nan, None, None)
    n, mean = len(x), float(x.mean())
    if n == 1:
        return Summary(1, mean, None, None)
    deviation = float(x.std(ddof=1))
    quantile = float(special.stdtrit(n - 1, (1 + CONFIDENCE) / 2))
    return Summary(n, mean, deviation, quantile * deviation / math.sqrt(n))


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> Difference:
    """`values[i] - baseline[i]`, tested against a mean of zero; ValueError for unequal lengths."""
    pairs = zip(values, baseline, strict=True)
    summary = summarize([a - b for a, b in pairs])
    # Rounding leaves a trace of a deviation in differences that are the same.
    noise = 1e-12 * max(map(abs, (*values, *baseline)), default=0.0)
    if summary.deviation is None or summary.deviation <= noise:
        return Difference(summary, None)
    t = summary.mean / (summary.deviation / math.sqrt(summary.count))
    return Difference(summary, 2 * float(special.stdtr(summary.count - 1, -abs(t))))


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """The p-values adjusted for their number by Holm (1979), in their order; None stays.

    The chance of any false finding among them stays below the level that they are compared with,
    however they depend on each other.
    """
    known = sorted((p, i) for i, p in enumerate(ps) if p is not None)
    adjusted: list[float | None] = [None] * len(ps)
    largest = 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[i] = largest
    return adjusted
