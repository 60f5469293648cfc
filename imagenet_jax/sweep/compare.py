"""An ablation's outcomes, setting by setting, and what they say against the baseline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from imagenet_jax.sweep.statistics import Difference, Summary, holm, paired_difference, summarize

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Outcome:
    """The runs of one setting.

    Attributes:
      name: of the setting.
      values: {column: text} of the fields that the sweep varies.
      metric: {seed: value} of the finished runs.
      states: {seed: "finished" | "failed" | ...} of all runs.
      device_seconds: of training, one per finished run that recorded its speed.
      images_per_second: the same.
    """

    name: str
    values: Mapping[str, str]
    metric: Mapping[int, float]
    states: Mapping[int, str]
    device_seconds: Sequence[float]
    images_per_second: Sequence[float]

    def count(self, *states: str) -> int:
        """How many runs are in one of the states."""
        return sum(state in states for state in self.states.values())

    @property
    def progress(self) -> str:
        """ "3", or "2 of 3, 1 failed": finished runs, and what became of the others."""
        finished = self.count("finished")
        if finished == len(self.states):
            return str(finished)
        others = dict.fromkeys(s for s in self.states.values() if s != "finished")
        told = ", ".join(f"{self.count(state)} {state}" for state in others)
        return f"{finished} of {len(self.states)}, {told}"


@dataclass(frozen=True)
class Line:
    """An outcome with its statistics; None where there are too few finished runs.

    Attributes:
      difference: to the baseline, over the seeds that both have finished; None for the baseline.
      p: of the difference, adjusted by Holm for all lines that have one.
    """

    outcome: Outcome
    is_baseline: bool
    summary: Summary | None
    difference: Difference | None
    p: float | None

    @property
    def is_significant(self) -> bool:
        return self.p is not None and self.p < SIGNIFICANT


def compare(outcomes: Sequence[Outcome], baseline: str) -> list[Line]:
    """One line per outcome; the one named `baseline` is what the others are compared with."""
    (base,) = [outcome for outcome in outcomes if outcome.name == baseline]
    differences = [None if o is base else _difference(o, base) for o in outcomes]
    adjusted = holm([d.p if d else None for d in differences])
    return [
        Line(o, o is base, summarize(list(o.metric.values())) if o.metric else None, d, p)
        for o, d, p in zip(outcomes, differences, adjusted, strict=True)
    ]


def _difference(outcome: Outcome, base: Outcome) -> Difference | None:
    seeds = sorted(outcome.metric.keys() & base.metric.keys())
    if not seeds:
        return None
    return paired_difference([outcome.metric[s] for s in seeds], [base.metric[s] for s in seeds])
