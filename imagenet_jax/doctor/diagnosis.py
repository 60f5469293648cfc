"""Diagnosis of a data set: findings in and between its splits, counts, and a fingerprint."""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from imagenet_jax.data import Source
from imagenet_jax.data.classes import imagenet_wnids
from imagenet_jax.data.image_files import Note, SplitSource
from imagenet_jax.data.sources import recognize
from imagenet_jax.data.tfds_format import open_tfds, read_info
from imagenet_jax.doctor import ERRORS, WARNINGS, Finding
from imagenet_jax.doctor.survey import Survey
from imagenet_jax.errors import UserError, printable, reading_files
from imagenet_jax.formatting import counted, format_bytes
from imagenet_jax.prepare.imagenet import OFFICIAL

_SHOWN = 5  # findings of each kind that are printed; --json has all of them
_BINS = 8  # maximum number of bins of the histogram of class sizes
_BARS = " ▁▂▃▄▅▆▇█"


@dataclass
class DataSet:
    """All splits of a data set, including those that training would not accept.

    Attributes:
      path: its folder.
      name: name such as "imagenet2012".
      layout: "tfds", or the name of a `Layout`.
      splits: name -> records.
      findings: findings from opening the data set.
    """

    path: Path
    name: str
    layout: str
    splits: dict[str, Source] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


@reading_files()
def open_splits(path: Path) -> DataSet:
    """Open all splits. Raises UserError if there is no data set or it cannot be opened."""
    if not path.is_dir():
        raise UserError(f"{path} is not a directory; give one that `prepare` wrote, or a folder")
    if (path / "dataset_info.json").is_file():
        info = read_info(path)
        if not info.splits:
            raise UserError(f"{path} has no splits; prepare it again")
        sources: dict[str, Source] = {name: open_tfds(path, name) for name in info.splits}
        return DataSet(path, info.name, "tfds", sources)
    layout = recognize(path)
    splits = {split: find() for split, find in layout.splits.items()} if layout else {}
    if not layout or not any(split.class_names or split.problems for split in splits.values()):
        found = [f"; {name}: {reason}" for name, reason in (layout.left_out if layout else [])]
        raise UserError(
            f"no data in {path}: looked for dataset_info.json (a tfds directory), "
            "train/CLASS/*.JPEG, val/CLASS/*.JPEG or CLASS/*.JPEG, tars and parquet files"
            + "".join(found)
        )
    data = DataSet(path, path.name, layout.name)

    def add(kind: str, split: str, notes: list[Note]) -> None:
        data.findings += [Finding(kind, split, printable(name), why) for name, why in notes]

    add("ignored_file", "", layout.left_out)
    for name, split in splits.items():
        add("ignored_file", name, split.left_out)
        add("unreadable", name, split.problems)
        data.splits[name] = SplitSource(split)
    if "train" in splits and "validation" not in splits:
        data.findings.append(Finding("no_validation", "", "validation", ""))
    return data


@dataclass(frozen=True)
class Diagnosis:
    """The result of the doctor's checks.

    Attributes:
      data: the data set.
      surveys: one per split.
      findings: findings in the order of splits, then those between splits.
      fingerprint: see `fingerprint_content`.
      allowed: kinds of errors that count as warnings.
    """

    data: DataSet
    surveys: list[Survey]
    findings: list[Finding]
    fingerprint: str
    allowed: Collection[str]

    @property
    def errors(self) -> int:
        """The number of findings that are errors and not allowed."""
        return sum(f.kind in ERRORS and f.kind not in self.allowed for f in self.findings)

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "path": str(self.data.path),
            "name": self.data.name,
            "layout": self.data.layout,
            "fingerprint": self.fingerprint,
            "errors": self.errors,
            "allowed": sorted(set(self.allowed)),
            "splits": {survey.name: _summarize(survey) for survey in self.surveys},
            "counts": dict(Counter(finding.kind for finding in self.findings)),
            "findings": [finding._asdict() for finding in self.findings],
        }


