"""The picture of the augmentations."""

import numpy as np
import pytest
from PIL import Image

from benchmarks import augmentations
from imagenet_jax.data.augment import randaugment


def test_photographs_are_square_and_undistorted():
    photographs = augmentations.photographs(427)  # their height: nothing is resized
    source = augmentations.load_sample_images().images
    assert photographs.shape == (2, 427, 427, 3)
    left = (640 - 427) // 2
    np.testing.assert_array_equal(photographs[0], source[0][:, left : left + 427])


@pytest.mark.full
def test_the_picture_is_drawn(tmp_path, capsys, monkeypatch):
    small = augmentations.photographs(32)
    monkeypatch.setattr(augmentations, "photographs", lambda: small)
    titles = []
    monkeypatch.setattr(
        augmentations.plt.Axes, "set_title", lambda axis, title, **kwargs: titles.append(title)
    )
    out = tmp_path / "new" / "augmentations.png"
    assert augmentations.main([f"--out={out}"]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert Image.open(out).width > 800
    for name in randaugment.OPERATIONS[1:]:
        assert any(title.startswith(name.replace("_", " ")) for title in titles)
    for name in ("mixup", "cutmix", "random erasing", "color jitter", "lighting", "AutoAugment"):
        assert any(title.startswith(name) for title in titles)
