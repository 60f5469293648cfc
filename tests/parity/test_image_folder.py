"""Nested and linked class folders against torchvision's ImageFolder."""

import os

import numpy as np
import pytest

torchvision = pytest.importorskip("torchvision")

from conftest import tiny_config  # noqa: E402
from PIL import Image  # noqa: E402

from imagenet_jax.data import sources  # noqa: E402

pytestmark = pytest.mark.parity

NESTED = (
    "b/2.png", "b/a/1.png", "b/a/x/0.png", "b/a-b/3.png", "a/z/deep/er/9.png", "a/10.png",
    "a/9.PNG", "c/z.png", "c/B.jpg", "c/é.png",
)  # fmt: skip


def test_nested_class_folders_are_read_as_torchvision_reads_them(tmp_path):
    root, elsewhere = tmp_path / "data" / "train", tmp_path / "elsewhere"
    for file in (
        *(root / name for name in NESTED),
        elsewhere / "1.png",
        elsewhere / "in" / "2.png",
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(file)
    (root / "b" / "link").symlink_to(elsewhere)

    theirs = torchvision.datasets.ImageFolder(str(root))
    data = tiny_config(root.parent).data
    data.source = "folder"
    source = sources.open_source(data, "train")
    assert list(source.class_names) == theirs.classes
    want = [(os.path.relpath(path, root.parent), label) for path, label in theirs.samples]
    assert [(source[i]["id"], source[i]["label"]) for i in range(len(source))] == want
