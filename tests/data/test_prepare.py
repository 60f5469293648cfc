"""Preparing: miniature official archives, folders, restarts, repairs, every bad input."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
from conftest import REPOSITORY, tiny_config
from PIL import Image

from imagenet_jax import prepare as door
from imagenet_jax.data import imagenet_classes, sources
from imagenet_jax.errors import UserError

WNIDS = ("n01440764", "n01443537", "n02012849", "n15075141")
LABELS = (0, 1, 134, 999)  # of torchvision's list
TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"


def _jpeg(seed, size=(60, 45), mode="RGB", kind="JPEG"):
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (size[1] // 4 + 1, size[0] // 4 + 1, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).convert(mode)
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def _tar(files, mode="w"):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def _devkit(labels):
    """The kit's own layout; its ids are not in the order of the WordNet ids."""
    from scipy.io import savemat

    ids = {wnid: i for i, wnid in enumerate(reversed(WNIDS), 1)}
    synsets = np.zeros((len(ids), 1), [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")])
    for row, (wnid, number) in enumerate(ids.items()):
        synsets[row, 0] = (number, wnid, "some words, more words")
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets})
    truth = "".join(f"{ids[wnid]}\n" for wnid in labels)
    root = "ILSVRC2012_devkit_t12/data"
    return _tar(
        {
            f"{root}/ILSVRC2012_validation_ground_truth.txt": truth.encode(),
            f"{root}/meta.mat": meta.getvalue(),
        },
        "w:gz",
    )


def _write_tars(directory, train, val, val_wnids):
    directory.mkdir(exist_ok=True)
    (directory / TRAIN).write_bytes(_tar({f"{w}.tar": _tar(files) for w, files in train.items()}))
    (directory / VAL).write_bytes(_tar(val))
    (directory / DEVKIT).write_bytes(_devkit(val_wnids))


def _content(per_class=6, val=10):
    train = {
        wnid: {f"{wnid}_{i}.JPEG": _jpeg(100 * c + i) for i in range(per_class)}
        for c, wnid in enumerate(WNIDS)
    }
    images = {f"ILSVRC2012_val_{i:08d}.JPEG": _jpeg(-i % 997) for i in range(val, 0, -1)}
    val_wnids = [WNIDS[i * i % 4 if i % 3 else 3] for i in range(1, val + 1)]
    return train, images, val_wnids


@pytest.fixture
def tars(tmp_path):
    _write_tars(tmp_path / "tars", *_content())
    return tmp_path / "tars"


def _prepare(tars, out, *more):
    door.main([f"--tars={tars}", f"--out={out}", "--workers=1", "--shard_mb=0.01", *more])
    return next(path for path in out.glob("imagenet2012*/5.1.0"))


def _records(path, split):
    data = tiny_config(path).data
    data.source = "tfds"
    source = sources.open_source(data, split)
    return [source[i] for i in range(len(source))]


def _hashes(path):
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(path.iterdir())
        if p.name != "prepared.json"
    }


def test_same_bytes_right_labels_and_tfds_reads_as_we_do(tars, tmp_path, capsys):
    import tensorflow_datasets as tfds

    path = _prepare(tars, tmp_path / "out")
    train, val, val_wnids = _content()
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
    assert tuple(builder.info.features["label"].names) == imagenet_classes.wnids()
    for split, images in want.items():
        records = _records(path, split)
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
    assert not list(path.glob("*.part"))
    said = capsys.readouterr().out
    assert "train: 24 images" in said
    assert "0 images repaired" in said
    assert "has 1,281,167" in said


def test_any_number_of_workers_writes_the_same_files(tars, tmp_path):
    one = _prepare(tars, tmp_path / "one")
    two = _prepare(tars, tmp_path / "two", "--workers=2")
    assert _hashes(one) == _hashes(two)


