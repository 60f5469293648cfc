"""The report as one HTML page that loads nothing from the network."""

import dataclasses
from collections.abc import Sequence
from importlib import resources

from plotly.offline import get_plotlyjs

from imagenet_jax.files import dump_json
from imagenet_jax.formatting import escape
from imagenet_jax.report import charts
from imagenet_jax.report.read import Run
from imagenet_jax.report.sections import Section, make_sections

# The page may load nothing, so neither can text in it that looks like markup.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; connect-src 'none'"
)


def make_page(runs: Sequence[Run]) -> str:
    """Return the page, about 5 MB with plotly.js."""
    sections = make_sections(runs)
    title = " / ".join(run.name for run in runs)
    data = {
        "runs": [run.name for run in runs],
        "hidden_roles": charts.find_hidden_roles(runs),
        "charts": [dataclasses.asdict(chart) for section in sections for chart in section.charts],
    }
    return "\n".join(
        (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            '<link rel="icon" href="data:,">',
            f"<title>{escape(title)}</title>",
            f"<style>{_read_file('style.css')}</style></head><body>",
            f"<header><h1>{escape(title)}</h1>{_show_summary(runs)}</header>",
            f"<nav aria-label='sections'><ul>{_show_links(sections)}</ul></nav><main>",
            *(
                f'<section id="{s.key}"><h2>{escape(s.title)}</h2>{s.body}</section>'
                for s in sections
            ),
            "</main><footer>Made by imagenet_jax.report. This file includes plotly.js (MIT "
            "license), which draws the charts.</footer>",
            f'<script type="application/json" id="report-data">{_embed(data)}</script>',
            f"<script>{get_plotlyjs()}</script>",
            f"<script>{_read_file('page.js')}</script>",
            "</body></html>\n",
        )
    )


def _show_summary(runs: Sequence[Run]) -> str:
    lines = []
    for run in runs:
        model = escape(dict(run.recipe)["model"])
        name = f"{escape(run.workdir)}: " if len(runs) > 1 else f"{escape(run.workdir)}<br>"
        lines.append(f'<p class="muted">{name}{model}; {escape(run.status)}</p>')
    return "".join(lines)


def _show_links(sections: Sequence[Section]) -> str:
    return "".join(f'<li><a href="#{s.key}">{escape(s.title)}</a></li>' for s in sections)


def _embed(value: object) -> str:
    """Return JSON that cannot end the <script> element around it."""
    text = dump_json(value, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _read_file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