def diagnose(
    path: Path, workers: int, allowed: Collection[str] = (), *, quiet: bool = False
) -> Diagnosis:
    """Inspect every image of the data set at `path`. Raises UserError if there is none.

    Progress is shown unless `quiet`.
    """
    if not quiet:
        print(f"opening {printable(str(path))}", flush=True)
    data = open_splits(path)
    surveys = [Survey(name, source, workers, quiet) for name, source in data.splits.items()]
    findings = [
        *data.findings,
        *(finding for survey in surveys for finding in survey.findings),
        *(finding for survey in surveys for finding in _check_split(survey)),
        *_compare_splits(surveys),
        *_compare_with_imagenet(data, surveys),
    ]
    return Diagnosis(data, surveys, findings, fingerprint_content(surveys), allowed)


def fingerprint_content(surveys: list[Survey]) -> str:
    """Return 16 hexadecimal digits that identify the images and their classes in each split.

    File names, order, shards and storage do not matter, so a folder and a data set that was
    prepared from it without loss have the same fingerprint.
    """
    whole = hashlib.sha256()
    for survey in sorted(surveys, key=lambda s: s.name):
        names = dict(enumerate(survey.source.class_names)) | {-1: ""}
        entries = []
        for row in survey.rows:
            name = names.get(int(row["label"]), f"label {row['label']}")
            entries.append(row["digest"].tobytes() + name.encode("utf-8", "surrogateescape"))
        whole.update(f"{survey.name} {len(entries)}\0".encode())
        for entry in sorted(entries):
            whole.update(entry + b"\0")
    return whole.hexdigest()[:16]


def _check_split(survey: Survey) -> Iterator[Finding]:
    labels = survey.rows["label"]
    if len(labels) and (labels < 0).all():
        return  # a test split without labels
    for name, count in zip(survey.source.class_names, survey.class_counts(), strict=True):
        if not count:
            yield Finding("empty_class", survey.name, printable(name), "")
    for indices in _group_equal(survey.rows["digest"]):
        same = len(set(labels[indices].tolist())) == 1
        kind = "duplicate" if same else "conflicting_labels"
        first, *others = (survey.record_name(i) for i in indices.tolist())
        yield Finding(kind, survey.name, first, "also " + ", ".join(others))


def _compare_splits(surveys: list[Survey]) -> Iterator[Finding]:
    for i, later in enumerate(surveys):
        for earlier in surveys[:i]:
            if earlier.source.class_names != later.source.class_names:
                a, b = set(earlier.source.class_names), set(later.source.class_names)
                only = printable(", ".join(sorted(a ^ b)[:5]))
                yield Finding("different_classes", later.name, earlier.name, f"not in both: {only}")
            both = np.concatenate([earlier.rows["digest"], later.rows["digest"]])
            border = len(earlier.rows)
            for indices in _group_equal(both):
                left, right = indices[indices < border], indices[indices >= border] - border
                if len(left) and len(right):
                    other = earlier.record_name(int(left[0]))
                    for index in right.tolist():
                        name = later.record_name(index)
                        yield Finding("leakage", later.name, name, f"{earlier.name}: {other}")


def _compare_with_imagenet(data: DataSet, surveys: list[Survey]) -> Iterator[Finding]:
    """Yield wrong counts of a data set that has ImageNet's name or its classes."""
    classes, wnids = surveys[0].source.class_names if surveys else (), imagenet_wnids()
    if not (data.name.startswith("imagenet2012") or classes == wnids):
        return
    if len(classes) != len(wnids):
        yield Finding("wrong_count", "", "classes", f"{len(classes):,}, not {len(wnids):,}")
    found = {survey.name: len(survey.rows) for survey in surveys}
    for split, count in OFFICIAL.items():
        if found.get(split, 0) != count:
            yield Finding("wrong_count", split, "images", f"{found.get(split, 0):,}, not {count:,}")


