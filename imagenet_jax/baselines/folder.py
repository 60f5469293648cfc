"""The folder of a published baseline: reads it, and defines the format of its files."""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from imagenet_jax import config as config_io
from imagenet_jax.errors import UserError
from imagenet_jax.files import dump_json, encode_nonfinite, read_json, read_json_lines

CONFIG, PROVENANCE, METRICS = "config.json", "provenance.json", "metrics.jsonl"
RESULTS, FINGERPRINT = "results.json", "fingerprint.json"
WEIGHTS, CARD = "weights.safetensors", "README.md"
_REQUIRED = {
    RESULTS: ("checkpoint", "split", "results", "by_class"),
    FINGERPRINT: ("data", "total_steps", "first_steps", "weights"),
    PROVENANCE: ("git_revision", "python", "packages", "devices", "data"),
}


@dataclasses.dataclass(frozen=True)
class Baseline:
    """A published baseline.

    Attributes:
      path: its folder.
      config: the config of the run.
      provenance: see `collect_provenance`; "resumed" lists the later starts of the run.
      metrics: the lines of metrics.jsonl.
      results: {checkpoint, split, results: [{weights, count, METRICS ...}], by_class}; the first
        of the results is that of the published weights.
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

    @property
    def result(self) -> dict[str, Any]:
        """The result of the published weights."""
        return self.results["results"][0]

    @property
    def starts(self) -> list[dict[str, Any]]:
        """The provenance of each start of the run."""
        return [self.provenance, *self.provenance.get("resumed", [])]

    @property
    def is_dirty(self) -> bool:
        """Whether a start ran code that was not committed."""
        return any(start["git_dirty"] for start in self.starts)

    @property
    def cpu(self) -> dict[str, Any]:
        return self.provenance.get("machine", {}).get("cpu", {})


def read(path: Path) -> Baseline:
    """Return what `publish` wrote. Raises UserError, naming the file, if it is incomplete."""
    if not (path / FINGERPRINT).is_file():
        raise UserError(
            f"{path} is not a published baseline: it has no {FINGERPRINT}; "
            "python -m imagenet_jax.publish writes one"
        )
    return Baseline(
        path=path,
        config=config_io.from_json(_read(path / CONFIG, Path.read_text), path / CONFIG),
        provenance=_read_object(path / PROVENANCE),
        metrics=read_lines(path / METRICS),
        results=_read_object(path / RESULTS),
        fingerprint=_read_object(path / FINGERPRINT),
    )


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file. Raises UserError if it cannot be read."""
    return _read(path, functools.partial(read_json_lines, skip_torn=False))


def format_json(value: Any, indent: int = 0) -> str:
    """Return JSON with a line for each innermost object or list: short, with readable diffs."""
    value = encode_nonfinite(value)
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if not any(isinstance(item, dict | list) for item in inner):
        return dump_json(value)
    pad, end = " " * (indent + 1), " " * indent
    if isinstance(value, dict):
        lines = [f"{dump_json(k)}: {format_json(v, indent + 1)}" for k, v in value.items()]
        return "{\n" + pad + f",\n{pad}".join(lines) + f"\n{end}}}"
    return "[\n" + pad + f",\n{pad}".join(format_json(v, indent + 1) for v in value) + f"\n{end}]"


def checksums(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return {"all": SHA-256, "tensors": {name: SHA-256}} in hexadecimal.

    The SHA-256 of a tensor is that of its bytes in a .safetensors file: little-endian, row-major.
    "all" is that of the lines "SHA-256  NAME", sorted by name, as printed by sha256sum.
    """
    sums = {}
    for name in sorted(tensors):
        array = np.asarray(tensors[name])
        little = array.astype(array.dtype.newbyteorder("<"), order="C")
        sums[name] = hashlib.sha256(little.tobytes()).hexdigest()
    lines = "".join(f"{digest}  {name}\n" for name, digest in sums.items())
    return {"all": hashlib.sha256(lines.encode()).hexdigest(), "tensors": sums}


def _read_object(path: Path) -> dict[str, Any]:
    found = _read(path, read_json)
    for key in _REQUIRED[path.name]:
        if not isinstance(found, dict) or key not in found:
            raise UserError(f"{path} is damaged: it has no {key!r}")
    return found


def _read(path: Path, reader: Any) -> Any:
    try:
        return reader(path)
    except FileNotFoundError as e:
        raise UserError(f"{path} is missing; publish the run again") from e
    except OSError as e:
        raise UserError(f"{path} cannot be read: {e}") from e
    except ValueError as e:
        raise UserError(f"{path} is damaged: {e}") from e