def test_labels_from_a_file(tars, tmp_path):
    _, val, val_wnids = _content()
    (tars / DEVKIT).unlink()
    plain, named = tmp_path / "plain.txt", tmp_path / "named.txt"
    plain.write_text("\n".join(val_wnids) + "\n")
    rows = zip(sorted(val), val_wnids, strict=True)
    named.write_text("".join(f"{name} {wnid}\n" for name, wnid in reversed(list(rows))))
    one = _prepare(tars, tmp_path / "one", f"--val_labels={plain}")
    two = _prepare(tars, tmp_path / "two", f"--val_labels={named}")
    assert _records(one, "validation") == _records(two, "validation")
    got = {r["id"]: r["label"] for r in _records(one, "validation")}
    assert [got[name] for name in sorted(val)] == [LABELS[WNIDS.index(w)] for w in val_wnids]
    # tfds's own list has 50,000: it is offered, and does not fit these ten.
    with pytest.raises(UserError, match=r"image-net\.org.*--val_labels=\S+validation_labels\.txt"):
        _prepare(tars, tmp_path / "three")


def test_finished_and_changed_inputs_are_told(tars, tmp_path, capsys):
    out = tmp_path / "out"
    path = _prepare(tars, out)
    before = {p: p.stat().st_mtime_ns for p in path.iterdir()}
    capsys.readouterr()
    assert _prepare(tars, out) == path
    assert f"from the archives in {tars}: nothing to do" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in path.iterdir()}


def test_an_error_keeps_finished_shards_until_the_inputs_change(tars, tmp_path, capsys):
    out = tmp_path / "out"
    train, val, val_wnids = _content()
    # The last in the order of records, so that other shards come first.
    keys = {hashlib.md5(f"train{n}".encode()).digest(): (w, n) for w in WNIDS for n in train[w]}
    wnid, name = keys[max(keys)]
    whole = train[wnid][name]
    train[wnid][name] = whole[:300]
    _write_tars(tars, train, val, val_wnids)
    with pytest.raises(UserError, match=rf"{name} in \S+{TRAIN} cannot be decoded"):
        _prepare(tars, out)
    work = out / "imagenet2012" / ".5.1.0.part"
    assert not (out / "imagenet2012" / "5.1.0").exists()
    kept = json.loads((work / "prepared.json").read_text())["shards"]
    assert kept
    times = {name: (work / name).stat().st_mtime_ns for name in kept}
    assert not list(work.glob("*.part"))
    with pytest.raises(UserError, match=name):
        _prepare(tars, out)
    assert "shards are done already" in capsys.readouterr().out
    assert {p: (work / p).stat().st_mtime_ns for p in times} == times

    train[wnid][name] = whole
    _write_tars(tars, train, val, val_wnids)
    path = _prepare(tars, out)
    assert "the inputs or options have changed" in capsys.readouterr().out
    assert len(_records(path, "train")) == 24


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_and_restarted_gives_the_same_and_redoes_nothing(tmp_path, workers):
    tars, out = tmp_path / "tars", tmp_path / "out"
    _write_tars(tars, *_content(per_class=100))
    args = [f"--tars={tars}", f"--out={out}", f"--workers={workers}", "--shard_mb=0.01"]
    command = [sys.executable, "-m", "imagenet_jax.prepare", *args]
    manifest = out / "imagenet2012" / ".5.1.0.part" / "prepared.json"
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if manifest.exists() and len(json.loads(manifest.read_text())["shards"]) >= 3:
            break
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "imagenet2012" / "5.1.0").exists(), "finished before the kill"
    done = json.loads(manifest.read_text())["shards"]
    inodes = {name: (manifest.parent / name).stat().st_ino for name in done}
    again = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert f"{len(done)} of " in again.stdout
    path = out / "imagenet2012" / "5.1.0"
    assert {name: (path / name).stat().st_ino for name in done} == inodes
    assert _hashes(path) == _hashes(_prepare(tars, tmp_path / "whole"))


def test_two_at_once_are_refused(tars, tmp_path):
    from imagenet_jax.data.preparation.workspace import Workspace

    target = tmp_path / "out" / "imagenet2012" / "5.1.0"
    first = Workspace(target, {})
    with pytest.raises(UserError, match="another process is preparing"):
        _prepare(tars, tmp_path / "out")
    first.close()
    _prepare(tars, tmp_path / "out")


