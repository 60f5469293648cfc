"""Reports on runs: reads the workdirs, then writes the page, figures and Markdown.

The page is one HTML file that loads nothing from the network.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

from plotly.offline import get_plotlyjs

from imagenet_jax.errors import UserError, writing
from imagenet_jax.files import dump_json, write_atomically
from imagenet_jax.formatting import escape
from imagenet_jax.progress import announce
from imagenet_jax.report import charts, figures, tables
from imagenet_jax.report.read import Run, read_run
from imagenet_jax.report.sections import make_sections
from imagenet_jax.runtime.workdir import read_config

# The page may not load anything, so neither can text in it that looks like markup.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; connect-src 'none'"
)


def make_report(
    workdirs: Sequence[Path],
    outputs: dict[str, Path],
    checkpoint: str,
    overrides: Sequence[tuple[str, str]],
) -> None:
    """Write a report. Print the names of its files and what is missing from the runs.

    Args:
      outputs: "out": the page, "png": a file or a folder of figures, "markdown": a file.
      checkpoint: "latest", "best" or a step, for the predictions.
      overrides: (field, text) changes of the configs.

    Raises UserError if a folder is not the workdir of a run, or a file cannot be written.
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
        _write("out", outputs["out"], make_page(runs))
    if "png" in outputs:
        for path, draw in figures.plan_figures(runs, outputs["png"]).items():
            _write("png", path, draw)
    if "markdown" in outputs:
        _write("markdown", outputs["markdown"], tables.format_markdown(runs))


def _make_names(workdirs: Sequence[Path]) -> list[str]:
    """Return the last parts of each path, as many as are needed to make the names unique."""
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
    with writing(f"--{flag}={path}"), announce(f"writing {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    print(path, flush=True)


def make_page(runs: Sequence[Run]) -> str:
    """Return the page, about 5 MB with plotly.js."""
    sections = make_sections(runs)
    links = "".join(f'<li><a href="#{s.key}">{escape(s.title)}</a></li>' for s in sections)
    title = escape(" / ".join(run.name for run in runs))
    separator = ": " if len(runs) > 1 else "<br>"
    summary = "".join(
        f'<p class="muted">{escape(run.workdir)}{separator}{escape(dict(run.recipe)["model"])}; '
        f"{escape(run.status)}</p>"
        for run in runs
    )
    data = {
        "runs": [run.name for run in runs],
        "hidden_roles": charts.find_hidden_roles(runs),
        "charts": [dataclasses.asdict(chart) for section in sections for chart in section.charts],
    }
    embedded = dump_json(data, separators=(",", ":"))
    for character in "<>&":  # which could end the <script> element around the JSON
        embedded = embedded.replace(character, f"\\u{ord(character):04x}")
    return "\n".join(
        (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            '<link rel="icon" href="data:,">',
            f"<title>{title}</title>",
            f"<style>{_read_file('style.css')}</style></head><body>",
            f"<header><h1>{title}</h1>{summary}</header>",
            f"<nav aria-label='sections'><ul>{links}</ul></nav><main>",
            *(
                f'<section id="{s.key}"><h2>{escape(s.title)}</h2>{s.body}</section>'
                for s in sections
            ),
            "</main><footer>Made by imagenet_jax.report. This file includes plotly.js (MIT "
            "license), which draws the charts.</footer>",
            f'<script type="application/json" id="report-data">{embedded}</script>',
            f"<script>{get_plotlyjs()}</script>",
            f"<script>{_read_file('page.js')}</script>",
            "</body></html>\n",
        )
    )


def _read_file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