def _group_equal(digests: np.ndarray) -> list[np.ndarray]:
    """Return the indices of each digest that occurs more than once, except for zeros."""
    keys = np.ascontiguousarray(digests).view(f"V{digests.shape[1]}").ravel()
    order = np.argsort(keys, kind="stable") if len(keys) else np.empty(0, int)
    ends = np.flatnonzero(keys[order][1:] != keys[order][:-1]) + 1
    groups = np.split(order, ends)
    return [group for group in groups if len(group) > 1 and digests[group[0]].any()]


def _summarize(survey: Survey) -> dict[str, Any]:
    rows = survey.rows
    sizes = rows[rows["height"] > 0]

    def spread(values: np.ndarray) -> dict[str, float]:
        low, middle, high = np.percentile(values, [0, 50, 100]).tolist() if len(values) else [0] * 3
        return {"min": low, "median": middle, "max": high}

    return {
        "images": len(rows),
        "bytes": int(rows["size"].sum()),
        "decodable": len(sizes),
        "width": spread(sizes["width"]),
        "height": spread(sizes["height"]),
        "file_bytes": spread(rows["size"]),
        "formats": dict(survey.formats.most_common()),
        "classes": dict(zip(survey.source.class_names, survey.class_counts(), strict=True)),
    }


def print_diagnosis(diagnosis: Diagnosis) -> None:
    """Print a table of the splits, the findings, and a line with the result."""
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"{escape(diagnosis.data.name)} ({diagnosis.data.layout}, {diagnosis.data.path})")
    console.print(_make_table(diagnosis.surveys))
    by_kind: dict[str, list[Finding]] = defaultdict(list)
    for finding in diagnosis.findings:
        by_kind[finding.kind].append(finding)
    for kind, meaning in (ERRORS | WARNINGS).items():
        if not (found := by_kind[kind]):
            continue
        if kind in diagnosis.allowed:
            title = "[yellow]allowed[/]"
        else:
            title = "[red]error[/]" if kind in ERRORS else "[yellow]warning[/]"
        console.print(f"{title} {kind}: {len(found):,} ({meaning})")
        for finding in found[:_SHOWN]:
            where = " ".join(filter(None, (finding.split, finding.name)))
            detail = f": {finding.detail}" if finding.detail else ""
            console.print(escape(f"    {where}{detail}"))
        if len(found) > _SHOWN:
            console.print(f"    and {len(found) - _SHOWN:,} more (--json=FILE lists them)")
    errors = diagnosis.errors
    warnings = len(diagnosis.findings) - errors
    console.print(
        f"{counted(errors, 'error') if errors else 'no errors'}, "
        f"{counted(warnings, 'warning') if warnings else 'no warnings'}; "
        f"fingerprint {diagnosis.fingerprint}"
    )


def _make_table(surveys: list[Survey]) -> Table:
    table = Table()
    for column in ("split", "images", "classes", "per class", "bytes", "median", "formats"):
        numeric = column in ("images", "classes", "bytes")
        table.add_column(
            column, justify="right" if numeric else "left", no_wrap=column != "formats"
        )
    for survey in surveys:
        rows = survey.rows[survey.rows["height"] > 0]
        width, height = (int(np.median(rows[a])) if len(rows) else 0 for a in ("width", "height"))
        table.add_row(
            survey.name,
            f"{len(survey.rows):,}",
            f"{len(survey.source.class_names):,}",
            _format_class_sizes(survey.class_counts()),
            format_bytes(int(survey.rows["size"].sum())),
            f"{width} x {height}",
            ", ".join(f"{kind} {count:,}" for kind, count in survey.formats.most_common(4)),
        )
    return table


def _format_class_sizes(counts: list[int]) -> str:
    """Return the sizes of the smallest and largest class, with a histogram between them."""
    low, high = min(counts, default=0), max(counts, default=0)
    if low == high:
        return f"{low:,} each"
    bins = np.histogram(counts, min(_BINS, high - low + 1), (low, high))[0].tolist()
    bars = "".join(_BARS[math.ceil(n / max(bins) * (len(_BARS) - 1))] for n in bins)
    return f"{low:,} {bars} {high:,}"
