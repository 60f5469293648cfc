"""Comparison of two runs of one config: bit for bit, or within what rounding explains.

Two programs that round differently (another processor or compiler version) differ by rounding at
the first step. Training amplifies the difference at each step, until they are two independent runs
of one recipe. Largest relative differences measured on the quickstart, between jax 0.10.2 and
0.12.0 and between SSE4.2 and AVX2; in float32 also between one core and two, and between one device
and eight:

    step                      1      2      3      4      5      7     10     20     30     50
    float32   loss        2e-07  2e-07  2e-05  1e-03  1e-02  6e-03  3e-02  7e-02  1e-01  1e-01
              grad_norm   2e-03  3e-03  2e-02  4e-01  3e-02  2e-01  1e-01  3e-01  4e-01  2e-01
    bfloat16  loss        4e-05  2e-04  5e-05  8e-04  2e-03  1e-02  5e-03  9e-02  3e-02  9e-02
              grad_norm   2e-02  6e-02  2e-02  2e-01  1e-01  2e-02  2e-01  3e-01  2e-01  8e-02

The tolerance therefore starts small, grows tenfold per step, and ends at a level that only excludes
runs that diverge or do not learn. The first steps detect different data, seeds, initial weights and
losses. A small change of the learning rate is detected only bit for bit.
"""

import math
from typing import Any, NamedTuple

# Tolerances of |a - b| / max(|a|, |b|): at the first step, growth per step, and the upper limit.
_FIRST = {
    "float32": {"loss": 1e-5, "grad_norm": 1e-2},
    "bfloat16": {"loss": 2e-3, "grad_norm": 2e-1},
}
_GROWTH = 10.0
_LAST = {"loss": 0.5, "grad_norm": 0.8}
_STANDARD_ERRORS = 3.0  # allowed between the top-1 accuracies of two runs

QUANTITIES = ("loss", "grad_norm")


class Difference(NamedTuple):
    """The first value that differs.

    Attributes:
      where: such as "step 3".
      quantity: such as "loss".
      published, here: the values.
      allowed: largest relative difference; 0 if the values must be identical.
    """

    where: str
    quantity: str
    published: Any
    here: Any
    allowed: float

    def __str__(self) -> str:
        allowed = "must be identical bit for bit"
        if self.allowed:
            found = relative_difference(self.published, self.here)
            allowed = f"relative difference {found:.1e}, allowed {self.allowed:.1e}"
        return (
            f"{self.where}, {self.quantity}: published {self.published!r}, here {self.here!r} "
            f"({allowed})"
        )


def tolerance(step: int, quantity: str, dtype: str) -> float:
    """Return the relative difference that rounding explains after `step` steps in `dtype`."""
    first, last = _FIRST[dtype][quantity], _LAST[quantity]
    # Checked before the power, which overflows at late steps.
    grows = step - 1 < math.log(last / first) / math.log(_GROWTH)
    return first * _GROWTH ** (step - 1) if grows else last


def relative_difference(a: float, b: float) -> float:
    """Return |a - b| / max(|a|, |b|); 0 for equal values, infinity for NaN and infinite ones."""
    if a == b:
        return 0.0
    difference = abs(a - b) / max(abs(a), abs(b))
    return difference if math.isfinite(difference) else math.inf


def first_difference(
    published: list[dict[str, Any]], here: list[dict[str, Any]], *, exact: bool, dtype: str
) -> Difference | None:
    """Return the first difference between steps [{step, loss, grad_norm}], or None.

    Args:
      here: the same steps, or the first ones of them.
      exact: compare bit for bit instead of within `tolerance`.
      dtype: compute dtype of the model, "float32" or "bfloat16".
    """
    for theirs, ours in zip(published, here, strict=False):
        for name in QUANTITIES:
            allowed = 0.0 if exact else tolerance(theirs["step"], name, dtype)
            if relative_difference(theirs[name], ours[name]) > allowed:
                where = f"step {theirs['step']}"
                return Difference(where, name, theirs[name], ours[name], allowed)
    return None


def largest_difference(published: list[dict[str, Any]], here: list[dict[str, Any]]) -> float:
    """Return the largest relative difference over the steps that both have."""
    pairs = zip(published, here, strict=False)
    return max(relative_difference(a[name], b[name]) for a, b in pairs for name in QUANTITIES)


def weights_difference(
    published: dict[str, Any], here: dict[str, Any], where: str
) -> Difference | None:
    """Return the first tensor whose checksums differ, or None."""
    theirs, ours = published["tensors"], here["tensors"]
    for name in sorted(theirs.keys() | ours.keys()):
        if theirs.get(name) != ours.get(name):
            return Difference(where, f"SHA-256 of {name}", theirs.get(name), ours.get(name), 0.0)
    return None


def accuracy_tolerance(top1: float, count: int) -> float:
    """Return the allowed absolute difference from `top1` for a run that rounds differently.

    It is three standard errors of the difference between two independent samples of `count` images.
    Laplace's estimate of the proportion keeps it above 0 at an accuracy of 100 %.
    """
    p = (top1 * count + 1) / (count + 2)
    return _STANDARD_ERRORS * math.sqrt(2 * p * (1 - p) / count)
