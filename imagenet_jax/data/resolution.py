"""Progressive resizing: small training crops first, for speed, then full ones."""

import dataclasses
import math
from fractions import Fraction
from typing import Self

from ml_collections import ConfigDict

from imagenet_jax.data.sampler import in_steps


@dataclasses.dataclass(frozen=True)
class Resolution:
    """The side of the training crops in pixels, as a function of the step.

    It grows linearly from `start` at epoch `ramp[0]` to `final` at epoch `ramp[1]`, is rounded to a
    multiple of `multiple` so that the step is compiled for few shapes, and is constant within an
    epoch. This is the schedule of FFCV's ImageNet recipe (Leclerc et al. 2022, arXiv:2306.12517).
    """

    start: int
    final: int
    ramp: tuple[float, float]
    multiple: int
    steps_per_epoch: Fraction

    @classmethod
    def from_config(cls, augment: ConfigDict, steps_per_epoch: Fraction) -> Self:
        """Return the resolution that `config.augment` asks for."""
        return cls(
            start=augment.start_size or augment.image_size,
            final=augment.image_size,
            ramp=tuple(augment.size_ramp),
            multiple=augment.size_multiple,
            steps_per_epoch=steps_per_epoch,
        )

    def at(self, step: Fraction | int) -> int:
        """Return the side at step 0, 1, ..."""
        if self.start == self.final:
            return self.final
        low, high = self.ramp
        # A step belongs to the epoch of its first image.
        epoch = math.floor(Fraction(step) / Fraction(self.steps_per_epoch))
        if epoch >= high:
            return self.final
        side = self.start + (self.final - self.start) * max(0.0, epoch - low) / (high - low)
        rounded = math.floor(side / self.multiple + 0.5) * self.multiple
        return min(self.final, max(self.start, rounded))

    def sizes(self, epochs: float) -> list[int]:
        """Return every side that a run of `epochs` epochs uses, smallest first."""
        ramp_end = math.ceil(self.ramp[1]) + 1  # the side is `final` from there on
        starts = (
            in_steps(epoch, self.steps_per_epoch)
            for epoch in range(min(math.ceil(epochs), ramp_end))
        )
        return sorted({self.at(math.ceil(start)) for start in starts})
