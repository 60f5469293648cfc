"""What an evaluation measured, and the name of its file: `eval/STEP.json` is the run's own.

An evaluation with other settings or other data than the run's is a variant, such as
`eval/STEP-size256-resize292.json`, and it is never reported as the run's result.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from imagenet_jax.config import flatten
from imagenet_jax.errors import UserError
from imagenet_jax.fingerprint import fingerprint_of
from imagenet_jax.runtime.workdir import read_config, read_provenance

# Fields that decide what a checkpoint measures on given images, and how a file name begins to
# say so; those of config.model as well.
_FIELDS = {
    "eval.image_size": "size",
    "eval.resize": "resize",
    "eval.flip": "flip",
    "data.interpolation": "",
    "data.resampling": "",
    "data.mean": "mean",
    "data.std": "std",
}
_DIGITS = 8  # of a fingerprint in a file name


def measured(config: ConfigDict, fingerprint: str) -> dict[str, Any]:
    """Return what an evaluation by `config` of data with this fingerprint measures."""
    flat = flatten(config)
    fields = [*_FIELDS, *filter(_is_model, flat)]
    values = {field: flat[field] for field in fields}
    # Lists, as JSON has them.
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
    return values | {"data": fingerprint}


def own_measured(workdir: Path) -> dict[str, Any]:
    """Return `measured` of the run's own settings and data; "data" is "" where nothing says it."""
    config = read_config(workdir)
    has_provenance = (workdir / "provenance.json").is_file()
    data = read_provenance(workdir).get("data", {}) if has_provenance else {}
    return measured(config, data.get(config.data.eval_split, ""))


def variant_of(workdir: Path, this: dict[str, Any]) -> str:
    """Return what tells the measurement `this` from the run's own; "" where nothing does."""
    parts = []
    for field, (_, value) in _differences(workdir, this).items():
        if field == "data":
            parts.append(f"data-{value[:_DIGITS]}")
            continue
        name = _FIELDS.get(field, field.rpartition(".")[2])
        text = str(value)
        if not re.fullmatch(r"[A-Za-z0-9.]+", text):
            text = f"-{fingerprint_of(text)[:_DIGITS]}"
        parts.append(f"{name}{text}")
    return "-".join(parts)


def why_variant(workdir: Path, this: dict[str, Any]) -> str:
    """Return in one line why the measurement `this` is not that of the run."""
    reasons = [
        "other images than the run's, or the same stored otherwise"
        if field == "data"
        else f"config.{field} = {here}, not {own}"
        for field, (own, here) in _differences(workdir, this).items()
    ]
    return f"never reported as the run's result: {'; '.join(reasons)}"


def is_own(workdir: Path, record: dict[str, Any]) -> bool:
    """Whether a result file is of the run's own settings and data, as they are now."""
    found = record.get("measured")
    return found is None or not variant_of(workdir, found)


def require_own_settings(workdir: Path, overrides: Iterable[tuple[str, str]], command: str) -> None:
    """Raise UserError for an override that would measure something else than the run does."""
    own, here = flatten(read_config(workdir)), flatten(read_config(workdir, overrides))
    for field in here:
        if (field in _FIELDS or _is_model(field)) and own.get(field) != here[field]:
            raise UserError(
                f"--config.{field} is another setting than that of {workdir}, whose results "
                f"{command} shows; leave it out, or measure it with python -m imagenet_jax.eval"
            )


def result_stem(record: dict[str, Any]) -> str:
    """Return the name of a result's file in `eval/`, without its suffix."""
    variant = record.get("variant")
    return f"{record['step']}-{variant}" if variant else str(record["step"])


def _differences(workdir: Path, this: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{field: (the run's value, that of the measurement `this`)} where they differ."""
    own = own_measured(workdir)
    return {
        field: (own.get(field), value)
        for field, value in this.items()
        if own.get(field) != value and not (field == "data" and not own["data"])
    }


def _is_model(field: str) -> bool:
    return field.startswith("model.")
