"""Which layout a data set has."""

from pathlib import Path

from imagenet_jax.data.layouts import Layout, class_folders, cls_loc, split_folders
from imagenet_jax.data.shard_layouts import parquet_layout, webdataset_layout

# Each takes a path and returns a Layout, or None; the first that returns one decides.
RECOGNIZERS = (cls_loc, split_folders, parquet_layout, webdataset_layout, class_folders)


def recognize(path: Path) -> Layout | None:
    """The layout of the data set at `path`, or None."""
    if not path.is_dir():
        return None
    return next((layout for one in RECOGNIZERS if (layout := one(path))), None)
