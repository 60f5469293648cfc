"""Whether two runs of one config are the same run: bit for bit, or as near as rounding allows.

Two programs that round otherwise (another processor, another version of the compiler) start a
rounding apart, and training moves them further apart with each step, until they are two runs of
the same recipe. Measured on the quickstart, the largest relative differences between jax 0.10.2 and
0.12.0, SSE4.2 and AVX2, and in float32 also one core and two, one device and eight:

    step                      1      2      3      4      5      7     10     20     30     50
    float32   loss        2e-07  2e-07  2e-05  1e-03  1e-02  6e-03  3e-02  7e-02  1e-01  1e-01
              grad_norm   2e-03  3e-03  2e-02  4e-01  3e-02  2e-01  1e-01  3e-01  4e-01  2e-01
    bfloat16  loss        4e-05  2e-04  5e-05  8e-04  2e-03  1e-02  5e-03  9e-02  3e-02  9e-02
              grad_norm   2e-02  6e-02  2e-02  2e-01  1e-01  2e-02  2e-01  3e-01  2e-01  8e-02

So the tolerance is small at first, grows tenfold a step, and ends where all that can be said is
that the run neither diverged nor stood still. The first steps tell other data, another seed, other
initial weights and another loss; a small change of the learning rate shows bit for bit alone.
"""

import math
from typing import Any, NamedTuple

# Of |a - b| / max(|a|, |b|): at the first step, its growth with each step, and its end.
_GROWTH = 10.0
_FIRST = {
    "float32": {"loss": 1e-5, "grad_norm": 1e-2},
    "bfloat16": {"loss": 2e-3, "grad_norm": 2e-1},
}
_LAST = {"loss": 0.5, "grad_norm": 0.8}
# Standard errors between two top-1 accuracies on as many independent images.
_ERRORS = 3.0

QUANTITIES = ("loss", "grad_norm")


class Difference(NamedTuple):
    """The first value that is another one.

    Attributes:
      where: such as "step 3".
      quantity: such as "loss".
      published, here: the values.
      allowed: largest relative difference; 0 where the bits have to agree.
    """

    where: str
    quantity: str
    published: Any
    here: Any
    allowed: float

    def __str__(self) -> str:
        allowed = "the bits have to agree"
        if self.allowed:
            apart = relative(self.published, self.here)
            allowed = f"relative difference {apart:.1e}, allowed {self.allowed:.1e}"
        return (
            f"{self.where}, {self.quantity}: published {self.published!r}, here {self.here!r} "
            f"({allowed})"
        )


def tolerance(step: int, quantity: str, dtype: str) -> float:
    """The relative difference that rounding explains after `step` steps of this compute dtype."""
    first, last = _FIRST[dtype][quantity], _LAST[quantity]
    # The power of a late step is no float.
    grows = step - 1 < math.log(last / first) / math.log(_GROWTH)
    return first * _GROWTH ** (step - 1) if grows else last


def relative(a: float, b: float) -> float:
    """|a - b| / max(|a|, |b|); 0 where both are 0, infinite where one is no number."""
    if a == b:
        return 0.0
    apart = abs(a - b) / max(abs(a), abs(b))
    return apart if math.isfinite(apart) else math.inf


def first_difference(
    published: list[dict[str, Any]], here: list[dict[str, Any]], *, exact: bool, dtype: str
) -> Difference | None:
    """Of steps [{step, loss, grad_norm}] in order; None where the runs agree.

    Args:
      here: as many steps or fewer; those that are there are compared.
      exact: bit for bit.
      dtype: "float32" or "bfloat16", of the model.
    """
    for theirs, ours in zip(published, here, strict=False):
        for quantity in QUANTITIES:
            allowed = 0.0 if exact else tolerance(theirs["step"], quantity, dtype)
            # A NaN is equal to nothing, so it differs.
            if not relative(theirs[quantity], ours[quantity]) <= allowed:
                where = f"step {theirs['step']}"
                return Difference(where, quantity, theirs[quantity], ours[quantity], allowed)
    return None


def largest_difference(published: list[dict[str, Any]], here: list[dict[str, Any]]) -> float:
    """The largest relative difference of all steps and quantities that both have."""
    pairs = zip(published, here, strict=False)
    return max(relative(a[name], b[name]) for a, b in pairs for name in QUANTITIES)


def weights_difference(
    published: dict[str, Any], here: dict[str, Any], where: str
) -> Difference | None:
    """Of two `checksums`: the first tensor that is another one."""
    theirs, ours = published["tensors"], here["tensors"]
    for name in sorted(theirs.keys() | ours.keys()):
        if theirs.get(name) != ours.get(name):
            return Difference(where, f"SHA-256 of {name}", theirs.get(name), ours.get(name), 0.0)
    return None


def accuracy_tolerance(top1: float, count: int) -> float:
    """How far the top-1 of a run that rounds otherwise may lie, in absolute accuracy.

    As for two independent samples of `count` images: three standard errors of the difference. The
    two runs see the same images, which draws them together, and are two runs, which draws them
    apart. Laplace's estimate keeps the error of 100 % above 0.
    """
    share = (top1 * count + 1) / (count + 2)
    return _ERRORS * math.sqrt(2 * share * (1 - share) / count)
