"""TensorBoard event files: scalars, histograms and images.

An event file is a sequence of TFRecord frames with one `Event` each. A frame is the length (u64),
its masked CRC-32C (u32), the data and their masked CRC-32C (u32), little-endian:
https://www.tensorflow.org/tutorials/load_data/tfrecord
"""

import io
import secrets
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from imagenet_jax.files import write_atomically
from imagenet_jax.logs.writers import (
    AppendFile,
    Histogram,
    Values,
    Writer,
    name_curves,
    name_images,
)

_LENGTH = struct.Struct("<Q")
_CRC = struct.Struct("<I")


class TensorBoardWriter(Writer):
    """Writes an event file per start, and removes points after `resume_step` of earlier starts."""

    def __init__(self, directory: Path, resume_step: int = 0):
        truncate(directory, resume_step)
        self._file = _create_event_file(directory, resume_step)

    def write(self, step: int, split: str, values: Values) -> None:
        group, numbers = name_curves(split, values)
        event = _make_event(step)
        for name, value in numbers.items():
            event.summary.value.add(tag=f"{group}/{name}", simple_value=value)
        self._add(event)

    def histograms(self, step: int, histograms: Mapping[str, Histogram]) -> None:
        event = _make_event(step)
        for name, (counts, edges) in histograms.items():
            _fill(event.summary.value.add(tag=name).histo, np.asarray(counts), np.asarray(edges))
        self._add(event)

    def images(self, step: int, name: str, pixels: np.ndarray) -> None:
        event = _make_event(step)
        for tag, picture in name_images(name, pixels).items():
            png = io.BytesIO()
            Image.fromarray(picture).save(png, "PNG")
            height, width, channels = picture.shape
            image = event.summary.value.add(tag=tag).image
            image.height, image.width, image.colorspace = height, width, channels
            image.encoded_image_string = png.getvalue()
        self._add(event)

    def _add(self, event: Event) -> None:
        self._file.write(frame(event.SerializeToString()))

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _make_event(step: int) -> Event:
    return Event(wall_time=time.time(), step=step)


def _fill(histo: Any, counts: np.ndarray, edges: np.ndarray) -> None:
    """Fill a HistogramProto. Bucket i ends at bucket_limit[i]; sums use the centers of the bins.

    https://github.com/tensorflow/tensorboard/blob/master/tensorboard/compat/proto/histogram.proto
    """
    middles = (edges[:-1] + edges[1:]) / 2
    histo.min, histo.max, histo.num = float(edges[0]), float(edges[-1]), float(counts.sum())
    histo.sum = float((counts * middles).sum())
    histo.sum_squares = float((counts * middles**2).sum())
    histo.bucket_limit.extend(edges[1:].astype(float).tolist())
    histo.bucket.extend(counts.astype(float).tolist())


def frame(data: bytes) -> bytes:
    """Return `data` as a TFRecord frame."""
    length = _LENGTH.pack(len(data))
    return length + _CRC.pack(masked_crc32c(length)) + data + _CRC.pack(masked_crc32c(data))


def records(content: bytes) -> list[bytes]:
    """Return the data of each frame, up to the first one that is incomplete or damaged."""
    found, at = [], 0
    while at + _LENGTH.size + _CRC.size <= len(content):
        (length,) = _LENGTH.unpack_from(content, at)
        data = content[at + 12 : at + 12 + length]
        if content[at : at + 16 + length] != frame(data):
            break
        found.append(data)
        at += 16 + length
    return found


def _create_event_file(directory: Path, resume_step: int) -> AppendFile:
    """Create a file that starts with `resume_step`, so that TensorBoard drops later points."""
    directory.mkdir(parents=True, exist_ok=True)
    seconds, nanoseconds = divmod(time.time_ns(), 10**9)
    now = seconds + nanoseconds / 1e9
    # TensorBoard reads files in the order of their names, so nanoseconds order two starts within a
    # second. The random token distinguishes containers with the same host name.
    unique = f"{nanoseconds:09d}-{secrets.token_hex(4)}"
    name = f"events.out.tfevents.{seconds}.{socket.gethostname()}.{unique}.{resume_step}"
    file = AppendFile(directory / name)
    file.write(frame(Event(wall_time=now, file_version="brain.Event:2").SerializeToString()))
    start = Event(wall_time=now, step=resume_step + 1)
    start.session_log.status = start.session_log.START
    file.write(frame(start.SerializeToString()))
    return file


def truncate(directory: Path, step: int) -> None:
    """Remove points after `step`, and damaged records, from every event file of `directory`."""
    for path in sorted(directory.glob("events.out.tfevents.*")):
        content = path.read_bytes()
        kept = b"".join(frame(data) for data in records(content) if _is_kept(data, step))
        if kept != content:
            write_atomically(path, kept)


def _is_kept(data: bytes, step: int) -> bool:
    event = Event.FromString(data)
    return not event.HasField("summary") or event.step <= step
