"""A published baseline: the folder that says what was trained and how it came out."""

import dataclasses
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from imagenet_jax import config as config_io
from imagenet_jax import strict_json
from imagenet_jax.errors import UserError
from imagenet_jax.files import read_json_lines

CONFIG, PROVENANCE, METRICS = "config.json", "provenance.json", "metrics.jsonl"
RESULTS, FINGERPRINT = "results.json", "fingerprint.json"
WEIGHTS, CARD = "weights.safetensors", "README.md"

# What readers of the files rely on.
_RESULTS = ("checkpoint", "split", "results", "by_class")
_FINGERPRINT = ("data", "total_steps", "first_steps", "weights")
_PROVENANCE = ("git_revision", "python", "packages", "devices", "data")


@dataclasses.dataclass(frozen=True)
class Baseline:
    """What a folder holds.

    Attributes:
      config: that trained it.
      provenance: what else the numbers depend on; see `provenance.collect_provenance`.
      metrics: the lines of metrics.jsonl.
      results: {checkpoint, split, results: [{weights, count, top1, top5, loss}], by_class}; the
        first of the results is that of the published weights.
      fingerprint: {data: {split: fingerprint}, total_steps, first_steps: [{step, loss,
        grad_norm}], weights: {checkpoint, weights, all, tensors}}.
    """

    path: Path
    config: ConfigDict
    provenance: dict[str, Any]
    metrics: list[dict[str, Any]]
    results: dict[str, Any]
    fingerprint: dict[str, Any]

    @property
    def name(self) -> str:
        return self.path.resolve().name


def read(path: Path) -> Baseline:
    """What `publishing.publish` wrote; UserError, naming the file, where it is not there whole."""
    if not (path / FINGERPRINT).is_file():
        raise UserError(
            f"{path} is no published baseline: it has no {FINGERPRINT}; "
            "python -m imagenet_jax.publish writes one"
        )
    return Baseline(
        path=path,
        config=config_io.from_json(_text(path / CONFIG), path / CONFIG),
        provenance=_object(path / PROVENANCE, _PROVENANCE),
        metrics=read_lines(path / METRICS),
        results=_object(path / RESULTS, _RESULTS),
        fingerprint=_object(path / FINGERPRINT, _FINGERPRINT),
    )


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl file; UserError where it cannot be read."""
    try:
        return read_json_lines(path)
    except FileNotFoundError as e:
        raise UserError(f"{path} is missing; publish the run again") from e
    except OSError as e:
        raise UserError(f"{path} cannot be read: {e}") from e
    except ValueError as e:
        raise UserError(f"{path} is damaged: {e}") from e


def dumps(value: Any, indent: int = 0) -> str:
    """JSON with one line for each object or list that holds no other: short, and good to diff."""
    value = strict_json.encode(value)
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if not any(isinstance(item, dict | list) for item in inner):
        return strict_json.dumps(value)
    pad, end = " " * (indent + 1), " " * indent
    if isinstance(value, dict):
        lines = [f"{strict_json.dumps(k)}: {dumps(v, indent + 1)}" for k, v in value.items()]
        return "{\n" + pad + f",\n{pad}".join(lines) + f"\n{end}}}"
    return "[\n" + pad + f",\n{pad}".join(dumps(v, indent + 1) for v in value) + f"\n{end}]"


def _object(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    try:
        found = strict_json.loads(_text(path))
    except ValueError as e:
        raise UserError(f"{path} is damaged: {e}") from e
    missing = [key for key in keys if not isinstance(found, dict) or key not in found]
    if missing:
        raise UserError(f"{path} is damaged: it has no {missing[0]!r}")
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError as e:
        raise UserError(f"{path} is missing; publish the run again") from e
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{path} cannot be read: {e}") from e
