"""The workdir: what a run writes, where, and which run may write there."""

import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from imagenet_jax import config as config_io
from imagenet_jax.errors import UserError, writing
from imagenet_jax.files import read_json, write_atomically, write_json
from imagenet_jax.runtime.machine import machine
from imagenet_jax.runtime.processes import from_first
from imagenet_jax.runtime.revision import revision_of

_PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy",
    "ml_dtypes", "pillow", "simplejpeg", "opencv-python-headless", "numba",
)  # fmt: skip
# Of provenance.json; hosts may have other kernels and processors.
SAME_IN_EVERY_PROCESS = (
    "git_revision", "git_dirty", "code_sha256", "packages", "processes", "data", "initial_weights",
)  # fmt: skip


def checked_provenance(
    workdir: Path, config: ConfigDict, provenance: dict[str, Any]
) -> dict[str, Any]:
    """Return the provenance.json of `workdir` once `config` trains there; write nothing.

    A later start is added to its list "resumed". Raises UserError if another config or other data
    trained there, naming what differs, unless `config.resume_with_changes`.
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
            f"{workdir} was trained otherwise ({'; '.join(changed)}); "
            "use another --workdir, or continue with --config.resume_with_changes=true"
        )
    record = first | {"resumed": [*first.get("resumed", []), provenance]}
    return record | {"data": provenance["data"]} if changed else record


def claim(workdir: Path, config: ConfigDict, provenance: dict[str, Any]) -> None:
    """Make `workdir` this run's: write config.json and provenance.json.

    Call it once nothing can be refused any more, restoring included. Raises UserError as
    `checked_provenance` does, and if the files cannot be written.
    """
    record = checked_provenance(workdir, config, provenance)
    with writing(f"--workdir={workdir}"):
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(workdir / "provenance.json", record)
        write_atomically(workdir / "config.json", config_io.to_json(config))  # last: all is there


def read_provenance(workdir: Path) -> dict[str, Any]:
    """What `claim` wrote: provenance of the first start, and of later ones under "resumed"."""
    path = workdir / "provenance.json"
    try:
        return read_json(path)
    except (OSError, ValueError) as e:
        raise UserError(f"{path} cannot be read ({e}); use another --workdir") from e


def read_config(workdir: Path, overrides: Iterable[tuple[str, str]] = ()) -> ConfigDict:
    """Return the config that trained `workdir`, with (field, text) changes.

    Every process must call it. Raises UserError if nothing trained there.
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

    config = ConfigDict(config_io.from_json(from_first(read), path))
    config_io.apply_overrides(config, overrides)
    return config_io.check(config)


def has_checkpoint(workdir: Path) -> bool:
    """Whether a run here has saved something to continue from; every process must call it."""
    directory = workdir / "checkpoints"
    return from_first(lambda: any(path.name.isdecimal() for path in directory.glob("*")))


def write_classes(workdir: Path, class_names: tuple[str, ...]) -> None:
    """classes.json: names by label, so that predictions need no data."""
    with writing(f"--workdir={workdir}"):
        write_json(workdir / "classes.json", class_names, indent=0)


def read_classes(workdir: Path) -> tuple[str, ...]:
    """Return what `write_classes` wrote, or () if an older run wrote none.

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
                f"{path} cannot be read ({e}); the same training writes it again"
            ) from e

    return tuple(from_first(read))


def provenance_of(fingerprints: dict[str, str]) -> dict[str, Any]:
    """What the numbers depend on beside the config: code, versions, devices, machine, data."""
    return {
        **revision_of(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "devices": [d.device_kind for d in jax.devices()],
        "processes": jax.process_count(),
        "machine": machine(),
        "data": fingerprints,
    }
