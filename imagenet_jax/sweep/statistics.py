"""Statistics over a few seeds: Student's intervals, paired t-tests, Holm's correction.

None stands for a quantity that so few values do not determine.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

CONFIDENCE = 0.95
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Summary:
    """Mean and spread of a sample, or of the differences of two paired samples.

    Attributes:
      mean: NaN if a value is NaN or infinite.
      deviation: the standard deviation with n - 1 in the denominator; None for a single value and
        if the mean is NaN.
      half_width: of the 95 % confidence interval of the mean, t * s / sqrt(n) (Student 1908).
      p: of differences: the two-sided paired t-test of a mean of 0. None for one pair and for equal
        differences, whose t is undefined.
    """

    count: int
    mean: float
    deviation: float | None
    half_width: float | None
    p: float | None = None


@dataclass(frozen=True)
class SettingResult:
    """The results of one setting.

    Attributes:
      name: of the setting.
      values: {column: text} of the swept fields.
      metric: {seed: value} of the finished trials.
      states: {seed: state} of all trials.
      device_seconds: of training, one per finished trial that recorded its speed.
      images_per_second: likewise.
    """

    name: str
    values: Mapping[str, str]
    metric: Mapping[int, float]
    states: Mapping[int, str]
    device_seconds: Sequence[float]
    images_per_second: Sequence[float]

    def count(self, state: str) -> int:
        """Return the number of trials in this state."""
        return list(self.states.values()).count(state)


@dataclass(frozen=True)
class Row:
    """A setting's result with its statistics; None if too few trials have finished.

    Attributes:
      difference: from the baseline, over the seeds that both have finished; None for the baseline.
      p: of the difference, adjusted by Holm for all rows that have one.
    """

    result: SettingResult
    is_baseline: bool
    summary: Summary | None
    difference: Summary | None
    p: float | None

    @property
    def is_significant(self) -> bool:
        return self.p is not None and self.p < SIGNIFICANT


def compare(results: Sequence[SettingResult], baseline: str) -> list[Row]:
    """Return one row per result, compared with the result named `baseline`."""
    (base,) = [result for result in results if result.name == baseline]
    differences = []
    for result in results:
        seeds = sorted(result.metric.keys() & base.metric.keys())
        pair = [[r.metric[seed] for seed in seeds] for r in (result, base)]
        differences.append(paired_difference(*pair) if seeds and result is not base else None)
    adjusted = holm([d.p if d else None for d in differences])
    return [
        Row(r, r is base, summarize(list(r.metric.values())) if r.metric else None, d, p)
        for r, d, p in zip(results, differences, adjusted, strict=True)
    ]


def summarize(values: Sequence[float]) -> Summary:
    """Return the summary of `values`; ValueError if there are none."""
    if not len(values):
        raise ValueError("no values")
    x = np.asarray(values, np.float64)
    n, mean = len(x), float(x.mean()) if np.isfinite(x).all() else math.nan
    if n == 1 or math.isnan(mean):
        return Summary(n, mean, None, None)
    deviation = float(x.std(ddof=1))
    quantile = float(special.stdtrit(n - 1, (1 + CONFIDENCE) / 2))
    return Summary(n, mean, deviation, quantile * deviation / math.sqrt(n))


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> Summary:
    """Summarize and test `values[i] - baseline[i]`; ValueError for unequal lengths."""
    summary = summarize([a - b for a, b in zip(values, baseline, strict=True)])
    # Rounding leaves a small deviation in differences that are equal.
    noise = 1e-12 * max(map(abs, (*values, *baseline)))
    if summary.deviation is None or summary.deviation <= noise:
        return summary
    t = summary.mean / (summary.deviation / math.sqrt(summary.count))
    return replace(summary, p=2 * float(special.stdtr(summary.count - 1, -abs(t))))


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Return p-values adjusted for multiple comparisons by Holm (1979), in order; None stays None.

    Comparing them with a level keeps the probability of any false positive below that level, for
    any dependence between the tests.
    """
    known = sorted((p, i) for i, p in enumerate(ps) if p is not None)
    adjusted: list[float | None] = [None] * len(ps)
    largest = 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[i] = largest
    return adjusted
