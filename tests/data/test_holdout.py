"""The hold-out of a folder without splits: stratified, complete, the same in every run."""

import numpy as np
import pytest
from conftest import tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from imagenet_jax.data import sources
from imagenet_jax.errors import UserError


def _folder(root, counts):
    for label, count in enumerate(counts):
        directory = root / f"class{label}"
        directory.mkdir(parents=True)
        for i in range(count):
            Image.fromarray(np.full((4, 4, 3), i, np.uint8)).save(directory / f"{i}.png")
    return root


def _data(path, share=0.2):
    data = tiny_config(path).data
    data.source, data.holdout = "auto", share
    return data


def _ids(data, split):
    source = sources.open_source(data, split)
    return [source[i]["id"] for i in range(len(source))]


@settings(max_examples=15)
@given(counts=st.lists(st.integers(2, 30), min_size=1, max_size=4), share=st.floats(0.05, 0.9))
def test_each_class_gives_its_share_and_no_image_is_in_both(counts, share, tmp_path_factory):
    root = _folder(tmp_path_factory.mktemp("images") / "x", counts)
    data = _data(root, share)
    train, held = _ids(data, "train"), _ids(data, "validation")
    assert not set(train) & set(held)
    assert sorted(train + held) == sorted(
        f"x/class{c}/{i}.png" for c, n in enumerate(counts) for i in range(n)
    )
    for label, count in enumerate(counts):
        mine = sum(f"/class{label}/" in name for name in held)
        assert mine == min(count - 1, max(1, round(share * count)))
    assert _ids(data, "validation") == held


def test_a_new_image_changes_both_fingerprints_and_few_others_move(tmp_path):
    root = _folder(tmp_path / "x", [20, 20])
    data = _data(root)
    before = {s: sources.open_source(data, s).fingerprint for s in ("train", "validation")}
    assert before["train"] != before["validation"]
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(root / "class1" / "new.png")
    after = {s: sources.open_source(data, s).fingerprint for s in ("train", "validation")}
    assert before != after


def test_bad_input(tmp_path, digits_path):
    root = _folder(tmp_path / "x", [5, 1])
    with pytest.raises(UserError, match="class1 has one image; config.data.holdout needs at least"):
        sources.open_source(_data(root), "train")
    with pytest.raises(UserError, match="makes splits 'train' and 'validation', not 'test'"):
        sources.open_source(_data(root), "test")
    _folder(tmp_path / "y" / "train", [3])
    with pytest.raises(UserError, match=r"y has splits of its own \(train\)"):
        sources.open_source(_data(tmp_path / "y"), "train")
    with pytest.raises(
        UserError, match=r"config\.data\.holdout = 0\.2 works only for folders.*train\[:80%"
    ):
        sources.open_source(_data(digits_path), "train")
    data = _data(root)
    data.source, data.holdout = "folder", 0.0
    with pytest.raises(UserError, match=r"train does not exist.*--config\.data\.holdout=0\.2"):
        sources.open_source(data, "train")
