"""Where the page's script draws charts, the legend of their lines, and notes."""

from collections.abc import Sequence

from imagenet_jax.markup import escape
from imagenet_jax.report import charts
from imagenet_jax.report.charts import Chart
from imagenet_jax.report.records import Run

_ROLES = {
    "train": ("training", '<path d="M0 6h26" stroke-width="2"/>'),
    "ema": ("evaluation, average weights", '<path d="M0 6h26"/><circle cx="13" cy="6" r="3.5"/>'),
    "raw": (
        "evaluation, raw weights",
        '<path d="M0 6h26" stroke-dasharray="2 4"/><path d="M10 3l6 6m0-6l-6 6"/>',
    ),
}


def places(drawn: Sequence[Chart], more: str = "") -> str:
    """A box for each chart; `more` are classes of the style sheet."""
    boxes = []
    for chart in drawn:
        button = ""
        if chart.logarithmic is not None:
            text = "linear axis" if chart.logarithmic else "log axis"
            button = f'<button type="button" data-logarithmic="{chart.key}">{text}</button>'
        boxes.append(
            f'<figure class="chart-box"><figcaption>{escape(chart.title)}{button}</figcaption>'
            f'<div class="chart {chart.kind}" id="chart-{chart.key}"></div></figure>'
        )
    return f'<div class="figures{more}">{"".join(boxes)}</div>' if boxes else ""


def legend(runs: Sequence[Run], drawn: Sequence[Chart]) -> str:
    """Which line is which; its boxes show and hide them."""
    roles = {line.role for chart in drawn for line in chart.series}
    hidden = charts.hidden_roles(runs)
    entries = []
    if len(runs) > 1:
        for i, run in enumerate(runs):
            entries.append(
                f'<label><input type="checkbox" checked data-run="{i}">'
                f"<span>{swatch(run, runs)}{escape(run.name)}</span></label>"
            )
    for role, (name, drawing) in _ROLES.items():
        if role in roles:
            hue = "var(--muted)"
            if len(runs) == 1:
                hue = "var(--run-0)" if role == "train" else "var(--run-1)"
            entries.append(
                f'<label><input type="checkbox"{"" if role in hidden else " checked"} '
                f'data-role="{role}"><svg width="26" height="12" fill="{hue}" stroke="{hue}" '
                f'stroke-width="2">{drawing}</svg>{name}</label>'
            )
    return f'<div class="legend">{"".join(entries)}</div>'


def swatch(run: Run, runs: Sequence[Run]) -> str:
    """A square in the colour of the run's lines."""
    return f'<i class="swatch" style="background:var(--run-{runs.index(run) % 8})"></i>'


def note(text: str) -> str:
    """A line that says why something is not there."""
    return f'<p class="note">{escape(text)}</p>'
