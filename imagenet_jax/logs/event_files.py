"""TensorBoard's event files: records of one `Event` each, framed as TFRecord frames them.

A frame is the length (u64), its masked CRC-32C (u32), the data and their masked CRC-32C (u32),
little-endian: https://www.tensorflow.org/tutorials/load_data/tfrecord
"""

import secrets
import socket
import struct
import time
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from imagenet_jax.files import write_atomically
from imagenet_jax.logs.append_file import AppendFile

_HEADER = struct.Struct("<Q")
_CRC = struct.Struct("<I")


def frame(data: bytes) -> bytes:
    """One record."""
    header = _HEADER.pack(len(data))
    return b"".join(
        (header, _CRC.pack(masked_crc32c(header)), data, _CRC.pack(masked_crc32c(data)))
    )


def records(content: bytes) -> list[bytes]:
    """The data of each record up to the first that is torn or damaged."""
    found, at = [], 0
    while at + _HEADER.size + _CRC.size <= len(content):
        (length,) = _HEADER.unpack_from(content, at)
        data = content[at + 12 : at + 12 + length]
        if content[at : at + 16 + length] != frame(data):
            break
        found.append(data)
        at += 16 + length
    return found


def new_event_file(directory: Path, resume_step: int) -> AppendFile:
    """A new file that says where it continues, so that an open TensorBoard drops what follows."""
    directory.mkdir(parents=True, exist_ok=True)
    seconds, rest = divmod(time.time_ns(), 10**9)
    now = seconds + rest / 1e9
    # TensorBoard reads files in the order of their names: nanoseconds order two starts within a
    # second. The random token tells two containers of one host name apart.
    unique = f"{rest:09d}-{secrets.token_hex(4)}"
    name = f"events.out.tfevents.{seconds}.{socket.gethostname()}.{unique}.{resume_step}"
    file = AppendFile(directory / name)
    file.write(frame(Event(wall_time=now, file_version="brain.Event:2").SerializeToString()))
    start = Event(wall_time=now, step=resume_step + 1)
    start.session_log.status = start.session_log.START
    file.write(frame(start.SerializeToString()))
    return file


def truncate(directory: Path, step: int) -> None:
    """Drop the points after `step`, and torn records, from every event file of `directory`."""
    for path in sorted(directory.glob("events.out.tfevents.*")):
        content = path.read_bytes()
        kept = b"".join(frame(data) for data in records(content) if _is_kept(data, step))
        if kept != content:
            write_atomically(path, kept)


def _is_kept(data: bytes, step: int) -> bool:
    event = Event.FromString(data)
    return not event.HasField("summary") or event.step <= step