def test_cmyk_and_png_are_repaired_and_listed(tars, tmp_path, capsys):
    train, val, val_wnids = _content()
    cmyk, png, grey = (f"n01440764_{i}.JPEG" for i in range(3))
    train["n01440764"] |= {
        cmyk: _jpeg(1, mode="CMYK"),
        png: _jpeg(2, kind="PNG"),
        grey: _jpeg(3, mode="L"),
    }
    _write_tars(tars, train, val, val_wnids)
    path = _prepare(tars, tmp_path / "out")
    assert f"2 images repaired: {cmyk}, {png}" in capsys.readouterr().out
    stored = {r["id"]: r["image"] for r in _records(path, "train")}
    assert stored[grey] == train["n01440764"][grey]
    for name in (cmyk, png):
        with Image.open(io.BytesIO(stored[name])) as image:
            assert (image.format, image.mode) == ("JPEG", "RGB")
            got = np.asarray(image).astype(int)
        with Image.open(io.BytesIO(train["n01440764"][name])) as image:
            want = np.asarray(image.convert("RGB")).astype(int)
        assert abs(got - want).max() <= 4
    assert all(data == stored[n] for n, data in train["n01443537"].items())


def test_resize_shrinks_the_shorter_side_and_says_so(tars, tmp_path):
    import tensorflow_datasets as tfds

    train, val, val_wnids = _content()
    tall, small = "n01440764_0.JPEG", "n01440764_1.JPEG"
    train["n01440764"] |= {tall: _jpeg(1, (45, 80)), small: _jpeg(2, (30, 90))}
    _write_tars(tars, train, val, val_wnids)
    path = _prepare(tars, tmp_path / "out", "--resize=32", "--quality=80")
    assert path.parent.name == "imagenet2012_32q80"
    info = tfds.builder_from_directory(str(path)).info
    assert info.full_name == "imagenet2012_32q80/5.1.0"
    assert "32 pixels on their shorter side" in info.description
    assert "quality 80" in info.description
    stored = {r["id"]: r["image"] for r in _records(path, "train")}
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
    door.main([f"--tars={tars}", f"--out={tmp_path / 'out'}", "--workers=1", "--resize=24"])
    assert (tmp_path / "out" / "imagenet2012_24q90" / "5.1.0").is_dir()


def _folder(path, kind="JPEG", suffix="jpg"):
    for split, count in (("train", 4), ("val", 2)):
        for c, name in enumerate(("bee", "ant")):
            (path / split / name).mkdir(parents=True)
            for i in range(count):
                data = _jpeg(10 * c + i, kind=kind)
                (path / split / name / f"{i}.{suffix}").write_bytes(data)
    return path


@pytest.mark.parametrize(("kind", "suffix"), [("JPEG", "jpg"), ("PNG", "png"), ("BMP", "bmp")])
def test_folder(tmp_path, kind, suffix):
    folder = _folder(tmp_path / "images", kind, suffix)
    args = [f"--folder={folder}", "--name=insects", f"--out={tmp_path}", "--workers=1"]
    assert door.main(args) == 0
    path = tmp_path / "insects" / "1.0.0"
    for split, below in (("train", "train"), ("validation", "val")):
        records = _records(path, split)
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


def _edit(tars, change):
    train, val, val_wnids = _content(per_class=2)
    change(train, val, val_wnids)
    _write_tars(tars, train, val, val_wnids)


def _cut(tars, name, keep):
    data = (tars / name).read_bytes()
    (tars / name).write_bytes(data[: keep(len(data))])


