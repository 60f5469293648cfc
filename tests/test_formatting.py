"""Quantities with units."""

import pytest

from imagenet_jax.formatting import format_bytes, format_duration, format_flops


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0.0 s"), (0, "0.0 s"), (12.34, "12.3 s"), (59.6, "59.6 s"), (750, "12.5 min"),
        (11_520, "3.2 h"), (86_400 + 3_661, "25.0 h"), (4 * 86_400, "4.0 days"),
    ],
)  # fmt: skip
def test_duration(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (999, "999 bytes"), (3 * 2**19, "1.5 MiB"), (80 * 2**30, "80.0 GiB"),
    ],
)  # fmt: skip
def test_bytes(count, text):
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (3.2e9, "3.2 GFLOP"), (9.9e14, "990 TFLOP"), (9.999e14, "1 PFLOP"), (1.5e16, "15 PFLOP"),
        (5e4, "50,000 FLOP"),
    ],
)  # fmt: skip
def test_flops(count, text):
    assert format_flops(count) == text
