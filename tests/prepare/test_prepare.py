"""Preparing: miniature official archives and folders, repairs, resizing, tfds itself."""

import hashlib
import io
import json
import subprocess
import sys

import numpy as np
import pytest
from miniatures import (
    DEVKIT,
    LABELS,
    WNIDS,
    content,
    jpeg,
    make_folder,
    prepare,
    read_records,
    write_tars,
)
from PIL import Image

from imagenet_jax.data.classes import imagenet_names, imagenet_wnids
from imagenet_jax.errors import UserError
from imagenet_jax.prepare import __main__ as command
from imagenet_jax.prepare.shards import Storage, to_store


def test_stored_bytes_and_labels_are_right_and_tfds_reads_the_same(tars, tmp_path, capsys):
    import tensorflow_datasets as tfds

    path = prepare(tars, tmp_path / "out")
    train, val, val_wnids = content()
    want = {
        "train": {
            name: (data, LABELS[WNIDS.index(wnid)])
            for wnid, files in train.items()
            for name, data in files.items()
        },
        "validation": {
            name: (val[name], LABELS[WNIDS.index(wnid)])
            for name, wnid in zip(sorted(val), val_wnids, strict=True)
        },
    }
    builder = tfds.builder_from_directory(str(path))
    assert builder.info.full_name == "imagenet2012/5.1.0"
    assert tuple(builder.info.features["label"].names) == imagenet_wnids()
    for split, images in want.items():
        records = read_records(path, split)
        assert {r["id"]: (r["image"], r["label"]) for r in records} == images
        # tfds's order: md5 of the split's name and the key.
        keys = [hashlib.md5((split + r["id"]).encode()).hexdigest() for r in records]
        assert keys == sorted(keys)
        theirs = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        assert len(theirs) == len(records)
        for ours, other in zip(records, theirs, strict=True):
            assert ours["image"] == other["image"]
            assert ours["label"] == other["label"]
            assert ours["id"] == other["file_name"].decode()
    assert builder.info.splits["train"].num_shards > 2
    assert sorted(p.name for p in path.parent.iterdir()) == ["5.1.0"]
    assert not list(path.glob(".*"))
    said = capsys.readouterr().out
    assert "train: 24 images" in said
    assert "0 images repaired" in said
    assert "has 1,281,167" in said


def test_labels_from_a_file(tars, tmp_path):
    _, val, val_wnids = content()
    (tars / DEVKIT).unlink()
    plain, named = tmp_path / "plain.txt", tmp_path / "named.txt"
    plain.write_text("\n".join(val_wnids) + "\n")
    rows = zip(sorted(val), val_wnids, strict=True)
    named.write_text("".join(f"{name} {wnid}\n" for name, wnid in reversed(list(rows))))
    one = prepare(tars, tmp_path / "one", f"--val_labels={plain}")
    two = prepare(tars, tmp_path / "two", f"--val_labels={named}")
    assert read_records(one, "validation") == read_records(two, "validation")
    got = {r["id"]: r["label"] for r in read_records(one, "validation")}
    assert [got[name] for name in sorted(val)] == [LABELS[WNIDS.index(w)] for w in val_wnids]
    # tfds's own list has 50,000: it is offered, and does not fit these ten.
    with pytest.raises(UserError, match=r"image-net\.org.*--val_labels=\S+validation_labels\.txt"):
        prepare(tars, tmp_path / "three")


def test_cmyk_and_png_are_repaired_and_listed(tars, tmp_path, capsys):
    train, val, val_wnids = content()
    cmyk, png, grey = (f"n01440764_{i}.JPEG" for i in range(3))
    train["n01440764"] |= {
        cmyk: jpeg(1, mode="CMYK"),
        png: jpeg(2, kind="PNG"),
        grey: jpeg(3, mode="L"),
    }
    write_tars(tars, train, val, val_wnids)
    path = prepare(tars, tmp_path / "out")
    assert f"2 images repaired: {cmyk}, {png}" in capsys.readouterr().out
    stored = {r["id"]: r["image"] for r in read_records(path, "train")}
    assert stored[grey] == train["n01440764"][grey]
    for name in (cmyk, png):
        with Image.open(io.BytesIO(stored[name])) as image:
            assert (image.format, image.mode) == ("JPEG", "RGB")
            got = np.asarray(image).astype(int)
        with Image.open(io.BytesIO(train["n01440764"][name])) as image:
            want = np.asarray(image.convert("RGB")).astype(int)
        assert abs(got - want).max() <= 4
    assert all(data == stored[n] for n, data in train["n01443537"].items())


def test_resize_shrinks_the_shorter_side_and_is_described(tars, tmp_path):
    import tensorflow_datasets as tfds

    train, val, val_wnids = content()
    tall, small = "n01440764_0.JPEG", "n01440764_1.JPEG"
    train["n01440764"] |= {tall: jpeg(1, (45, 80)), small: jpeg(2, (30, 90))}
    write_tars(tars, train, val, val_wnids)
    path = prepare(tars, tmp_path / "out", "--resize=32", "--quality=80")
    assert path.parent.name == "imagenet2012_32q80"
    info = tfds.builder_from_directory(str(path)).info
    assert info.full_name == "imagenet2012_32q80/5.1.0"
    assert "32 pixels on their shorter side" in info.description
    assert "quality 80" in info.description
    stored = {r["id"]: r["image"] for r in read_records(path, "train")}
    assert stored.pop(small) == train["n01440764"][small]
    for name, data in stored.items():
        with Image.open(io.BytesIO(train[name[:9]][name])) as image:
            size = (32, int(32 * 80 / 45)) if name == tall else (int(32 * 60 / 45), 32)
            file = io.BytesIO()
            image.resize(size, Image.Resampling.LANCZOS).save(file, "JPEG", quality=80)
            want = np.asarray(Image.open(file)).astype(int)
        with Image.open(io.BytesIO(data)) as image:
            assert image.size == size
            assert abs(np.asarray(image).astype(int) - want).mean() < 1
    # Another size lies beside it.
    command.main([f"--tars={tars}", f"--out={tmp_path / 'out'}", "--workers=1", "--resize=24"])
    assert (tmp_path / "out" / "imagenet2012_24q90" / "5.1.0").is_dir()


