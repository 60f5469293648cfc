"""Folders as disks have them: dangling links, names that are not UTF-8, missing permissions."""

import ctypes
import io
import os

import numpy as np
import pytest
from conftest import tiny_config
from PIL import Image

from imagenet_jax import cli
from imagenet_jax import main as main_command
from imagenet_jax.data import sources
from imagenet_jax.doctor import __main__ as doctor_command
from imagenet_jax.doctor.diagnosis import diagnose
from imagenet_jax.errors import UserError, printable
from imagenet_jax.prepare import __main__ as prepare_command

BAD_NAME, BAD_IMAGE = os.fsdecode(b"caf\xe9"), os.fsdecode(b"caf\xe9.jpg")


@pytest.fixture
def folder(tmp_path):
    """Two images of two classes in both splits, all different."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("ant", "bee"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for i in range(2):
                image = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
                image.save(tmp_path / "images" / split / name / f"{i}.jpg")
    return tmp_path / "images"


@pytest.fixture
def permissions_count():
    """Let permission bits bind the superuser too, by giving up the capabilities to ignore them."""
    if os.geteuid():
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # the version of the interface; this thread
    before, after = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, before) == libc.capget(header, after) == 0
    after[0] &= ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    assert libc.capset(header, after) == 0
    yield
    assert libc.capset(header, before) == 0


def _dangle(path):
    path.symlink_to("/nowhere/x")


def _rename_class(folder):
    for split in ("train", "val"):
        (folder / split / "bee").rename(folder / split / BAD_NAME)


TO_NOTHING = r"is a link to /nowhere/x, which does not exist"
NOT_UTF8 = r"caf\\xe9.* is not UTF-8; rename it"
FAULTS = {
    "dangling image": (lambda f: _dangle(f / "train/ant/x.jpg"), rf"ant/x\.jpg {TO_NOTHING}"),
    "dangling class": (lambda f: _dangle(f / "train/cat"), rf"train/cat {TO_NOTHING}"),
    "link to itself": (
        lambda f: (f / "train/ant/x.jpg").symlink_to("x.jpg"),
        r"ant/x\.jpg cannot be read: Too many levels",
    ),
    "file name": (lambda f: (f / "train/ant/0.jpg").rename(f / "train/ant" / BAD_IMAGE), NOT_UTF8),
    "class name": (_rename_class, NOT_UTF8),
}
LOCKED = {
    "class": ("train/ant", r"train/ant cannot be read: Permission denied"),
    "split": ("train", r"train cannot be read: Permission denied"),
    "all": (".", r"cannot be read: Permission denied"),
}


def _data(folder):
    data = tiny_config(folder).data
    data.source = "auto"
    return data


def _prepare(folder, out):
    prepare_command.main([f"--folder={folder}", "--name=insects", f"--out={out}", "--workers=1"])
    return next((out / "insects").iterdir())


def _check_refused(folder, out, message):
    with pytest.raises(UserError, match=message):
        sources.open_source(_data(folder), "train")
    with pytest.raises(UserError, match=message):
        _prepare(folder, out)


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_trained_on_is_one_line_and_a_finding(folder, tmp_path, fault):
    make, message = FAULTS[fault]
    make(folder)
    _check_refused(folder, tmp_path / "out", message)
    findings = diagnose(folder, 1, quiet=True).findings
    assert {f.kind for f in findings} <= {"unreadable", "empty_class"}
    assert "unreadable" in {f.kind for f in findings}


@pytest.mark.parametrize("where", LOCKED)
def test_a_folder_without_permission_is_one_line(folder, tmp_path, permissions_count, where):
    place, message = LOCKED[where]
    mode = (folder / place).stat().st_mode
    (folder / place).chmod(0)
    try:
        _check_refused(folder, tmp_path / "out", message)
        if where == "class":
            found = diagnose(folder, 1, quiet=True).findings
            assert [(f.kind, f.name) for f in found] == [
                ("unreadable", "ant"), ("empty_class", "ant"),
            ]  # fmt: skip
            assert found[0].detail == "cannot be read: Permission denied"
        else:
            with pytest.raises(UserError, match=message):
                diagnose(folder, 1, quiet=True)
    finally:
        (folder / place).chmod(mode)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_that_is_a_link_to_nothing_is_not_left_out(folder, tmp_path, split):
    (folder / split).rename(tmp_path / "moved")
    _dangle(folder / split)
    with pytest.raises(UserError, match=f"{split} {TO_NOTHING}"):
        _prepare(folder, tmp_path / "out")
    with pytest.raises(UserError, match=f"{split} {TO_NOTHING}"):
        diagnose(folder, 1, quiet=True)


def test_a_held_out_folder_says_the_same(folder, permissions_count):
    data = _data(folder / "train")
    data.holdout = 0.5
    _dangle(folder / "train/bee/x.jpg")
    with pytest.raises(UserError, match=TO_NOTHING):
        sources.open_source(data, "validation")
    (folder / "train/ant").chmod(0)
    with pytest.raises(UserError, match="ant cannot be read: Permission denied"):
        sources.open_source(data, "train")
    (folder / "train/ant").chmod(0o700)


def test_commands_print_one_line(folder, tmp_path, permissions_count, fails):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0)
    two = ["--config.data.source=auto", "--config.model.num_classes=2"]
    main = ["--config=configs/quickstart.py", *two, "--config.batch_size=8"]
    _dangle(folder / "train/ant/x.jpg")
    data = f"--config.data.path={folder}"
    fails(main_command, [*main, data, f"--workdir={tmp_path / 'run'}"], "link to /nowhere/x")
    (folder / "train/ant/x.jpg").unlink()
    fails(main_command, [*main, data, f"--workdir={locked / 'run'}"], "locked/run", "denied")
    digits = ["--config=configs/quickstart.py", f"--config.data.path={locked}/digits/1.0.0"]
    fails(main_command, [*digits, f"--workdir={tmp_path / 'run'}"], "digits/1.0.0", "Permission")
    fails(doctor_command, [str(locked)], "locked/dataset_info.json", "Permission denied")


def test_good_names_have_no_finding_and_the_fingerprint_of_what_is_prepared(folder, tmp_path):
    odd = "\u202f\u3000\u00a0\n"  # as in every macOS screenshot, full-width, no break, new line
    images = (image for split in ("train", "val") for image in (folder / split / "ant").iterdir())
    for space, image in zip(odd, sorted(images), strict=True):
        image.rename(image.with_name(f"Screenshot 9{space}AM.jpg"))
    for split in ("train", "val"):
        (folder / split / "ant").rename(folder / split / "fire\u202fant")
        (folder / split / "bee").rename(folder / split / "honey\u3000bee")
    found = diagnose(folder, 1, quiet=True)
    assert found.findings == []
    prepared = diagnose(_prepare(folder, tmp_path / "out"), 1, quiet=True)
    assert prepared.findings == []
    assert found.fingerprint == prepared.fingerprint
    names = found.surveys[0].source.class_names
    assert names == sources.open_source(_data(folder), "train").class_names
    assert doctor_command.main([str(folder), "--workers=1"]) == 0


@pytest.mark.parametrize("name", ["honey\nbee", "bee\u3000", " bee", "bee\r"])
def test_class_names_that_tfds_does_not_keep_are_refused(folder, tmp_path, name):
    for split in ("train", "val"):
        (folder / split / "bee").rename(folder / split / name)
    assert diagnose(folder, 1, quiet=True).findings == []
    with pytest.raises(UserError, match="rename its folders") as e:
        _prepare(folder, tmp_path / "out")
    assert len(str(e.value).splitlines()) == 1


def test_names_are_shown_as_they_are_and_on_one_line():
    assert printable("a\u202fb\u3000c\u00a0d é") == "a\u202fb\u3000c\u00a0d é"
    assert printable("a\nb\x1b[31m\u2028") == r"a\nb\x1b[31m\u2028"
    assert printable(BAD_NAME) == r"caf\udce9"


def test_output_shows_what_the_terminal_cannot(monkeypatch):
    written = io.BytesIO()
    terminal = io.TextIOWrapper(written, encoding="ascii", write_through=True)
    monkeypatch.setattr("sys.argv", ["x"])
    monkeypatch.setattr("sys.stdout", terminal)
    with pytest.raises(SystemExit) as caught:
        cli.run(lambda argv: print(f"{BAD_NAME} \u3042"))
    assert not caught.value.code
    assert written.getvalue() == b"caf\\udce9 \\u3042\n"
