"""Checks of a data set: counts, damage, duplicates, and leakage between splits.

Errors stop training or make its results wrong. ImageNet as published has no errors, except perhaps
`leakage`, but some of the warnings, such as CMYK files and duplicates.
"""

from typing import NamedTuple

ERRORS = {
    "unreadable": "not an image, a damaged image, or a file that cannot be opened",
    "truncated": "an image that ends early and cannot be decoded",
    "wrong_count": "a number of images or classes that differs from ImageNet's",
    "leakage": "the same bytes in two splits",
    "bad_label": "a label that is not a class",
    "empty_class": "a class without images",
    "different_classes": "splits whose classes differ",
}
WARNINGS = {
    "unterminated": "an image without an end marker that can still be decoded",
    "cmyk": "CMYK colors; converted to RGB",
    "sixteen_bit": "16 bits per channel; reduced to 8",
    "animated": "several frames; only the first is used",
    "alpha": "transparency; dropped",
    "misnamed": "a format that differs from the file name, such as a PNG in a .JPEG",
    "odd_metadata": "damaged or unusual metadata, which does not affect the pixels",
    "exif_rotated": "an EXIF rotation, which is not applied",
    "tiny": "a shorter side of less than 32 pixels",
    "conflicting_labels": "the same bytes twice in a split with different labels",
    "duplicate": "the same bytes twice in a split with the same label",
    "ignored_file": "a file or folder that is not read: wrong suffix or wrong place",
    "no_validation": "a train split without a validation split to evaluate on",
}


class Finding(NamedTuple):
    """A finding.

    Attributes:
      kind: a key of ERRORS or WARNINGS.
      split: name of the split; "" for the whole data set.
      name: name of the record, class or split.
      detail: one line, or "".
    """

    kind: str
    split: str
    name: str
    detail: str


def describe_kinds() -> str:
    """Return every kind with its meaning, for --help."""
    lines = []
    for title, kinds in (("errors (exit code 1)", ERRORS), ("warnings (exit code 0)", WARNINGS)):
        lines += [f"{title}:", *(f"  {kind:<20}{text}" for kind, text in kinds.items())]
    return "\n".join(lines)
