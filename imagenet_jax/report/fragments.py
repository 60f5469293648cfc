"""HTML fragments of the page: placeholders of charts, legend, tables and pictures."""

from collections.abc import Iterable, Sequence

import numpy as np

from imagenet_jax.classify.by_class import CLASS_COLUMNS, ByClass, tabulate_classes
from imagenet_jax.formatting import Html, counted, data_uri, escape
from imagenet_jax.report import charts
from imagenet_jax.report.charts import Chart
from imagenet_jax.report.predictions import Explained, LayerImages, Pair, Sample
from imagenet_jax.report.read import Run

_PIXELATED_SIDE = 64  # smaller images are shown pixel by pixel
_MAX_CLASSES = 2000  # rows of the class table; a browser would hang on 21,000
_FILTERED_CLASSES = 20  # longer class tables have a search field
_LEGEND = {
    "train": ("training", '<path d="M0 6h26" stroke-width="2"/>'),
    "ema": ("evaluation, EMA weights", '<path d="M0 6h26"/><circle cx="13" cy="6" r="3.5"/>'),
    "raw": (
        "evaluation, raw weights",
        '<path d="M0 6h26" stroke-dasharray="2 4"/><path d="M10 3l6 6m0-6l-6 6"/>',
    ),
}


def show_note(text: str) -> str:
    """Return a paragraph that says why something is missing."""
    return f'<p class="note">{escape(text)}</p>'


def show_charts(drawn: Sequence[Chart], layout: str = "") -> str:
    """Return a placeholder for each chart. `layout` is a class of the style sheet."""
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
    return f'<div class="figures {layout}">{"".join(boxes)}</div>' if boxes else ""


def show_legend(runs: Sequence[Run], drawn: Sequence[Chart]) -> str:
    """Return the legend, with check boxes that show and hide lines."""
    roles = {line.role for chart in drawn for line in chart.series}
    hidden = charts.find_hidden_roles(runs)
    entries = []
    if len(runs) > 1:
        entries = [
            f'<label><input type="checkbox" checked data-run="{i}">'
            f"<span>{show_name(run, runs)}</span></label>"
            for i, run in enumerate(runs)
        ]
    for role, (name, drawing) in _LEGEND.items():
        if role in roles:
            color = "--muted" if len(runs) > 1 else "--run-0" if role == "train" else "--run-1"
            checked = "" if role in hidden else " checked"
            entries.append(
                f'<label><input type="checkbox"{checked} data-role="{role}"><svg width="26" '
                f'height="12" fill="var({color})" stroke="var({color})" stroke-width="2">{drawing}'
                f"</svg>{name}</label>"
            )
    return f'<div class="legend">{"".join(entries)}</div>'


def show_name(run: Run, runs: Sequence[Run]) -> Html:
    """Return the name of the run, after a square in the color of its lines."""
    color = f"--run-{runs.index(run) % 8}"
    return Html(f'<i class="swatch" style="background:var({color})"></i>{escape(run.name)}')


