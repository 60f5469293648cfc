"""Files of records on a disk that fails in the middle of one; TensorBoard's frames."""

import errno
import os

import pytest

from imagenet_jax.logs import tensorboard, writers
from imagenet_jax.logs.tensorboard import TensorBoardWriter
from imagenet_jax.logs.writers import AppendFile


def _disk_of(monkeypatch, size):
    """Writes beyond `size` bytes are cut short, and fail where nothing fits."""
    real = os.pwrite

    def pwrite(file, data, offset):
        if offset >= size[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, data[: size[0] - offset], offset)

    monkeypatch.setattr(writers.os, "pwrite", pwrite)


def test_a_record_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    size = [10]
    _disk_of(monkeypatch, size)
    file = AppendFile(tmp_path / "f")
    for record in (b"first\n", b"second\n", b"third\n"):
        file.write(record)
    assert (tmp_path / "f").read_bytes() == b"first\n"
    with pytest.raises(OSError, match="No space"):
        file.flush()
    size[0] = 1000
    file.write(b"fourth\n")
    file.flush()
    file.close()
    assert (tmp_path / "f").read_bytes() == b"first\nsecond\nthird\nfourth\n"


def test_closing_on_a_full_disk_loses_only_what_was_never_written(tmp_path, monkeypatch):
    _disk_of(monkeypatch, [8])
    file = AppendFile(tmp_path / "f")
    file.write(b"first\n")
    file.write(b"second\n")
    file.close()
    assert (tmp_path / "f").read_bytes() == b"first\n"


def test_an_existing_file_is_continued(tmp_path):
    (tmp_path / "f").write_bytes(b"first\n")
    file = AppendFile(tmp_path / "f")
    file.write(b"second\n")
    file.close()
    assert (tmp_path / "f").read_bytes() == b"first\nsecond\n"


def test_frames_are_those_that_tensorboard_reads(tmp_path):
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader

    data = [b"", b"x", bytes(range(256)) * 9]
    path = tmp_path / "records"
    path.write_bytes(b"".join(map(tensorboard.frame, data)))
    assert list(RawEventFileLoader(str(path)).Load()) == data
    assert tensorboard.records(path.read_bytes()) == data


@pytest.mark.parametrize("cut", [1, 4, 11, 12, 16, 17])
def test_records_end_where_a_kill_tore_them(cut):
    whole = tensorboard.frame(b"kept") + tensorboard.frame(b"torn")
    assert tensorboard.records(whole[:-cut]) == [b"kept"]
    flipped = bytearray(whole)
    flipped[len(tensorboard.frame(b"kept")) + 13] ^= 1
    assert tensorboard.records(bytes(flipped)) == [b"kept"]


def test_event_files_hold_each_step_once_after_resumption(tmp_path):
    """Counted in the files themselves, whatever a reader hides."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    for resume, steps in ((0, (1, 2, 3)), (2, (3, 4)), (4, (5,))):
        writer = TensorBoardWriter(tmp_path, resume)
        for step in steps:
            writer.write(step, "train", {"loss": step + resume / 10})
        writer.close()
        newest = max(tmp_path.iterdir(), key=lambda p: p.stat().st_mtime_ns)
        with newest.open("ab") as file:
            file.write(tensorboard.frame(b"x")[:-2])  # as a kill may leave it
    TensorBoardWriter(tmp_path, 5).close()
    points = [
        (event.step, value.simple_value)
        for path in tmp_path.iterdir()
        for event in LegacyEventFileLoader(str(path)).Load()
        for value in event.summary.value
    ]
    assert sorted(points) == [
        (s, pytest.approx(v)) for s, v in ((1, 1), (2, 2), (3, 3.2), (4, 4.2), (5, 5.4))
    ]
