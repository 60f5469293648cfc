"""Names of evaluation files: `eval/STEP.json` has the settings and data of the run itself.

An evaluation with other settings or data is a variant, for example
`eval/STEP-size256-resize292.json`. It is never reported as the result of the run.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from imagenet_jax.config import flatten
from imagenet_jax.errors import UserError
from imagenet_jax.files import hash_texts
from imagenet_jax.runtime.workdir import read_config, read_provenance

# Config fields that change the result of a checkpoint on given images, besides those of
# config.model, with the abbreviation that the name of a variant uses.
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


def evaluation_settings(config: ConfigDict, data: str) -> dict[str, Any]:
    """Return the fields that change an evaluation's result, and "data", the data's fingerprint."""
    flat = flatten(config)
    fields = [*_FIELDS, *(field for field in flat if field.startswith("model."))]
    values = {field: flat[field] for field in fields}
    # Lists, as in JSON.
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()} | {"data": data}


def run_settings(workdir: Path) -> dict[str, Any]:
    """Return the `evaluation_settings` of the run itself; "data" is "" if it is not recorded."""
    config = read_config(workdir)
    has_provenance = (workdir / "provenance.json").is_file()
    data = read_provenance(workdir).get("data", {}) if has_provenance else {}
    return evaluation_settings(config, data.get(config.data.eval_split, ""))


def name_variant(workdir: Path, settings: dict[str, Any]) -> str:
    """Return how `settings` differ from those of the run, for a file name; "" if they do not."""
    parts = []
    for field, (_, value) in _differences(workdir, settings).items():
        if field == "data":
            parts.append(f"data-{value[:_DIGITS]}")
            continue
        name = _FIELDS.get(field, field.rpartition(".")[2])
        text = str(value)
        if not re.fullmatch(r"[A-Za-z0-9.]+", text):
            text = f"-{hash_texts(text)[:_DIGITS]}"
        parts.append(f"{name}{text}")
    return "-".join(parts)


def explain_variant(workdir: Path, settings: dict[str, Any]) -> str:
    """Return one line that says why an evaluation with `settings` is a variant."""
    reasons = [
        "the images differ from the run's, or are stored differently"
        if field == "data"
        else f"config.{field} = {here}, not {own}"
        for field, (own, here) in _differences(workdir, settings).items()
    ]
    return f"never reported as the run's result: {'; '.join(reasons)}"


def is_variant(workdir: Path, record: dict[str, Any]) -> bool:
    """Return whether a result file has other settings or data than the run has now."""
    settings = record.get("measured")
    return settings is not None and bool(name_variant(workdir, settings))


def require_run_settings(workdir: Path, overrides: Iterable[tuple[str, str]], command: str) -> None:
    """Raise UserError for an override that would change the results of the run."""
    own, here = flatten(read_config(workdir)), flatten(read_config(workdir, overrides))
    for field in here:
        if _changes_result(field) and own.get(field) != here[field]:
            raise UserError(
                f"--config.{field} differs from the setting of {workdir}, whose results {command} "
                "shows; leave it out, or evaluate with it: python -m imagenet_jax.eval"
            )


def result_stem(record: dict[str, Any]) -> str:
    """Return the name of a result's file in `eval/`, without its suffix."""
    variant = record.get("variant")
    return f"{record['step']}-{variant}" if variant else str(record["step"])


def _differences(workdir: Path, settings: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return {field: (value of the run, value in `settings`)} of the fields that differ."""
    own = run_settings(workdir)
    return {
        field: (own.get(field), value)
        for field, value in settings.items()
        if own.get(field) != value and not (field == "data" and not own["data"])
    }


def _changes_result(field: str) -> bool:
    return field in _FIELDS or field.startswith("model.")
