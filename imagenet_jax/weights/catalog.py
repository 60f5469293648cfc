"""Published weights by name, such as `--weights=torchvision/resnet50.v2`.

A name can be given wherever a weights file can; a file of that name takes precedence. catalog.json
has one line for each entry. docs/make_catalog.py writes it from the tables of torchvision and timm.
"""

import dataclasses
import difflib
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imagenet_jax.errors import UserError, expand_user
from imagenet_jax.files import read_json

FILE = Path(__file__).with_name("catalog.json")
_Z = 1.96  # standard errors of a 95 % confidence interval
_HUB = "https://huggingface.co/"
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".h5", ".ckpt", ".tar", ".npz")  # of files
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # by preference


@dataclasses.dataclass(frozen=True)
class Entry:
    """Published weights.

    Attributes:
      name: SOURCE/MODEL.TAG, or the name of a repository on Hugging Face.
      url: URL of the file, or of its repository on Hugging Face.
      sha256: first digits of the file's SHA-256, as published; "": not published.
      model: value of config.model.name.
      fields: other fields of config.model that differ from their defaults.
      resize, image_size: pixels of the shorter side and of the center crop in evaluation.
      interpolation: "bilinear" or "bicubic".
      mean, std: mean and standard deviation of each channel in RGB, for pixels in [0, 1].
      top1, top5: published accuracy on ImageNet's 50,000 validation images, in percent; None: not
        published for this preprocessing.
      source: where the accuracy is published.
    """

    name: str
    url: str
    sha256: str
    model: str
    fields: dict[str, Any]
    resize: int
    image_size: int
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    top1: float | None
    top5: float | None
    source: str

    def preprocessing(self) -> dict[str, Any]:
        """Return the config fields of the preprocessing that these weights expect."""
        return {
            "eval.resize": self.resize,
            "eval.image_size": self.image_size,
            "data.interpolation": self.interpolation,
            "data.mean": self.mean,
            "data.std": self.std,
        }


@functools.cache
def entries() -> dict[str, Entry]:
    """Return every entry by name."""
    rows = (row | {"mean": tuple(row["mean"]), "std": tuple(row["std"])} for row in read_json(FILE))
    return {row["name"]: Entry(**row) for row in rows}


def find(text: str) -> Entry | None:
    """Return the entry that --weights=TEXT names; None if TEXT is a file.

    Raises UserError, suggesting the nearest name, if TEXT looks like a name, SOURCE/MODEL.TAG, but
    is not in the catalog.
    """
    path = expand_user(text)
    if path.exists():
        return None
    if text in entries():
        return entries()[text]
    if text.count("/") == 1 and not path.parent.exists() and path.suffix not in _SUFFIXES:
        near = difflib.get_close_matches(text, entries(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(
            f"{text!r} is neither a weights file nor a name that python -m imagenet_jax.weights "
            f"lists{hint}"
        )
    return None


def locate(text: str | Path) -> Path:
    """Return the path of a weights file, given as a path or by name; download it if needed.

    Raises UserError if the download fails.
    """
    entry = find(str(text))
    if entry is None:
        return expand_user(text)
    from imagenet_jax.weights.download import cache_folder, download, download_from_hub

    if entry.url.startswith(_HUB):
        repository = entry.url.removeprefix(_HUB)
        return download_from_hub(repository, _HUB_FILES, cache_folder() / repository)
    path = cache_folder() / entry.name.partition("/")[0] / entry.url.rpartition("/")[2]
    download(entry.url, path, entry.sha256)
    return path


def compare(measured: float, published: float, images: int) -> tuple[bool, float]:
    """Return (whether an accuracy agrees with the published one, its standard error).

    The number of correct predictions on `images` random images is binomial. An accuracy measured on
    them has the standard error sqrt(p (1 - p) / images) around the published accuracy p. The two
    agree if they differ by at most 1.96 standard errors, as for 95 % of random samples (normal
    approximation of the binomial distribution; Wilson 1927, "Probable Inference",
    doi 10.2307/2276774). On all 50,000 validation images of ImageNet, on which the published
    accuracy was measured too, a correct evaluation comes much closer.

    Args:
      measured, published: accuracies in [0, 1].
    """
    error = math.sqrt(published * (1 - published) / images)
    return abs(measured - published) <= _Z * error, error


def compare_with_published(entry: Entry, record: Mapping[str, Any]) -> dict[str, Any]:
    """Compare the accuracies of an evaluation record with the published ones.

    Returns {"name", "source", "top1", "top5"}. The last two are dicts with the keys "published",
    "standard_error" and "agrees". They are missing if no accuracy is published, or if only some
    classes were evaluated ("classes" in `record`).
    """
    result: dict[str, Any] = {"name": entry.name, "source": entry.source}
    for metric, percent in (("top1", entry.top1), ("top5", entry.top5)):
        if percent is not None and "classes" not in record:
            agrees, error = compare(record[metric], percent / 100, record["count"])
            result[metric] = {
                "published": percent / 100, "standard_error": error, "agrees": agrees
            }  # fmt: skip
    return result


def describe_comparison(record: Mapping[str, Any]) -> str:
    """Return one line on `record["published"]`, the result of `compare_with_published`."""
    published, parts = record["published"], []
    for metric, label in (("top1", "top-1"), ("top5", "top-5")):
        if metric in published:
            found = published[metric]
            parts.append(
                f"{label} {record[metric]:.2%}, published {found['published']:.2%}: "
                f"{'agrees' if found['agrees'] else 'does not agree'} within sampling error, "
                f"±{_Z * found['standard_error']:.2%}"
            )
    if not parts:
        return f"{published['name']}: no published accuracy to compare with"
    return f"{published['name']}: {'; '.join(parts)} (source: {published['source']})"
