"""The report by class against counts made by hand and the papers' formulas."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from imagenet_jax.classify import by_class as classification

NAMES = ("cat", "dog", "emu")


def _one_hot(predicted, confidence=0.8):
    rest = (1 - confidence) / 2
    return np.where(np.eye(3)[predicted] > 0, confidence, rest)


def test_counts_by_hand(capsys, tmp_path):
    """4 cats of which 3 are seen as cats and 1 as a dog, 2 dogs both seen as cats, no emus."""
    labels = np.array([0, 0, 0, 0, 1, 1])
    report = classification.by_class(labels, _one_hot([0, 0, 0, 1, 0, 0]), NAMES)
    assert report.confusion.tolist() == [[3, 1, 0], [2, 0, 0], [0, 0, 0]]
    assert report.accuracy == 0.5
    plain = report.as_json()
    cat, dog, emu = plain["classes"]
    assert cat == {
        "name": "cat", "precision": 3 / 5, "recall": 3 / 4, "images": 4,
        "f1": pytest.approx(2 * (3 / 5) * (3 / 4) / (3 / 5 + 3 / 4)),
    }  # fmt: skip
    assert (dog["precision"], dog["recall"], dog["f1"], dog["images"]) == (0, 0, 0, 2)
    assert emu["images"] == 0
    assert plain["recall"] == 3 / 8  # over cats and dogs: nobody can recall an emu
    classification.print_by_class(report)
    out = capsys.readouterr().out
    assert "cat (2)" in out and "dog (1)" in out and "accuracy 50.00%" in out
    classification.save_confusion(report, tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as picture:
        assert len(picture.convert("RGB").getcolors(10**6)) > 20


def test_calibration_error_of_a_bin_is_the_distance_of_confidence_and_accuracy():
    labels = np.zeros(10, int)
    half_right = _one_hot([0] * 5 + [1] * 5, 0.8)
    assert classification.reliability(labels, half_right).error == pytest.approx(0.3)
    assert classification.reliability(labels, _one_hot([0] * 10, 1.0)).error == 0
    assert classification.reliability(labels, _one_hot([1] * 10, 1.0)).error == 1


@settings(max_examples=50)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 200), bins=st.integers(1, 20))
def test_calibration_error_is_the_papers_sum(seed, count, bins):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(3), count)
    labels = rng.integers(0, 3, count)
    want = 0.0
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    for m in range(bins):
        inside = (confidence > m / bins) & (confidence <= (m + 1) / bins)
        if inside.any():
            gap = abs(right[inside].mean() - confidence[inside].mean())
            want += inside.sum() / count * gap
    got = classification.reliability(labels, probabilities, bins).error
    assert got == pytest.approx(want, abs=1e-9)
