"""From surveys of the splits to a verdict: findings between images, counts, a fingerprint."""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from imagenet_jax.data.imagenet_classes import wnids
from imagenet_jax.doctor.findings import ERRORS, Finding
from imagenet_jax.doctor.splits import DataSet, open_splits
from imagenet_jax.doctor.survey import Survey
from imagenet_jax.markup import printable
from imagenet_jax.prepare.imagenet import OFFICIAL


class Diagnosis:
    """What the doctor has to say of a data set.

    Attributes:
      data: the data set.
      surveys: one a split.
      findings: in the order of splits, those between splits last.
      fingerprint: of the content, see `fingerprint`.
      allowed: kinds of errors that count as warnings.
    """

    def __init__(self, data: DataSet, surveys: list[Survey], allowed: Collection[str] = ()):
        self.data, self.surveys, self.allowed = data, surveys, frozenset(allowed)
        self.findings = [
            *data.findings,
            *(finding for survey in surveys for finding in survey.findings),
            *(finding for survey in surveys for finding in _of_split(survey)),
            *_between(surveys),
            *_against_imagenet(data, surveys),
        ]
        self.fingerprint = fingerprint(surveys)

    @property
    def errors(self) -> int:
        """Findings that are errors and not allowed."""
        return sum(f.kind in ERRORS and f.kind not in self.allowed for f in self.findings)

    def as_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            "path": str(self.data.path),
            "name": self.data.name,
            "layout": self.data.layout,
            "fingerprint": self.fingerprint,
            "errors": self.errors,
            "allowed": sorted(self.allowed),
            "splits": {survey.name: _summary(survey) for survey in self.surveys},
            "counts": dict(Counter(finding.kind for finding in self.findings)),
            "findings": [finding._asdict() for finding in self.findings],
        }


def diagnose(
    path: Path, workers: int, allowed: Collection[str] = (), *, quiet: bool = False
) -> Diagnosis:
    """Look at every image of the data set at `path`; UserError where there is none.

    Progress is shown unless `quiet`.
    """
    data = open_splits(path)
    surveys = [Survey(name, source, workers, quiet) for name, source in data.splits.items()]
    return Diagnosis(data, surveys, allowed)


def fingerprint(surveys: list[Survey]) -> str:
    """16 hex digits of the images and their classes, by split: file names, order, shards and
    storage do not enter, so that a folder and what was prepared from it without loss agree."""
    whole = hashlib.sha256()
    for survey in sorted(surveys, key=lambda s: s.name):
        names = dict(enumerate(survey.source.class_names)) | {-1: ""}
        digests = [
            row["digest"].tobytes()
            + names.get(label, f"label {label}").encode("utf-8", "surrogateescape")
            for row, label in zip(survey.rows, survey.rows["label"].tolist(), strict=True)
        ]
        whole.update(f"{survey.name} {len(digests)}\0".encode())
        for digest in sorted(digests):
            whole.update(digest + b"\0")
    return whole.hexdigest()[:16]


def _of_split(survey: Survey) -> Iterator[Finding]:
    labels = survey.rows["label"]
    if len(labels) and (labels < 0).all():
        return  # a test split, whose labels nobody has
    for name, count in zip(survey.source.class_names, class_counts(survey), strict=True):
        if not count:
            yield Finding("empty_class", survey.name, printable(name), "")
    for indices in _repeated(survey.rows["digest"]):
        same = len(set(labels[indices].tolist())) == 1
        kind = "duplicate" if same else "conflicting_labels"
        first, *others = (survey.record_name(i) for i in indices.tolist())
        yield Finding(kind, survey.name, first, "also " + ", ".join(others))


def _between(surveys: list[Survey]) -> Iterator[Finding]:
    for i, later in enumerate(surveys):
        for earlier in surveys[:i]:
            if earlier.source.class_names != later.source.class_names:
                a, b = set(earlier.source.class_names), set(later.source.class_names)
                only = printable(", ".join(sorted(a ^ b)[:5]))
                yield Finding("different_classes", later.name, earlier.name, f"not in both: {only}")
            both = np.concatenate([earlier.rows["digest"], later.rows["digest"]])
            border = len(earlier.rows)
            for indices in _repeated(both):
                left, right = indices[indices < border], indices[indices >= border] - border
                if len(left) and len(right):
                    there = earlier.record_name(int(left[0]))
                    for index in right.tolist():
                        name = later.record_name(index)
                        yield Finding("leakage", later.name, name, f"{earlier.name}: {there}")


def _against_imagenet(data: DataSet, surveys: list[Survey]) -> Iterator[Finding]:
    """Wrong counts of what says that it is ImageNet: by its name or by its classes."""
    classes = surveys[0].source.class_names if surveys else ()
    if not (data.name.startswith("imagenet2012") or classes == wnids()):
        return
    if len(classes) != len(wnids()):
        yield Finding("wrong_count", "", "classes", f"{len(classes):,}, not {len(wnids()):,}")
    found = {survey.name: len(survey.rows) for survey in surveys}
    for split, count in OFFICIAL.items():
        if found.get(split, 0) != count:
            yield Finding("wrong_count", split, "images", f"{found.get(split, 0):,}, not {count:,}")


def _repeated(digests: np.ndarray) -> list[np.ndarray]:
    """The indices of each digest that is there more than once; zeros are none."""
    keys = np.ascontiguousarray(digests).view(f"V{digests.shape[1]}").ravel()
    order = np.argsort(keys, kind="stable") if len(keys) else np.empty(0, int)
    ends = np.flatnonzero(keys[order][1:] != keys[order][:-1]) + 1
    groups = np.split(order, ends)
    return [group for group in groups if len(group) > 1 and digests[group[0]].any()]


def class_counts(survey: Survey) -> list[int]:
    """Images of each class."""
    labels = survey.rows["label"]
    valid = labels[(labels >= 0) & (labels < len(survey.source.class_names))]
    return np.bincount(valid, minlength=len(survey.source.class_names)).tolist()


def _summary(survey: Survey) -> dict[str, Any]:
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
        "classes": dict(zip(survey.source.class_names, class_counts(survey), strict=True)),
    }
