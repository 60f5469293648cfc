"""Which layout a data set has."""

from pathlib import Path

from imagenet_jax.data.layouts import Layout, class_folders, cls_loc, split_folders
from imagenet_jax.data.shard_layouts import parquet_layout, series_layout, webdataset_layout

# Each takes a path and returns a Layout, or None; the first that returns one with splits decides.
RECOGNIZERS = (
    cls_loc, split_folders, series_layout, class_folders, parquet_layout, webdataset_layout,
)  # fmt: skip


def recognize(path: Path) -> Layout | None:
    """The layout of the data set at `path`, or None.

    If no recognizer finds a split, return the first layout that explains why.
    """
    if not path.is_dir():
        return None
    without: Layout | None = None
    for recognizer in RECOGNIZERS:
        layout = recognizer(path)
        if layout and layout.splits:
            return layout
        without = without or layout
    return without
