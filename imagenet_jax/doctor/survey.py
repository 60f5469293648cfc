"""Inspects every image of a split, on all cores, and keeps about 40 bytes of each."""

import functools
import hashlib
import pickle
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image

from imagenet_jax.data import Source
from imagenet_jax.data.decode import decode
from imagenet_jax.data.image_formats import UndecodableImage, open_image
from imagenet_jax.data.workers import Pool
from imagenet_jax.doctor import Finding
from imagenet_jax.errors import one_line, printable
from imagenet_jax.progress import ProgressReporter

_TINY = 32  # pixels; crops of smaller images are blurred
_HASH_BYTES = 16  # of SHA-256: enough to avoid collisions among a billion images
_NO_LABEL = -1  # label of test images in tfds, and of records that cannot be read
_CHUNK = 64  # records per task: enough to hide its overhead, few enough for smooth progress

_ORIENTATION = 0x0112  # EXIF tag
_FORMATS = {
    ".jpeg": "JPEG", ".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP",
    ".gif": "GIF", ".tif": "TIFF", ".tiff": "TIFF",
}  # fmt: skip

_ROW = np.dtype(
    [("digest", np.uint8, _HASH_BYTES), ("label", np.int64), ("size", np.int64),
     ("height", np.int32), ("width", np.int32)]
)  # fmt: skip

# Rows, formats, and (index, kind, record, detail) of the findings in a span of records.
_Part = tuple[np.ndarray, Counter[str], list[tuple[int, str, str, str]]]


class Survey:
    """What is known about a split.

    Attributes:
      name: name of the split.
      source: its records.
      rows: for each record, its digest (zeros if it cannot be read), label, size (bytes), height
        and width (pixels; 0 if it cannot be decoded).
      formats: number of images by format.
      findings: findings about single records, in their order.
    """

    def __init__(self, name: str, source: Source, workers: int, quiet: bool = False):
        """Inspect all records with `workers` processes. Raises UserError if a process dies."""
        self.name, self.source = name, source
        self.rows = np.zeros(len(source), _ROW)
        self.formats: Counter[str] = Counter()
        found: list[tuple[int, str, str, str]] = []
        with ProgressReporter(name, len(source), quiet=quiet) as reporter:
            for start, (rows, formats, some) in _survey_parts(source, workers):
                self.rows[start : start + len(rows)] = rows
                self.formats.update(formats)
                found += some
                reporter.advance(len(rows))
        found.sort()  # parts arrive in any order
        self.findings = [Finding(kind, name, record, detail) for _, kind, record, detail in found]

    def record_name(self, index: int) -> str:
        """Return the name of a record, read from the data because not all names fit in memory."""
        return printable(self.source[index]["id"])

    def class_counts(self) -> list[int]:
        """Return the number of images of each class."""
        classes = len(self.source.class_names)
        labels = self.rows["label"]
        valid = labels[(labels >= 0) & (labels < classes)]
        return np.bincount(valid, minlength=classes).tolist()


def _survey_parts(source: Source, workers: int) -> Iterator[tuple[int, _Part]]:
    """Yield (first index, part) in any order."""
    spans = [(i, min(i + _CHUNK, len(source))) for i in range(0, len(source), _CHUNK)]
    workers = min(workers, len(spans))
    if workers <= 1:
        for start, stop in spans:
            yield start, _survey_span(source, start, stop)
        return
    # A source with a million file names is sent to each worker once, not with each task.
    with tempfile.TemporaryDirectory() as directory, Pool(workers) as pool:
        file = Path(directory) / "source"
        file.write_bytes(pickle.dumps(source))
        yield from pool.run(_survey_span, ((start, (file, start, stop)) for start, stop in spans))


@functools.lru_cache(1)
def _load_source(file: Path) -> Source:
    return pickle.loads(file.read_bytes())


def _survey_span(source: Source | Path, start: int, stop: int) -> _Part:
    if isinstance(source, Path):
        source = _load_source(source)
    rows = np.zeros(stop - start, _ROW)
    formats: Counter[str] = Counter()
    found: list[tuple[int, str, str, str]] = []
    for i, row in zip(range(start, stop), rows, strict=True):
        try:
            record = source[i]
        except Exception as e:  # a file that is gone or a shard that is damaged
            row["label"] = _NO_LABEL
            found.append((i, "unreadable", f"record {i}", printable(one_line(e))))
            continue
        facts = inspect(record["image"], record["id"])
        row["digest"] = np.frombuffer(facts.digest, np.uint8)
        row["label"], row["size"] = record["label"], len(record["image"])
        row["height"], row["width"] = facts.height, facts.width
        formats[facts.format] += 1
        name = printable(record["id"])
        found += [(i, kind, name, detail) for kind, detail in facts.findings]
        if not _NO_LABEL <= record["label"] < len(source.class_names):
            found.append((i, "bad_label", name, f"label {record['label']}"))
    return rows, formats, found


