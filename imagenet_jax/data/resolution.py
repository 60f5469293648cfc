"""Progressive resizing: small crops first, for speed, then full ones."""

import dataclasses
import math
from fractions import Fraction

from ml_collections import ConfigDict

from imagenet_jax.data.sampler import in_steps


@dataclasses.dataclass(frozen=True)
class Resolution:
    """The side of the training crops, in pixels, by step.

    From `start` at epoch `ramp[0]` in a straight line to `final` at `ramp[1]`, then rounded to a
    multiple of `multiple` (as in FFCV's ImageNet recipe, Leclerc et al. 2022, arXiv:2306.12517), so
    that the step is compiled for few shapes; constant within an epoch and outside the ramp.
    """

    start: int
    final: int
    ramp: tuple[float, float]
    multiple: int
    steps_per_epoch: Fraction

    def at(self, step: Fraction | int) -> int:
        """The side at step 0, 1, ..."""
        if self.start == self.final:
            return self.final
        low, high = self.ramp
        # Whole epochs; a step counts to the epoch that its first image belongs to.
        epoch = math.floor(Fraction(step) / Fraction(self.steps_per_epoch))
        if epoch >= high:
            return self.final
        side = self.start + (self.final - self.start) * max(0.0, epoch - low) / (high - low)
        return min(self.final, max(self.start, self._rounded(side)))

    def _rounded(self, side: float) -> int:
        return math.floor(side / self.multiple + 0.5) * self.multiple

    def sizes(self, epochs: float) -> list[int]:
        """Every side that a run of so many epochs uses, smallest first."""
        different = min(math.ceil(epochs), math.ceil(self.ramp[1]) + 1)  # all later ones are final
        starts = (in_steps(epoch, self.steps_per_epoch) for epoch in range(different))
        return sorted({self.at(math.ceil(start)) for start in starts})


def resolution_of(augment: ConfigDict, steps_per_epoch: Fraction) -> Resolution:
    """What `config.augment` asks for."""
    return Resolution(
        start=augment.start_size or augment.image_size,
        final=augment.image_size,
        ramp=tuple(augment.size_ramp),
        multiple=augment.size_multiple,
        steps_per_epoch=steps_per_epoch,
    )