BAD = {
    "no train archive": (lambda t: (t / TRAIN).unlink(), rf"no {TRAIN}.*image-net\.org"),
    "no validation archive": (lambda t: (t / VAL).unlink(), rf"no {VAL}.*image-net\.org"),
    "no labels": (lambda t: (t / DEVKIT).unlink(), r"devkit_t12.*2012-downloads.*--val_labels="),
    "cut in an image": (lambda t: _cut(t, VAL, lambda n: n // 2 // 512 * 512 + 100), "cut off"),
    "cut at a block": (lambda t: _cut(t, VAL, lambda n: n // 2 // 512 * 512), "cut off"),
    "cut train": (lambda t: _cut(t, TRAIN, lambda n: n // 2), rf"{TRAIN}.*cut off"),
    "no tar": (lambda t: (t / TRAIN).write_bytes(b"no tar" * 999), rf"{TRAIN} is no tar"),
    "empty": (lambda t: (t / TRAIN).write_bytes(b""), TRAIN),
    "devkit cut": (lambda t: _cut(t, DEVKIT, lambda n: n // 2), f"{DEVKIT}.*download it again"),
    "too few labels": (
        lambda t: _edit(t, lambda train, val, labels: labels.pop()),
        r"9 labels, but there are 10 validation images",
    ),
    "escaping name": (
        lambda t: _edit(t, lambda train, val, labels: val.update({"../../x.JPEG": b""})),
        r"'\.\./\.\./x\.JPEG', which points out of the archive",
    ),
    "absolute name": (
        lambda t: _edit(t, lambda train, val, labels: train[WNIDS[0]].update({"/etc/x": b""})),
        r"n01440764\.tar has a member '/etc/x'",
    ),
    "unknown class": (
        lambda t: _edit(t, lambda train, val, labels: train.update({"n00000001": {}})),
        r"n00000001\.tar is not the archive of one of",
    ),
    "image of another class": (
        lambda t: _edit(t, lambda train, val, labels: train[WNIDS[0]].update(train[WNIDS[1]])),
        r"n01440764\.tar has n01443537_\d\.JPEG",
    ),
    "validation image without a number": (
        lambda t: _edit(t, lambda train, val, labels: val.update({"x.JPEG": val.popitem()[1]})),
        r"no label for x\.JPEG",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_archives_are_one_line_errors(tars, tmp_path, case):
    damage, message = BAD[case]
    damage(tars)
    with pytest.raises(UserError, match=message) as e:
        _prepare(tars, tmp_path / "out")
    assert len(str(e.value).splitlines()) == 1
    assert not list((tmp_path / "out").glob("*/5.1.0"))


def test_an_archive_within_that_is_cut_is_named(tars, tmp_path):
    train, _, _ = _content(per_class=2)
    inner = {f"{w}.tar": _tar(files) for w, files in train.items()}
    inner["n02012849.tar"] = inner["n02012849.tar"][:3000]
    (tars / TRAIN).write_bytes(_tar(inner))
    with pytest.raises(UserError, match=r"n02012849\.tar.*cut off"):
        _prepare(tars, tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n01440764\n" * 9, "9 labels"),
        ("n01440764\n" * 9 + "tench\n", "line 10: 'tench' is none of"),
        ("x.JPEG n01440764\n" * 10, r"no label for ILSVRC2012_val_00000001\.JPEG"),
        ("a b c\n" * 10, "line 1: write 'WNID'"),
    ],
)
def test_bad_label_files(tars, tmp_path, text, message):
    (tmp_path / "labels").write_text(text)
    with pytest.raises(UserError, match=message):
        _prepare(tars, tmp_path / "out", f"--val_labels={tmp_path / 'labels'}")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "either --tars"),
        (["--tars=x", "--folder=y"], "either --tars"),
        (["--folder=x"], "--name=NAME"),
        (["--tars=x", "--name=y"], "--name goes with --folder"),
        (["--tars=x", "--quality=90"], "--quality goes with --resize"),
        (["--tars=x", "--resize=0"], r"--resize=0"),
        (["--tars=x", "--resize=9", "--quality=0"], r"--quality=0"),
        (["--tars=x", "--workers=0"], r"--workers=0"),
        (["--tars=x", "--val_labels=y"], r"--tars=\S*x has no ILSVRC2012_img_train"),
        (["--folder=x", "--name=A b"], r"--name='A b'"),
        (["--folder=x", "--name=a"], r"has no train/"),
    ],
)
def test_bad_flags(tmp_path, args, message):
    with pytest.raises(UserError, match=message):
        door.main([*args, f"--out={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


def test_links_in_archives_are_refused(tars, tmp_path):
    with tarfile.open(tars / VAL, "a") as tar:
        link = tarfile.TarInfo("ILSVRC2012_val_00000011.JPEG")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(UserError, match=r"val_00000011\.JPEG is a link"):
        _prepare(tars, tmp_path / "out")


def test_out_that_cannot_be_written(tars, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match="--out: .* cannot be written"):
        _prepare(tars, tmp_path / "out")


def test_interrupted_ends_at_once_without_a_traceback(tmp_path):
    """Ctrl-C reaches the workers too."""
    tars = tmp_path / "tars"
    _write_tars(tars, *_content(per_class=200))
    args = [f"--tars={tars}", f"--out={tmp_path / 'out'}", "--workers=2", "--shard_mb=0.01"]
    process = subprocess.Popen(
        [sys.executable, "-m", "imagenet_jax.prepare", *args],
        cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    manifest = tmp_path / "out" / "imagenet2012" / ".5.1.0.part" / "prepared.json"
    while process.poll() is None and not manifest.exists():
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert not list(manifest.parent.parent.glob("5.1.0"))


def test_help_states_the_price_of_resizing(capsys):
    with pytest.raises(SystemExit):
        door.main(["--help"])
    assert "accuracies are not comparable with published ones" in capsys.readouterr().out


def test_folders_with_different_classes_or_an_empty_one(tmp_path):
    folder = _folder(tmp_path / "images")
    args = [f"--folder={folder}", "--name=insects", f"--out={tmp_path / 'out'}"]
    (folder / "val" / "ant").rename(folder / "val" / "fly")
    with pytest.raises(UserError, match="train and validation differ in their classes"):
        door.main(args)
    (folder / "val" / "fly").rename(folder / "val" / "ant")
    for file in (folder / "train" / "ant").iterdir():
        file.unlink()
    with pytest.raises(UserError, match="train/ant has no images"):
        door.main(args)


def test_classes_are_sorted_and_named():
    """Against tfds's list of labels, and against facts known of torchvision's order."""
    import tensorflow_datasets as tfds

    shipped = tfds.core.tfds_path("datasets/imagenet2012/labels.txt").read_text().split()
    assert list(imagenet_classes.wnids()) == shipped == sorted(shipped)
    names = imagenet_classes.class_names()
    assert len(set(names)) == 1000
    for label, name in ((0, "tench"), (207, "golden retriever"), (388, "giant panda")):
        assert names[label] == name
    assert names[999] == "toilet tissue"


@pytest.mark.parity
def test_class_names_are_torchvisions():
    meta = pytest.importorskip("torchvision.models._meta")
    assert list(imagenet_classes.class_names()) == meta._IMAGENET_CATEGORIES


_TFDS = """
import sys, tensorflow_datasets as tfds
tars, out = sys.argv[1:]
builder = tfds.builder("imagenet2012", data_dir=out, file_format="array_record")
builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=tars))
print(builder.data_dir)
"""


@pytest.mark.slow
def test_record_for_record_as_tfds_prepares_it(tars, tmp_path):
    pytest.importorskip("tensorflow")
    _, val, val_wnids = _content()
    labels = tmp_path / "labels.txt"
    import tensorflow_datasets as tfds

    # tfds takes the validation labels that it ships, in the order of the names.
    shipped = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt").read_text()
    labels.write_text("\n".join(shipped.split()[: len(val)]))
    ours = _prepare(tars, tmp_path / "ours", f"--val_labels={labels}")
    done = subprocess.run(
        [sys.executable, "-c", _TFDS, str(tars), str(tmp_path / "theirs")],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = tmp_path / "theirs" / "imagenet2012" / "5.1.0"
    for split in ("train", "validation"):
        assert _records(ours, split) == _records(theirs, split)  # order included
    one, two = (json.loads((p / "features.json").read_text()) for p in (ours, theirs))
    assert one == two
    assert (ours / "label.labels.txt").read_text() == (theirs / "label.labels.txt").read_text()
