"""Read every record of a split on all cores and keep about 40 bytes of each."""

import functools
import pickle
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from imagenet_jax.data.pool import Pool
from imagenet_jax.data.sources import Source
from imagenet_jax.doctor.findings import Finding
from imagenet_jax.doctor.inspection import HASH_BYTES, Facts, inspect
from imagenet_jax.errors import one_line
from imagenet_jax.markup import printable
from imagenet_jax.prepare.progress import Reporter

_NO_LABEL = -1  # tfds's mark of test images, and ours of a record that cannot be read
_CHUNK = 64  # records to a task: enough to forget its overhead, few enough for a smooth bar

_ROW = np.dtype(
    [
        ("digest", np.uint8, HASH_BYTES),
        ("label", np.int64),
        ("size", np.int64),
        ("height", np.int32),
        ("width", np.int32),
    ]
)

_Part = tuple[np.ndarray, Counter[str], list[tuple[int, str, str, str]]]


class Survey:
    """What is known of a split.

    Attributes:
      name: of the split.
      source: its records.
      rows: by record: digest (zeros where there are no bytes), label, size (bytes), height and
        width (pixels; 0 where it cannot be decoded).
      formats: images by format.
      findings: about single records, in their order.
    """

    def __init__(self, name: str, source: Source, workers: int, quiet: bool = False):
        """Reads all of it with `workers` processes; raises UserError where one of them dies."""
        self.name, self.source = name, source
        self.rows = np.zeros(len(source), _ROW)
        self.formats: Counter[str] = Counter()
        found: list[tuple[int, str, str, str]] = []
        with Reporter(name, len(source), in_bytes=False, quiet=quiet) as reporter:
            for start, (rows, formats, some) in _parts(source, workers):
                self.rows[start : start + len(rows)] = rows
                self.formats.update(formats)
                found += some
                reporter.advance(len(rows))
        found.sort()  # parts come as they end
        self.findings = [Finding(kind, name, record, detail) for _, kind, record, detail in found]

    def record_name(self, index: int) -> str:
        """The name of a record, read from the data: names of all would not fit in memory."""
        return printable(self.source[index]["id"])


def _parts(source: Source, workers: int) -> Iterator[tuple[int, _Part]]:
    """(first index, part), in any order."""
    spans = [(i, min(i + _CHUNK, len(source))) for i in range(0, len(source), _CHUNK)]
    if min(workers, len(spans)) <= 1:
        for start, stop in spans:
            yield start, _survey(source, start, stop)
        return
    # The names of a million files go to each worker once, not with each task.
    with tempfile.TemporaryDirectory() as directory, Pool(min(workers, len(spans))) as pool:
        file = str(Path(directory) / "source")
        Path(file).write_bytes(pickle.dumps(source))
        yield from pool.run(_survey_file, ((s[0], (file, *s)) for s in spans))


@functools.lru_cache(1)
def _load(file: str) -> Source:
    return pickle.loads(Path(file).read_bytes())


def _survey_file(file: str, start: int, stop: int) -> _Part:
    return _survey(_load(file), start, stop)


def _survey(source: Source, start: int, stop: int) -> _Part:
    rows = np.zeros(stop - start, _ROW)
    formats: Counter[str] = Counter()
    found: list[tuple[int, str, str, str]] = []
    for i, row in zip(range(start, stop), rows, strict=True):
        try:
            record = source[i]
        except Exception as e:  # a file that is gone or a shard that is damaged
            row["label"] = _NO_LABEL
            reason = printable(one_line(e))
            found.append((i, "unreadable", f"record {i}", reason))
            continue
        facts: Facts = inspect(record["image"], record["id"])
        row["digest"] = np.frombuffer(facts.digest, np.uint8)
        row["label"], row["size"] = record["label"], facts.size
        row["height"], row["width"] = facts.height, facts.width
        formats[facts.format] += 1
        name = printable(record["id"])
        found += [(i, kind, name, detail) for kind, detail in facts.findings]
        if not _NO_LABEL <= record["label"] < len(source.class_names):
            found.append((i, "bad_label", name, f"label {record['label']}"))
    return rows, formats, found
