"""The doctor: every kind of finding on files made to have it, and none on files that do not."""

import io
import json
import shutil
import struct
import zlib

import numpy as np
import odd_jpegs
import pytest
from PIL import Image

from imagenet_jax.data import image_formats
from imagenet_jax.doctor import ERRORS, WARNINGS
from imagenet_jax.doctor import __main__ as command
from imagenet_jax.doctor.diagnosis import diagnose
from imagenet_jax.errors import UserError
from imagenet_jax.prepare import __main__ as prepare


def _image(seed, size=(64, 48), mode="RGB"):
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (size[1] // 4, size[0] // 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).convert(mode)


def _bytes(image, kind="JPEG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _png16():
    """A 16-bit RGB PNG, which Pillow reads but does not write."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    rows = np.random.default_rng(0).integers(0, 65536, (40, 40 * 3)).astype(">u2")
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    head = struct.pack(">IIBBBBB", 40, 40, 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(raw))
        + chunk(b"IEND", b"")
    )


def _write(root, files):
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


@pytest.fixture
def healthy(tmp_path):
    files = {
        f"{split}/{name}/{i}.jpg": _bytes(_image(1000 * s + 100 * c + i))
        for s, split in enumerate(("train", "val"))
        for c, name in enumerate(("ant", "bee"))
        for i in range(5 - 2 * s)
    }
    return _write(tmp_path / "images", files)


def _found(path, workers=1):
    findings = diagnose(path, workers, quiet=True).findings
    return {(f.kind, f.split, f.name) for f in findings}


def test_a_healthy_folder_has_no_findings(healthy, capsys):
    assert command.main([str(healthy), "--workers=1"]) == 0
    out = capsys.readouterr().out
    assert "no errors, no warnings" in out
    assert "5 each" in out and "3 each" in out and "64 x 48" in out and "JPEG RGB" in out


def _cases():
    good = _bytes(_image(7))
    exif = Image.Exif()
    exif[0x0112] = 6
    gif = _bytes(_image(1), "GIF", save_all=True, append_images=[_image(2), _image(3)])
    return {
        "cmyk": ("a.jpg", _bytes(_image(8, mode="CMYK"))),
        "sixteen_bit": ("a.png", _png16()),
        "animated": ("a.gif", gif),
        "alpha": ("a.png", _bytes(_image(9, mode="RGBA"), "PNG")),
        "misnamed": ("a.JPEG", _bytes(_image(10), "PNG")),
        "exif_rotated": ("a.jpg", _bytes(_image(11), exif=exif)),
        "tiny": ("a.jpg", _bytes(_image(12, (64, 20)))),
        "unterminated": ("a.png", _bytes(_image(13), "PNG")[:-12]),  # without its IEND
        "truncated": ("a.jpg", good[: len(good) // 3]),
        "unreadable": ("a.jpg", b"this is no image"),
    }


@pytest.mark.parametrize("kind", _cases())
def test_each_fault_of_an_image_is_found_and_nothing_else(healthy, kind):
    name, data = _cases()[kind]
    _write(healthy, {f"train/bee/{name}": data})
    assert _found(healthy) == {(kind, "train", f"train/bee/{name}")}


def test_sixteen_bit_grey_and_an_empty_file(healthy):
    grey = Image.fromarray(np.arange(64 * 48, dtype=np.uint16).reshape(48, 64) * 20)
    _write(healthy, {"train/ant/g.png": _bytes(grey, "PNG"), "train/ant/e.jpg": b""})
    assert _found(healthy) == {
        ("sixteen_bit", "train", "train/ant/g.png"),
        ("unreadable", "train", "train/ant/e.jpg"),
    }


def test_pillows_warnings_become_findings(healthy, recwarn, capsys):
    image_formats._silence_pillow()  # as at import, before pytest collects warnings
    files = odd_jpegs.odd_metadata()
    suffixes = dict.fromkeys(files, "jpg") | {"a tag twice": "tif"}
    _write(healthy, {f"train/ant/{name}.{suffixes[name]}": data for name, data in files.items()})
    want = {("odd_metadata", "train", f"train/ant/{name}.{suffixes[name]}") for name in files}
    assert _found(healthy) == want
    assert not recwarn.list and "arning" not in capsys.readouterr().err


def test_a_folder_inside_a_class_is_read_and_what_is_left_out_of_it_is_named(healthy):
    _write(healthy, {"train/ant/more/x.jpg": _bytes(_image(9)), "train/ant/more/x.txt": b"x"})
    diagnosis = diagnose(healthy, 1, quiet=True)
    (found,) = diagnosis.findings
    assert (found.kind, found.name, found.detail) == (
        "ignored_file", "ant/more/x.txt", "no image suffix",
    )  # fmt: skip
    assert len(diagnosis.data.splits["train"]) == 11


def test_duplicates_and_leakage_are_found(healthy, capsys):
    same, other, leaked = (_bytes(_image(i)) for i in (500, 501, 502))
    _write(
        healthy,
        {
            "train/ant/same1.jpg": same, "train/ant/same2.jpg": same,
            "train/ant/conflict.jpg": other, "train/bee/conflict.jpg": other,
            "train/bee/leak.jpg": leaked, "val/ant/leak.jpg": leaked,
            "train/notes.txt": b"x", "train/ant/notes.txt": b"x",
        },
    )  # fmt: skip
    (healthy / "train" / "cat").mkdir()
    assert _found(healthy, workers=2) == {
        ("duplicate", "train", "train/ant/same1.jpg"),
        ("conflicting_labels", "train", "train/ant/conflict.jpg"),
        ("leakage", "validation", "val/ant/leak.jpg"),
        ("ignored_file", "train", "notes.txt"),
        ("ignored_file", "train", "ant/notes.txt"),
        ("empty_class", "train", "cat"),
        ("different_classes", "validation", "train"),
    }
    assert command.main([str(healthy), "--workers=1"]) == 1
    assert "3 errors, 4 warnings" in capsys.readouterr().out


def test_json_has_everything_and_an_allowed_error_does_not_count(healthy, tmp_path, capsys):
    leaked = (healthy / "train/ant/0.jpg").read_bytes()
    _write(healthy, {"val/ant/leak.jpg": leaked})
    assert command.main([str(healthy), "--workers=1", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["counts"] == {"leakage": 1}
    assert report["findings"][0]["detail"] == "train: train/ant/0.jpg"
    assert report["splits"]["train"]["classes"] == {"ant": 5, "bee": 5}
    assert report["splits"]["validation"]["classes"] == {"ant": 4, "bee": 3}
    sizes = [f.stat().st_size for f in (healthy / "train").rglob("*.jpg")]
    assert report["splits"]["train"]["bytes"] == sum(sizes)
    out = tmp_path / "report.json"
    assert command.main([str(healthy), "--workers=1", "--allow=leakage", f"--json={out}"]) == 0
    assert "allowed leakage: 1" in capsys.readouterr().out
    assert json.loads(out.read_text())["errors"] == 0


def test_fingerprint_is_of_images_and_classes(healthy, tmp_path, capsys):
    prepare.main([f"--folder={healthy}", "--name=insects", f"--out={tmp_path}", "--workers=1"])
    prepared = next((tmp_path / "insects").iterdir())
    folder, tfds = diagnose(healthy, 1, quiet=True), diagnose(prepared, 1, quiet=True)
    assert tfds.findings == [] and tfds.data.layout == "tfds"
    assert folder.fingerprint == tfds.fingerprint
    (healthy / "train/ant/0.jpg").rename(healthy / "train/ant/other.jpg")
    assert diagnose(healthy, 1, quiet=True).fingerprint == folder.fingerprint
    (healthy / "train/ant/other.jpg").rename(healthy / "train/bee/other.jpg")
    assert diagnose(healthy, 1, quiet=True).fingerprint != folder.fingerprint


def test_a_damaged_shard_is_found(healthy, tmp_path, capsys):
    prepare.main([f"--folder={healthy}", "--name=insects", f"--out={tmp_path}", "--workers=1"])
    prepared = next((tmp_path / "insects").iterdir())
    shard = next(prepared.glob("*train*array_record*"))
    before = diagnose(prepared, 1, quiet=True)
    data = bytearray(shard.read_bytes())
    # In the middle of a record: array_record's checksums must notice.
    at = data.find(b"\xff\xda") + 100
    data[at] ^= 0x10
    shard.write_bytes(data)
    after = diagnose(prepared, 1, quiet=True)
    assert [f.kind for f in after.findings] == ["unreadable"]
    assert after.fingerprint != before.fingerprint


def test_results_do_not_depend_on_the_number_of_workers(healthy):
    for i in range(200):
        _write(healthy, {f"train/ant/more{i}.jpg": b"" if i % 7 == 0 else _bytes(_image(i))})
    one, three = (diagnose(healthy, n, quiet=True).as_json() for n in (1, 3))
    assert one == three
    assert one["counts"]["unreadable"] == 29


def test_incomplete_imagenet_is_an_error(healthy, tmp_path):
    shutil.move(healthy, tmp_path / "imagenet2012")
    found = diagnose(tmp_path / "imagenet2012", 1, quiet=True).findings
    assert [(f.kind, f.name, f.detail) for f in found] == [
        ("wrong_count", "classes", "2, not 1,000"),
        ("wrong_count", "images", "10, not 1,281,167"),
        ("wrong_count", "images", "6, not 50,000"),
    ]


def test_bad_calls(tmp_path):
    with pytest.raises(UserError, match="is not a directory"):
        command.main([str(tmp_path / "nowhere")])
    with pytest.raises(UserError, match="looked for dataset_info"):
        command.main([str(tmp_path)])
    with pytest.raises(UserError, match="--allow=leek is not a kind of error; they are unreadable"):
        command.main([str(tmp_path), "--allow=leek"])
    with pytest.raises(UserError, match="--workers=0"):
        command.main([str(tmp_path), "--workers=0"])


def test_help_lists_every_kind(capsys):
    with pytest.raises(SystemExit):
        command.main(["--help"])
    out = capsys.readouterr().out
    for kind in (*ERRORS, *WARNINGS):
        assert f"  {kind} " in out