class Facts(NamedTuple):
    """What is known about an image.

    Attributes:
      digest: shortened SHA-256 of the encoded bytes.
      height, width: pixels; 0 if it cannot be decoded.
      format: a format such as "JPEG RGB", or "?" if it is unknown.
      findings: (kind, detail) of each finding.
    """

    digest: bytes
    height: int
    width: int
    format: str
    findings: tuple[tuple[str, str], ...]


def inspect(encoded: bytes, name: str) -> Facts:
    """Return the facts of an image; the suffix of `name` should match its format. Never raises."""
    digest = hashlib.sha256(encoded).digest()[:_HASH_BYTES]
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")  # `image_formats` suppresses them
        try:
            with open_image(encoded) as image:
                kind, findings = _inspect_header(image, encoded, PurePosixPath(name).suffix.lower())
        except Exception:  # from any of Pillow's plugins; only decoding counts
            kind, findings = "?", []
    about = dict.fromkeys(str(w.message) for w in warned if issubclass(w.category, UserWarning))
    if about:
        findings.append(("odd_metadata", one_line("; ".join(about), length=None)))
    try:
        height, width = decode(encoded).shape[:2]
    except Exception as e:
        what = str(e) if isinstance(e, UndecodableImage) else f"{type(e).__name__}: {e}"
        damage = "truncated" if encoded and _ends_early(encoded) else "unreadable"
        return Facts(digest, 0, 0, kind, ((damage, one_line(what, length=None)),))
    if min(height, width) < _TINY:
        findings.append(("tiny", f"{width}x{height} pixels"))
    if _ends_early(encoded):
        findings.append(("unterminated", ""))
    return Facts(digest, height, width, kind, tuple(findings))


def _inspect_header(
    image: Image.Image, encoded: bytes, suffix: str
) -> tuple[str, list[tuple[str, str]]]:
    """Return ("JPEG RGB", findings) of an image that is open and not yet decoded."""
    # MPO is a camera's JPEG followed by a preview; for training it is a JPEG.
    kind = "JPEG" if image.format == "MPO" else str(image.format)
    orientation = _orientation(image, encoded)
    # Pillow's mode does not show 16-bit color in a PNG, but its header has the depth.
    deep = image.mode.startswith("I") or (kind == "PNG" and encoded[24] == 16)
    animated = kind != "JPEG" and getattr(image, "is_animated", False)
    checks = (
        ("cmyk", image.mode == "CMYK", ""),
        ("sixteen_bit", deep, ""),
        ("animated", animated, f"{getattr(image, 'n_frames', '?')} frames" if animated else ""),
        ("alpha", image.has_transparency_data, image.mode),
        ("misnamed", _FORMATS.get(suffix, kind) != kind, f"holds {kind}"),
        ("exif_rotated", orientation != 1, f"orientation {orientation}"),
    )
    findings = [(finding, detail) for finding, found, detail in checks if found]
    return f"{kind} {image.mode}", findings


def _orientation(image: Image.Image, encoded: bytes) -> int:
    """Return the EXIF orientation, 1 to 8; 1 is upright."""
    if image.format == "PNG" and b"eXIf" not in encoded:
        return 1  # Pillow would decode the whole image to find out
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged metadata; the pixels may be intact
        return 1
    return value if value in range(1, 9) else 1


def _ends_early(encoded: bytes) -> bool:
    """Return whether the file lacks the end that its format requires."""
    if encoded[:2] == b"\xff\xd8":  # an end marker after the start of the last scan
        scan = encoded.rfind(b"\xff\xda")
        return scan < 0 or encoded.find(b"\xff\xd9", scan) < 0
    if encoded[:4] == b"\x89PNG":
        return b"IEND" not in encoded[-4096:]
    if encoded[:4] == b"RIFF":
        return len(encoded) < 8 + int.from_bytes(encoded[4:8], "little")
    if encoded[:4] == b"GIF8":
        return b";" not in encoded[-16:]
    if encoded[:2] == b"BM":
        return len(encoded) < int.from_bytes(encoded[2:6], "little")
    return False
