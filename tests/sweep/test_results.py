"""Statistics over seeds against SciPy, printed tables of t and the closed test for Holm."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from imagenet_jax.sweep.results import holm, paired_difference, summarize

numbers = st.floats(-100, 100).map(lambda x: round(x, 3))


@given(st.lists(numbers, min_size=2, max_size=8))
def test_summary_agrees_with_scipy(values):
    s = summarize(values)
    np.testing.assert_allclose(s.mean, math.fsum(values) / len(values), atol=1e-12)
    np.testing.assert_allclose(s.deviation, np.std(values, ddof=1), atol=1e-9)
    if s.deviation > 1e-6:
        low, high = stats.t.interval(
            0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values)
        )
        np.testing.assert_allclose((s.mean - s.half_width, s.mean + s.half_width), (low, high))


# Two-sided 5 % points of t, as tables print them since Fisher (1925).
@pytest.mark.parametrize(("n", "t"), [(2, 12.706), (3, 4.303), (4, 3.182), (5, 2.776), (11, 2.228)])
def test_interval_agrees_with_printed_tables(n, t):
    values = np.arange(n, dtype=float)
    s = summarize(values)
    # The variance of 0, 1, ..., n - 1 with n - 1 below is n (n + 1) / 12.
    assert s.half_width / math.sqrt((n + 1) / 12) == pytest.approx(t, abs=0.0005)


@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=8))
def test_paired_test_agrees_with_scipy(pairs):
    a, b = zip(*pairs, strict=True)
    d = paired_difference(a, b)
    if len({round(x - y, 6) for x, y in pairs}) == 1:
        assert d.p is None
        return
    expected = stats.ttest_rel(a, b)
    np.testing.assert_allclose(d.p, expected.pvalue, rtol=1e-6, atol=1e-12)
    interval = expected.confidence_interval(0.95)
    np.testing.assert_allclose(d.mean - d.half_width, interval.low, atol=1e-9)


def test_paired_test_agrees_with_student_1908():
    """The sleep data of Student (1908): t = 4.06, p = 0.0028."""
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    d = paired_difference(second, first)
    assert d.mean == pytest.approx(1.58)
    assert d.deviation == pytest.approx(1.23, abs=0.005)
    assert d.p == pytest.approx(0.00283, abs=5e-6)


def test_one_seed_has_no_deviation():
    s = summarize([0.7])
    assert (s.count, s.mean, s.deviation, s.half_width) == (1, 0.7, None, None)
    assert paired_difference([0.7], [0.6]).p is None


@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_equal_differences_have_no_p(shift):
    base = [0.1, 0.7, 0.35]
    assert paired_difference([x + shift for x in base], base).p is None


@settings(max_examples=50)
@given(st.lists(st.none() | st.floats(0, 1), max_size=6))
def test_holm_agrees_with_the_closed_test(ps):
    """The closed test: the largest Bonferroni p of all sets of hypotheses with this one."""
    known = [i for i, p in enumerate(ps) if p is not None]
    subsets = [s for n in range(1, len(known) + 1) for s in itertools.combinations(known, n)]
    for i, adjusted in enumerate(holm(ps)):
        if ps[i] is None:
            assert adjusted is None
            continue
        closed = max(min(1.0, len(s) * min(ps[j] for j in s)) for s in subsets if i in s)
        assert adjusted == pytest.approx(closed, abs=1e-12)


def test_unequal_or_missing_values_raise():
    with pytest.raises(ValueError):
        paired_difference([1.0], [1.0, 2.0])
    with pytest.raises(ValueError):
        summarize([])
