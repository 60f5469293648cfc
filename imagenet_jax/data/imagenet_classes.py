"""The 1000 classes of ImageNet in label order: WordNet ids, sorted, and a name for people."""

import functools
from importlib import resources

_FILE = "imagenet_classes.txt"  # one "wnid<TAB>name" per line; the names are torchvision's


@functools.cache
def _rows() -> tuple[tuple[str, str], ...]:
    text = resources.files(__package__).joinpath(_FILE).read_text("utf-8")
    rows = [line.split("\t") for line in text.splitlines()]
    return tuple((wnid, name) for wnid, name in rows)


def wnids() -> tuple[str, ...]:
    """WordNet ids, "n01440764" first: label i is the i-th in sorted order."""
    return tuple(wnid for wnid, _ in _rows())


def class_names() -> tuple[str, ...]:
    """Names, "tench" first, in the order of `wnids`; no two are the same."""
    return tuple(name for _, name in _rows())
