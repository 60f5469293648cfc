"""Opens the data of a config as a source of records with random access.

The module of a file format is imported only if the data has that format.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ml_collections import ConfigDict

from imagenet_jax.data import Source, Subset
from imagenet_jax.data.classes import reorder
from imagenet_jax.data.tfds_format import open_tfds
from imagenet_jax.errors import UserError, expand_user, reading_files

if TYPE_CHECKING:
    from imagenet_jax.data.layouts import Layout


@reading_files()
def open_source(data: ConfigDict, split: str) -> Source:
    """Return the source of a split of `config.data`, or of a slice such as "train[:99%]".

    Raises UserError if the split does not exist, is damaged, or is empty.
    """
    split, bounds = _parse_split(split)
    source = _open_split(data, split)
    if data.holdout and not _is_layout(source):
        raise UserError(
            f"config.data.holdout = {data.holdout} works only for folders, not {source.name}; use "
            "--config.data.train_split='train[:80%]' --config.data.eval_split='train[80%:]'"
        )
    if bounds and _is_layout(source):
        _require_classes_in_both_slices(source, data, split)
    source = reorder(source, data.class_order)
    if bounds:
        source = Subset(source, np.arange(*bounds(len(source))))
    if not len(source):
        raise UserError(f"{source.name} has no images")
    return source


def _open_split(data: ConfigDict, split: str) -> Source:
    path = expand_user(data.path)
    if data.source == "synthetic":
        from imagenet_jax.data.builtin import SyntheticSource

        return SyntheticSource(split, **data.synthetic)
    if data.source == "digits":
        _write_digits(path)
    tfds = data.source == "auto" and (path / "dataset_info.json").is_file()
    if tfds or data.source in ("tfds", "digits"):
        return open_tfds(path, split)
    layout = recognize(path)
    if layout:
        return layout.open_split(split, data.holdout)
    inside = sorted(path.glob("*/dataset_info.json"))
    hint = f"; did you mean {inside[-1].parent}?" if inside else ""
    raise UserError(
        f"no data in config.data.path = {data.path!r}: looked for dataset_info.json (a tfds "
        f"directory), {split}/CLASS/*.JPEG, CLASS/*.JPEG, tars and parquet files; set "
        f"--config.data.path=DIR (docs/data.md describes how to prepare data){hint}"
    )


def recognize(path: Path) -> "Layout | None":
    """Return the layout of `path` from the first recognizer that finds a split.

    If none finds a split, return the first layout without splits, which explains why, or None.
    """
    from imagenet_jax.data import layouts, shard_layouts

    recognizers = (
        layouts.find_cls_loc, layouts.find_split_folders, shard_layouts.find_numbered_shards,
        layouts.find_class_folders, shard_layouts.find_shards,
    )  # fmt: skip
    without_splits = None
    for recognizer in recognizers if path.is_dir() else ():
        layout = recognizer(path)
        if layout and layout.splits:
            return layout
        without_splits = without_splits or layout
    return without_splits


def _is_layout(source: Source) -> bool:
    from imagenet_jax.data.image_files import SplitSource

    return isinstance(source, SplitSource)


def _write_digits(path: Path) -> None:
    """Write the digits if they are missing. Raises UserError if `path` is not named for digits."""
    from imagenet_jax.data import builtin

    if path.parent.name != "digits" and not path.exists():
        raise UserError(
            "config.data.source = 'digits' would write its data to config.data.path = "
            f"{str(path)!r}; use a path that ends in digits/1.0.0"
        )
    try:
        builtin.write_digits(path)
    except OSError as e:
        raise UserError(f"config.data.path = {str(path)!r}: {e.strerror}") from e


def _require_classes_in_both_slices(source: Source, data: ConfigDict, split: str) -> None:
    """Raise UserError if training and evaluation slice `split` and one slice lacks a class."""
    used = [_parse_split(text) for text in (data.train_split, data.eval_split)]
    slices = [bounds(len(source)) for name, bounds in used if bounds and name == split]
    if len(slices) < 2:
        return
    labels = source.labels()
    train, evaluation = (labels[start:stop] for start, stop in slices)
    odd = np.setxor1d(train, evaluation)
    if len(odd):
        raise UserError(
            f"config.data.train_split = {data.train_split!r} and config.data.eval_split = "
            f"{data.eval_split!r}: {len(odd):,} classes of {source.name} are in only one of the "
            f"two, such as {source.class_names[odd[0]]!r}; if the records are sorted by class, use "
            "--config.data.holdout=0.05 instead of slices"
        )


def _parse_split(text: str) -> tuple[str, Callable[[int], tuple[int, int]] | None]:
    """Parse a split such as "train[10%:]", whose bounds round down as in tfds.

    Returns:
      The name, and a function of the number of records -> (start, stop), or None without a slice.
    """
    match = re.fullmatch(r"([^\[\]]+)(?:\[(\d+%?)?:(\d+%?)?\])?", text)
    if not match:
        raise UserError(f"split {text!r}: use NAME, NAME[:90%], NAME[90%:] or NAME[100:200]")
    name, low, high = match.groups()
    if low is None and high is None:
        return name, None

    def bound(text: str, length: int) -> int:
        number = int(text.rstrip("%"))
        return min(length, number * length // 100 if text.endswith("%") else number)

    return name, lambda length: (bound(low or "0", length), bound(high or "100%", length))
