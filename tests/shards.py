"""Tars of webdataset and tables of Hugging Face in miniature."""

import json

import pyarrow
from conftest import tiny_config
from miniatures import jpeg, tar

from imagenet_jax.data import sources


def open_shards(path, split="train"):
    data = tiny_config(path).data
    data.source = "auto"
    return sources.open_source(data, split)


def read_shards(path, split="train"):
    source = open_shards(path, split)
    return [(r["image"], r["label"]) for r in (source[i] for i in range(len(source)))]


def shard_of(first, labels, key="{}", as_json=False):
    """Images `first`, `first + 1`, ... with these labels."""
    files = {}
    for i, label in enumerate(labels, first):
        name = key.format(f"{i:04d}")
        about = {"label": label, "filename": f"{name}.JPEG"}
        files[f"{name}.jpg"] = jpeg(i, (40, 36))
        if not as_json:
            files[f"{name}.cls"] = str(label).encode()
        files[f"{name}.json"] = json.dumps(about).encode()
    return tar(files)


def table_of(first, labels, paths=True, names=("ant", "bee", "cat")):
    images = [
        {"bytes": jpeg(i, (40, 36)), "path": f"{i}.JPEG" if paths else None}
        for i, _ in enumerate(labels, first)
    ]
    schema = pyarrow.schema(
        [
            ("image", pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])),
            ("label", pyarrow.int64()),
        ]
    )
    if names:
        features = {"label": {"names": list(names), "_type": "ClassLabel"}}
        about = json.dumps({"info": {"features": features}})
        schema = schema.with_metadata({"huggingface": about})
    return pyarrow.table({"image": images, "label": labels}, schema=schema)