def show_table(
    head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = (), key: str = ""
) -> str:
    """Return a table. The first cell of a row is its header.

    Args:
      head: column names. No header row is written if all are empty.
      numbers: indices of the right-aligned columns.
      key: id of a sortable table, in a box with its own scroll bar; "": a plain table.
    """
    right = set(numbers)
    mark = [' class="number"' if i in right else "" for i in range(len(head))]
    top = "".join(f'<th scope="col"{m}>{escape(h)}</th>' for h, m in zip(head, mark, strict=True))
    body = []
    for first, *rest in rows:
        cells = "".join(f"<td{m}>{escape(c)}</td>" for c, m in zip(rest, mark[1:], strict=True))
        body.append(f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>')
    content = f"<thead><tr>{top}</tr></thead>" if any(head) else ""
    content += f"<tbody>{''.join(body)}</tbody>"
    if key:
        return (
            f'<div class="scroll tall"><table class="sortable" id="{key}">{content}</table></div>'
        )
    return f'<div class="scroll"><table>{content}</table></div>'


def show_class_table(key: str, found: ByClass) -> str:
    """Return the table of classes, which can be sorted and searched."""
    rows = tabulate_classes(found, _MAX_CLASSES)
    parts = []
    if len(found.f1) > len(rows):
        parts.append(
            show_note(
                f"Only the {len(rows):,} classes with the lowest F1 of {len(found.f1):,} are "
                "shown; imagenet_jax.eval --by_class writes all of them."
            )
        )
    if len(rows) > _FILTERED_CLASSES:
        parts.append(
            f'<input type="search" data-filter="{key}" placeholder="filter classes" '
            'aria-label="filter classes">'
        )
    return "".join(parts) + show_table(CLASS_COLUMNS, rows, range(1, 5), key)


def show_samples(samples: Sequence[Sample]) -> str:
    """Return a grid of images with their predicted and true classes."""
    return _show_gallery((_show_image(s.pixels, s.name), _describe(s)) for s in samples)


def show_pairs(pairs: Sequence[Pair]) -> str:
    """Return a row for each pair of confused classes, with its frequency and some images."""
    rows = []
    for pair in pairs:
        images = _show_gallery(
            (_show_image(s.pixels, s.name), f"{s.confidence:.1%}") for s in pair.samples
        )
        count = f"{counted(pair.images, 'image')}, {pair.fraction:.1%}"
        rows.append(
            f'<div class="pair"><p><b>{escape(pair.true)}</b> taken for '
            f'<b>{escape(pair.predicted)}</b><br><span class="muted">{count} of '
            f"{escape(pair.true)}</span></p>{images}</div>"
        )
    return "".join(rows)


def show_filters(explained: Explained) -> str:
    """Return the kernels of the first convolution as colors."""
    return _show_layer(explained.filters, "filters", "each scaled separately; mid-gray is 0")


def show_feature_maps(explained: Explained) -> str:
    """Return channels of some layers for one image."""
    maps = (_show_layer(m, "channels", "each scaled to its own range") for m in explained.maps)
    return show_samples([explained.cams[0][0]]) + "".join(maps)


def _show_layer(layer: LayerImages, what: str, scaling: str) -> str:
    count, height, width = layer.images.shape[:3]
    images = _show_gallery(
        ((_show_image(one, f"{i}"), "") for i, one in enumerate(layer.images)), "small"
    )
    return (
        f"<h3><code>{escape(layer.name)}</code></h3><p>{count} of {layer.channels:,} {what}, "
        f"{height}x{width}, {scaling}.</p>{images}"
    )


def show_cams(explained: Explained) -> str:
    """Return each image next to its Grad-CAM map of the predicted class."""
    figures = []
    for sample, cam in explained.cams:
        images = _show_image(sample.pixels, sample.name) + _show_image(cam, "Grad-CAM")
        figures.append((f'<div class="beside">{images}</div>', _describe(sample)))
    return (
        "<p>Evidence for the predicted class in the output of "
        f"<code>{escape(explained.cam_layer)}</code> (Selvaraju et al. 2017), from blue (none) to "
        f"red (most).</p>{_show_gallery(figures, 'wide')}"
    )


def _show_gallery(figures: Iterable[tuple[str, str]], size: str = "") -> str:
    """Return a grid of (image, caption), both HTML."""
    content = "".join(
        f"<figure>{image}" + (f"<figcaption>{text}</figcaption>" if text else "") + "</figure>"
        for image, text in figures
    )
    return f'<div class="gallery {size}">{content}</div>'


def _describe(sample: Sample) -> str:
    """Return the predicted class with its confidence, and the true class if it differs."""
    guess = f"{escape(sample.predicted)} {sample.confidence:.1%}"
    if sample.is_right:
        return f'<span class="right">{guess}</span>'
    return f'<span class="wrong">{guess}</span><br>is {escape(sample.true)}'


def _show_image(pixels: np.ndarray, name: str) -> str:
    small = ' class="pixels"' if max(pixels.shape[:2]) <= _PIXELATED_SIDE else ""
    text = escape(name)
    return f'<img{small} src="{data_uri(pixels)}" alt="{text}" title="{text}" loading="lazy">'