@pytest.mark.parametrize(("kind", "suffix"), [("JPEG", "jpg"), ("PNG", "png"), ("BMP", "bmp")])
def test_images_of_a_folder_are_stored_without_loss(tmp_path, kind, suffix):
    folder = make_folder(tmp_path / "images", kind, suffix)
    args = [f"--folder={folder}", "--name=insects", f"--out={tmp_path}", "--workers=1"]
    assert command.main(args) == 0
    path = tmp_path / "insects" / "1.0.0"
    for split, below in (("train", "train"), ("validation", "val")):
        records = read_records(path, split)
        files = {str(p.relative_to(folder / below)) for p in (folder / below).glob("*/*")}
        assert {r["id"] for r in records} == files
        for record in records:
            assert record["label"] == ("ant", "bee").index(record["id"].split("/")[0])
            original = (folder / below / record["id"]).read_bytes()
            if kind == "BMP":  # stored as PNG: other bytes, the same pixels
                pixels = [
                    np.asarray(Image.open(io.BytesIO(b))) for b in (original, record["image"])
                ]
                np.testing.assert_array_equal(*pixels)
            else:
                assert record["image"] == original


def test_a_resized_folder_keeps_what_is_not_shrunk(tmp_path, capsys):
    """Of a folder without a JPEG only what is shrunk becomes one, and nothing is "repaired"."""
    folder = make_folder(tmp_path / "images", "PNG", "png")
    large, odd = folder / "train/ant/large.png", folder / "train/ant/odd.bmp"
    large.write_bytes(jpeg(7, (300, 120), kind="PNG"))
    odd.write_bytes(jpeg(8, (30, 20), kind="BMP"))
    args = [f"--folder={folder}", "--name=insects", f"--out={tmp_path}", "--workers=1"]
    assert command.main([*args, "--resize=100", "--quality=80"]) == 0
    out = capsys.readouterr().out
    assert "1 image resized to 100\n1 image repaired: ant/odd.bmp\n" in out
    path = tmp_path / "insects_100q80" / "1.0.0"
    stored = {r["id"]: r["image"] for r in read_records(path, "train")}
    with Image.open(io.BytesIO(stored.pop("ant/large.png"))) as image:
        assert (image.format, image.size) == ("JPEG", (250, 100))
    with Image.open(io.BytesIO(stored.pop("ant/odd.bmp"))) as image, Image.open(odd) as original:
        assert image.format == "PNG"
        np.testing.assert_array_equal(np.asarray(image), np.asarray(original))
    assert stored
    for name, data in stored.items():
        assert data == (folder / "train" / name).read_bytes()


def test_a_shrunk_image_of_another_format_counts_as_resized_only():
    large, small = (jpeg(7, size, kind="PNG") for size in ((300, 120), (30, 20)))
    storage = Storage("jpeg", resize=100)
    stored = [to_store(image, storage) for image in (large, small)]
    assert [(s.repaired, s.resized) for s in stored] == [(False, True), (True, False)]
    assert all(s.encoded[:2] == b"\xff\xd8" for s in stored)


def test_help_states_the_price_of_resizing(capsys):
    with pytest.raises(SystemExit):
        command.main(["--help"])
    words = " ".join(capsys.readouterr().out.split())
    assert "accuracies are not comparable with published ones" in words


def test_classes_are_sorted_and_named():
    """Against tfds's list of labels, and against facts known of torchvision's order."""
    import tensorflow_datasets as tfds

    shipped = tfds.core.tfds_path("datasets/imagenet2012/labels.txt").read_text().split()
    assert list(imagenet_wnids()) == shipped == sorted(shipped)
    names = imagenet_names()
    assert len(set(names)) == 1000
    for label, name in ((0, "tench"), (207, "golden retriever"), (388, "giant panda")):
        assert names[label] == name
    assert names[999] == "toilet tissue"


_TFDS = """
import sys, tensorflow_datasets as tfds
tars, out = sys.argv[1:]
builder = tfds.builder("imagenet2012", data_dir=out, file_format="array_record")
builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=tars))
print(builder.data_dir)
"""


@pytest.mark.full
def test_record_for_record_as_tfds_prepares_it(tars, tmp_path):
    pytest.importorskip("tensorflow")
    _, val, val_wnids = content()
    labels = tmp_path / "labels.txt"
    import tensorflow_datasets as tfds

    # tfds takes the validation labels that it ships, in the order of the names.
    shipped = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt").read_text()
    labels.write_text("\n".join(shipped.split()[: len(val)]))
    ours = prepare(tars, tmp_path / "ours", f"--val_labels={labels}")
    done = subprocess.run(
        [sys.executable, "-c", _TFDS, str(tars), str(tmp_path / "theirs")],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = tmp_path / "theirs" / "imagenet2012" / "5.1.0"
    for split in ("train", "validation"):
        assert read_records(ours, split) == read_records(theirs, split)  # order included
    one, two = (json.loads((p / "features.json").read_text()) for p in (ours, theirs))
    assert one == two
    assert (ours / "label.labels.txt").read_text() == (theirs / "label.labels.txt").read_text()
