"""Tolerances of the comparison, the interval of the model card, checksums and the JSON form."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from imagenet_jax.baselines import folder, reproduction
from imagenet_jax.baselines.folder import checksums
from imagenet_jax.baselines.markdown import wilson_interval
from imagenet_jax.errors import UserError
from imagenet_jax.files import parse_json


@pytest.mark.parametrize(("right", "count"), [(0, 10), (358, 360), (360, 360), (38_000, 50_000)])
def test_interval_agrees_with_scipy(right, count):
    want = stats.binomtest(right, count).proportion_ci(0.95, "wilson")
    assert wilson_interval(right / count, count) == pytest.approx((want.low, want.high), abs=1e-7)


def test_equally_good_runs_are_within_the_tolerance():
    """Three standard errors of a difference: 0.27 % of pairs differ by more."""
    rng = np.random.default_rng(0)
    pairs = rng.binomial(1000, 0.8, (20_000, 2)) / 1000
    exceeds = [abs(a - b) > reproduction.accuracy_tolerance(a, 1000) for a, b in pairs]
    assert 0.0015 < np.mean(exceeds) < 0.0045
    assert reproduction.accuracy_tolerance(1.0, 360) > 1 / 360


def _steps(losses, norms):
    rows = enumerate(zip(losses, norms, strict=True), 1)
    return [{"step": i, "loss": a, "grad_norm": b} for i, (a, b) in rows]


def test_exact_comparison_finds_the_last_bit():
    published = _steps([1.0, 2.0, 3.0], [1.0, 1.0, 1.0])
    here = _steps([1.0, float(np.nextafter(np.float32(2), np.float32(3))), 4.0], [1.0, 1.0, 1.0])
    found = reproduction.first_difference(published, here, exact=True, dtype="float32")
    assert (found.where, found.quantity, found.published) == ("step 2", "loss", 2.0)
    assert "2.000000238418579" in str(found) and "bit for bit" in str(found)
    assert not reproduction.first_difference(published, published, exact=True, dtype="float32")
    assert not reproduction.first_difference(published, here[:1], exact=True, dtype="float32")


@settings(max_examples=50)
@given(
    st.sampled_from(["loss", "grad_norm"]),
    st.integers(1, 50),
    st.floats(1e-3, 1e3),
    st.sampled_from(["float32", "bfloat16"]),
)
def test_tolerance_is_relative_and_grows_with_the_step(quantity, step, value, dtype):
    allowed = reproduction.tolerance(step, quantity, dtype)
    assert allowed <= reproduction.tolerance(step + 1, quantity, dtype) < 1
    assert reproduction.tolerance(step, quantity, "float32") <= allowed
    published = {"step": step, "loss": value, "grad_norm": value}
    for factor, same in ((1 - 0.9 * allowed, True), (1 - 1.1 * allowed, False)):
        here = published | {quantity: value * factor}
        found = reproduction.first_difference([published], [here], exact=False, dtype=dtype)
        assert (found is None) == same
        if found:
            assert (found.where, found.quantity) == (f"step {step}", quantity)


def test_nan_always_differs():
    published, here = _steps([1.0], [1.0]), _steps([float("nan")], [1.0])
    assert reproduction.first_difference(published, here, exact=False, dtype="float32")


def test_checksums_agree_with_hashlib():
    tensors = {
        "b": np.arange(6, dtype=">f4").reshape(2, 3).T,  # neither little-endian nor row-major
        "a": np.int64(7),
    }
    got = checksums(tensors)
    b = np.ascontiguousarray(np.arange(6, dtype="<f4").reshape(2, 3).T)
    want = {
        "a": hashlib.sha256((7).to_bytes(8, "little")).hexdigest(),
        "b": hashlib.sha256(b.tobytes()).hexdigest(),
    }
    assert got["tensors"] == want
    listed = "".join(f"{digest}  {name}\n" for name, digest in want.items())
    assert got["all"] == hashlib.sha256(listed.encode()).hexdigest()


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


def test_incomplete_last_line_is_refused(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st')
    with pytest.raises(UserError, match="line 2"):
        folder.read_lines(path)


@settings(max_examples=50)
@given(_JSON)
def test_json_is_read_back_unchanged(value):
    written = {"value": value}
    assert parse_json(folder.format_json(written)) == written
