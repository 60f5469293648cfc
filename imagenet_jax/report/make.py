"""Reports on runs: reads the workdirs, then writes the page, figures and Markdown."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from imagenet_jax.errors import UserError, writing
from imagenet_jax.files import write_atomically
from imagenet_jax.report import figures, page, tables
from imagenet_jax.report.read import read_run
from imagenet_jax.runtime.workdir import read_config


def make_report(
    workdirs: Sequence[Path],
    outputs: dict[str, Path],
    checkpoint: str,
    overrides: Sequence[tuple[str, str]],
) -> None:
    """Write a report and print the names of its files, and what the runs lack.

    Args:
      outputs: "out": the page, "png": a file or a folder of figures, "markdown": a file.
      checkpoint: "latest", "best" or a step; predictions are made with it.
      overrides: (field, text) of the configs.
    Raises UserError if a workdir is not one, or a file cannot be written.
    """
    for workdir in workdirs:  # fail before the first prediction, which may take long
        read_config(workdir, overrides)
    for flag, path in outputs.items():
        _require_writable(flag, path)
    runs = []
    for workdir, name in zip(workdirs, _make_names(workdirs), strict=True):
        print(f"reading {workdir}", flush=True)
        run = read_run(workdir, name, checkpoint, overrides)
        if run.missing:
            print(f"  without images: {run.missing}")
        if not run.metrics:
            print(f"  without curves: {workdir / 'metrics.jsonl'} has no lines yet")
        runs.append(run)
    if "out" in outputs:
        _write("out", outputs["out"], page.make_page(runs))
    if "png" in outputs:
        for path, draw in figures.plan_figures(runs, outputs["png"]).items():
            _write("png", path, draw)
    if "markdown" in outputs:
        _write("markdown", outputs["markdown"], tables.format_markdown(runs))


def _make_names(workdirs: Sequence[Path]) -> list[str]:
    """Return as many of the last parts of each path as make the names unique."""
    paths = [path.resolve() for path in workdirs]
    for path in paths:
        if paths.count(path) > 1:
            raise UserError(f"{path} is given twice; give each workdir once")
    depth = 1
    while True:
        names = ["/".join(path.parts[1:][-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
        depth += 1


def _require_writable(flag: str, path: Path) -> None:
    """Raise UserError if the file or folder clearly cannot be written."""
    existing = path
    while not existing.exists():
        existing = existing.parent
    if not os.access(existing, os.W_OK) or (existing != path and not existing.is_dir()):
        raise UserError(f"--{flag}={path} cannot be written: {existing} is not writable")


def _write(flag: str, path: Path, content: str | Callable[[Path], object]) -> None:
    with writing(f"--{flag}={path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    print(path, flush=True)
