"""Files of a workdir that describe its run: config.json, provenance.json and classes.json."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from imagenet_jax import config as config_io
from imagenet_jax.errors import UserError, writing
from imagenet_jax.files import read_json, write_atomically, write_json
from imagenet_jax.runtime.processes import run_on_first


def check_start(workdir: Path, config: ConfigDict, provenance: dict[str, Any]) -> dict[str, Any]:
    """Return the content of provenance.json after a start with `config`; write nothing.

    If the workdir has a run already, this start is added to its list "resumed".

    Raises UserError, naming the differences, if that run has another config or other data, unless
    `config.resume_with_changes`.
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
    """Write config.json and provenance.json of a start that nothing can refuse any more.

    Raises UserError as `check_start` does, and if the files cannot be written.
    """
    record = check_start(workdir, config, provenance)
    with writing(f"--workdir={workdir}"):
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(workdir / "provenance.json", record)
        # The last file: a workdir with config.json is complete.
        write_atomically(workdir / "config.json", config_io.to_json(config))


def read_provenance(workdir: Path) -> dict[str, Any]:
    """Return the provenance of the first start, with those of later starts under "resumed"."""
    path = workdir / "provenance.json"
    try:
        return read_json(path)
    except (OSError, ValueError) as e:
        raise UserError(f"{path} cannot be read ({e}); use another --workdir") from e


def read_config(workdir: Path, overrides: Iterable[tuple[str, str]] = ()) -> ConfigDict:
    """Return the config of the run in `workdir`, with the overrides [(field, text)] applied.

    Every process must call it. Raises UserError if there is no run or an override is wrong.
    """
    path = workdir / "config.json"

    def read() -> str:
        try:
            return path.read_text()
        except (OSError, UnicodeDecodeError) as e:
            if not path.exists():
                where = f"no config.json in {workdir}"
                raise UserError(f"{where}: it is not the workdir of a training run") from e
            raise UserError(f"{path} cannot be read: {e}") from e

    config = ConfigDict(config_io.from_json(run_on_first(read), path))
    config_io.apply_overrides(config, overrides)
    return config_io.check(config)


def has_checkpoint(workdir: Path) -> bool:
    """Return whether there is a checkpoint to continue from. Every process must call it."""
    directory = workdir / "checkpoints"
    return run_on_first(lambda: any(path.name.isdecimal() for path in directory.glob("*")))


def write_classes(workdir: Path, class_names: tuple[str, ...]) -> None:
    """Write classes.json, the class names by label; with it, predictions need no data."""
    with writing(f"--workdir={workdir}"):
        write_json(workdir / "classes.json", class_names, indent=0)


def read_classes(workdir: Path) -> tuple[str, ...]:
    """Return the class names by label; () if there is no classes.json.

    Every process must call it.
    """
    path = workdir / "classes.json"

    def read() -> list[str]:
        try:
            return [str(name) for name in read_json(path)]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError) as e:
            raise UserError(
                f"{path} cannot be read ({e}); repeat the training command to write it again"
            ) from e

    return tuple(run_on_first(read))
