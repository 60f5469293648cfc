"""Preparing from what is damaged, missing or contradictory: one line that names it."""

import io
import tarfile

import odd_jpegs
import pytest
from miniatures import DEVKIT, TRAIN, VAL, WNIDS, content, make_folder, prepare, tar, write_tars
from PIL import Image

from imagenet_jax.data.image_files import StoredImage
from imagenet_jax.errors import UserError
from imagenet_jax.prepare import __main__ as command
from imagenet_jax.prepare import shards
from imagenet_jax.prepare.shards import Storage


def test_a_second_preparation_of_the_same_target_is_refused(tars, tmp_path):
    from imagenet_jax.prepare.prepare import Workspace

    target = tmp_path / "out" / "imagenet2012" / "5.1.0"
    first = Workspace(target, {})
    with pytest.raises(UserError, match="another process is preparing"):
        prepare(tars, tmp_path / "out")
    first.close()
    prepare(tars, tmp_path / "out")


def _edit(tars, change):
    train, val, val_wnids = content(per_class=2)
    change(train, val, val_wnids)
    write_tars(tars, train, val, val_wnids)


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
    "no tar": (lambda t: (t / TRAIN).write_bytes(b"no tar" * 999), rf"{TRAIN} is not a tar"),
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
        prepare(tars, tmp_path / "out")
    assert len(str(e.value).splitlines()) == 1
    assert not list((tmp_path / "out").glob("*/5.1.0"))


def test_a_cut_inner_archive_is_named(tars, tmp_path):
    train, _, _ = content(per_class=2)
    inner = {f"{w}.tar": tar(files) for w, files in train.items()}
    inner["n02012849.tar"] = inner["n02012849.tar"][:3000]
    (tars / TRAIN).write_bytes(tar(inner))
    with pytest.raises(UserError, match=r"n02012849\.tar.*cut off"):
        prepare(tars, tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n01440764\n" * 9, "9 labels"),
        ("n01440764\n" * 9 + "tench\n", "line 10: 'tench' is not one of"),
        ("x.JPEG n01440764\n" * 10, r"no label for ILSVRC2012_val_00000001\.JPEG"),
        ("a b c\n" * 10, "line 1: every line must be 'WNID'"),
    ],
)
def test_bad_label_files(tars, tmp_path, text, message):
    (tmp_path / "labels").write_text(text)
    with pytest.raises(UserError, match=message):
        prepare(tars, tmp_path / "out", f"--val_labels={tmp_path / 'labels'}")


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
        command.main([*args, f"--out={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


def test_links_in_archives_are_refused(tars, tmp_path):
    with tarfile.open(tars / VAL, "a") as tar:
        link = tarfile.TarInfo("ILSVRC2012_val_00000011.JPEG")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(UserError, match=r"val_00000011\.JPEG is a link"):
        prepare(tars, tmp_path / "out")


def test_out_that_cannot_be_written(tars, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match="--out: .* cannot be written"):
        prepare(tars, tmp_path / "out")


def test_folders_with_different_classes_or_an_empty_one(tmp_path):
    folder = make_folder(tmp_path / "images")
    args = [f"--folder={folder}", "--name=insects", f"--out={tmp_path / 'out'}"]
    (folder / "val" / "ant").rename(folder / "val" / "fly")
    with pytest.raises(UserError, match="train and validation differ in their classes"):
        command.main(args)
    (folder / "val" / "fly").rename(folder / "val" / "ant")
    for file in (folder / "train" / "ant").iterdir():
        file.unlink()
    with pytest.raises(UserError, match="train/ant has no images"):
        command.main(args)


def _shard(folder, files):
    """Write a shard of `files`; its records."""
    for name, data in files.items():
        (folder / name).write_bytes(data)
    entries = [StoredImage(name, 0, len(data)) for name, data in files.items()]
    return shards.write_shard(folder / "x.array_record", folder, entries, Storage())


def test_a_jpeg_that_pillow_cannot_open_is_stored_as_it_is(tmp_path):
    whole = odd_jpegs.encode(odd_jpegs.picture())
    odd = odd_jpegs.short_adobe(whole)
    assert odd_jpegs.whole(odd) is None
    done = _shard(tmp_path, {"a.jpg": whole, "b.jpg": odd})
    assert (done.records, done.repaired) == (2, [])
    assert odd in (tmp_path / "x.array_record").read_bytes()


def test_errors_of_images_name_the_image_and_not_the_shard(tmp_path):
    wide = io.BytesIO()
    Image.new("RGB", (70_000, 2)).save(wide, "PNG")
    for data, message in (
        (wide.getvalue(), r"^b\.jpg in \S+ cannot be stored as jpeg: "),
        (b"GIF89a nothing else", r"^b\.jpg in \S+ cannot be decoded: .* b'GIF89a nothi'"),
    ):
        with pytest.raises(UserError, match=message) as e:
            _shard(tmp_path, {"a.jpg": odd_jpegs.encode(odd_jpegs.picture()), "b.jpg": data})
        assert "object at" not in str(e.value) and "array_record" not in str(e.value)
