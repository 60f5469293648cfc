"""Make the report on runs: read the workdirs, then write page, pictures and Markdown."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from imagenet_jax.errors import UserError, writing
from imagenet_jax.files import write_atomically
from imagenet_jax.report import figures, markdown, page
from imagenet_jax.report.read import read_run
from imagenet_jax.runtime.workdir import read_config


def make_report(
    workdirs: Sequence[Path],
    *,
    checkpoint: str = "latest",
    overrides: Iterable[tuple[str, str]] = (),
    out: Path | None = None,
    png: Path | None = None,
    text: Path | None = None,
) -> None:
    """Write the page to `out`, pictures to `png` (a file, or a folder for one each), Markdown to
    `text`, and print where, and what they lack.

    Raises UserError where a workdir is not one, or a file cannot be written.
    """
    overrides = list(overrides)
    for workdir in workdirs:  # all of them before the first is predicted with
        read_config(workdir, overrides)
    for flag, path in (("--out", out), ("--png", png), ("--markdown", text)):
        if path:
            _require_writable(flag, path)
    runs = []
    for workdir, name in zip(workdirs, _names(workdirs), strict=True):
        print(f"reading {workdir}", flush=True)
        run = read_run(workdir, name, checkpoint, overrides)
        if run.missing:
            print(f"  without images: {run.missing}")
        if not run.metrics:
            print(f"  without curves: {workdir / 'metrics.jsonl'} has no lines yet")
        runs.append(run)
    if out:
        _write("--out", out, page.page_of(runs))
    if png:
        names = figures.names_of(runs, png)
        for path, draw in names.items():
            _write("--png", path, draw)
    if text:
        _write("--markdown", text, markdown.markdown_of(runs))


def _names(workdirs: Sequence[Path]) -> list[str]:
    """As many last parts of each path as tell them apart."""
    paths = [path.resolve() for path in workdirs]
    for path in paths:
        if paths.count(path) > 1:
            raise UserError(f"{path} is given twice; name each workdir once")
    depth = 1
    while True:
        names = ["/".join(path.parts[1:][-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
        depth += 1


def _require_writable(flag: str, path: Path) -> None:
    """Predictions take long: what cannot be written is told before them."""
    there = path
    while not there.exists():
        there = there.parent
    if not os.access(there, os.W_OK) or (there != path and not there.is_dir()):
        raise UserError(f"{flag}={path} cannot be written: {there} does not allow it")


def _write(flag: str, path: Path, content: str | Callable[[Path], object]) -> None:
    with writing(f"{flag}={path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    print(path)
