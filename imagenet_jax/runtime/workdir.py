"""Files of a workdir: config.json, provenance.json, classes.json, and names of evaluation files.

`eval/STEP.json` has the results with the settings and data of the run. An evaluation with different
settings or data is a variant, such as `eval/STEP-size256-resize292.json`, which is never reported
as a result of the run.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from imagenet_jax import config as config_io
from imagenet_jax.errors import UserError, writing
from imagenet_jax.files import hash_texts, read_json, write_atomically, write_json
from imagenet_jax.runtime.processes import run_on_first

# Config fields outside config.model that change the result of a checkpoint on given images, and
# their abbreviations in the names of variants.
_FIELDS = {
    "eval.image_size": "size", "eval.resize": "resize", "eval.flip": "flip",
    "data.interpolation": "", "data.resampling": "", "data.mean": "mean", "data.std": "std",
}  # fmt: skip
_DIGITS = 8  # number of digits of a fingerprint in a file name


def check_start(workdir: Path, config: ConfigDict, provenance: dict[str, Any]) -> dict[str, Any]:
    """Return the content of provenance.json after a start with `config`, without writing it.

    If the workdir already has a run, this start is added to its list "resumed".

    Raises UserError, naming the differences, if that run has a different config or different data,
    unless `config.resume_with_changes` is on.
    """
    if not (workdir / "config.json").exists():
        if has_checkpoint(workdir):
            raise UserError(f"{workdir} has checkpoints but no config.json; use another --workdir")
        return provenance
    first = read_provenance(workdir)
    changed = config_io.differences(read_config(workdir), config)
    for split, fingerprint in provenance["data"].items():
        if first["data"].get(split, fingerprint) != fingerprint:
            changed.append(f"images of split {split!r}: {first['data'][split]} -> {fingerprint}")
    if changed and not config.resume_with_changes:
        raise UserError(
            f"{workdir} was trained with other settings ({'; '.join(changed)}); "
            "use another --workdir, or continue with --config.resume_with_changes=true"
        )
    record = first | {"resumed": [*first.get("resumed", []), provenance]}
    return record | {"data": provenance["data"]} if changed else record


def record_start(workdir: Path, config: ConfigDict, provenance: dict[str, Any]) -> None:
    """Write config.json and provenance.json of a start, after all other checks have passed.

    Raises UserError like `check_start`, and if the files cannot be written.
    """
    record = check_start(workdir, config, provenance)
    with writing(f"--workdir={workdir}"):
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(workdir / "provenance.json", record)
        # Write this file last, so that a workdir with config.json is complete.
        write_atomically(workdir / "config.json", config_io.to_json(config))


def read_provenance(workdir: Path) -> dict[str, Any]:
    """Return the provenance of the first start, with those of later starts under "resumed"."""
    path = workdir / "provenance.json"
    with _reading(path, "use another --workdir"):
        return read_json(path)


@contextlib.contextmanager
def _reading(path: Path, advice: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, TypeError) as e:
        raise UserError(f"{path} cannot be read ({e}); {advice}") from e


def read_config(workdir: Path, overrides: Iterable[tuple[str, str]] = ()) -> ConfigDict:
    """Return the config of the run in `workdir`, with the overrides [(field, text)] applied.

    Every process must call it. Raises UserError if there is no run or an override is wrong.
    """
    path = workdir / "config.json"

    def read() -> str:
        if not path.exists():
            raise UserError(f"no config.json in {workdir}: it is not the workdir of a training run")
        with _reading(path, "use another --workdir"):
            return path.read_text()

    config = ConfigDict(config_io.from_json(run_on_first(read), path))
    config_io.apply_overrides(config, overrides)
    return config_io.check(config)


def has_checkpoint(workdir: Path) -> bool:
    """Return whether there is a checkpoint to continue from. Every process must call it."""
    directory = workdir / "checkpoints"
    return run_on_first(lambda: any(path.name.isdecimal() for path in directory.glob("*")))


def write_classes(workdir: Path, class_names: tuple[str, ...]) -> None:
    """Write classes.json, the class names by label, so that predictions do not need the data."""
    with writing(f"--workdir={workdir}"):
        write_json(workdir / "classes.json", class_names, indent=0)


def read_classes(workdir: Path) -> tuple[str, ...]:
    """Return the class names by label; () if there is no classes.json.

    Every process must call it.
    """
    path = workdir / "classes.json"

    def read() -> list[str]:
        if not path.exists():
            return []
        with _reading(path, "repeat the training command to write it again"):
            return [str(name) for name in read_json(path)]

    return tuple(run_on_first(read))


def evaluation_settings(config: ConfigDict, data: str) -> dict[str, Any]:
    """Return the fields that change evaluation results, and "data", the fingerprint of the data."""
    flat = config_io.flatten(config)
    fields = [*_FIELDS, *(field for field in flat if field.startswith("model."))]
    values = {field: flat[field] for field in fields}
    # Use lists, as in JSON.
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()} | {"data": data}


def run_settings(workdir: Path) -> dict[str, Any]:
    """Return the `evaluation_settings` of the run. "data" is "" if it was not recorded."""
    config, data = read_config(workdir), {}
    if (workdir / "provenance.json").is_file():
        data = read_provenance(workdir).get("data", {})
    return evaluation_settings(config, data.get(config.data.eval_split, ""))


def name_variant(workdir: Path, settings: dict[str, Any]) -> str:
    """Return a name for the difference of `settings` from the run's, or "" if there is none."""
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
    reasons = {
        f: f"config.{f} = {b}, not {a}" for f, (a, b) in _differences(workdir, settings).items()
    }
    if "data" in reasons:
        reasons["data"] = "the images, or the way they are stored, differ from the run's"
    return f"never reported as the run's result: {'; '.join(reasons.values())}"


def is_variant(workdir: Path, record: dict[str, Any]) -> bool:
    """Return whether the settings or data of a result differ from those of the run."""
    settings = record.get("measured")
    return settings is not None and bool(name_variant(workdir, settings))


def require_run_settings(workdir: Path, overrides: Iterable[tuple[str, str]], command: str) -> None:
    """Raise UserError for an override that would change the results of the run."""
    own, here = (
        config_io.flatten(read_config(workdir)),
        config_io.flatten(read_config(workdir, overrides)),
    )
    for field in here:
        changes_result = field in _FIELDS or field.startswith("model.")
        if changes_result and own.get(field) != here[field]:
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
    if not own["data"]:  # not recorded
        settings = {field: value for field, value in settings.items() if field != "data"}
    return {f: (own.get(f), value) for f, value in settings.items() if own.get(f) != value}
