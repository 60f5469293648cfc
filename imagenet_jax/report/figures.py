"""Charts and pictures of a report as PNG files for papers and slides."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter, PercentFormatter

from imagenet_jax.classify.by_class import draw_confusion
from imagenet_jax.report import charts
from imagenet_jax.report.charts import Chart, Series
from imagenet_jax.report.predictions import Sample
from imagenet_jax.report.read import Run

# --run-0 to --run-7 of style.css on white.
_COLORS = (
    "#0067a8", "#c44f00", "#00805c", "#a8417f", "#8a6d00", "#1f83b8", "#5b4bb3", "#555555",
)  # fmt: skip
_DPI = 150
_COLUMNS = 6  # columns of pictures

Draw = Callable[[Path], None]


def plan_figures(runs: Sequence[Run], target: Path) -> dict[Path, Draw]:
    """Return the PNG files to write, with the functions that draw them.

    There is one overview if `target` ends in .png, otherwise a file for each figure in the folder
    `target`.
    """
    if target.suffix.lower() == ".png":
        return {target: partial(_draw_overview, runs)} if charts.make_curves(runs) else {}
    drawings: dict[str, Draw] = {}
    groups = {
        "curves": charts.make_curves(runs),
        "throughput": charts.make_speed(runs),
        "calibration": charts.make_calibration(runs)[:1],
        "classes": charts.make_class_accuracy(runs),
    }
    for i, run in enumerate(runs):
        suffix = f"_{run.name.replace('/', '_')}" if len(runs) > 1 else ""
        groups[f"confusion{suffix}"] = charts.make_confusion(i, run)
        for name, pictures in _list_pictures(run).items():
            drawings[f"{name}{suffix}"] = partial(_save_pictures, pictures)
    drawings |= {
        name: partial(_draw_charts, runs, drawn) for name, drawn in groups.items() if drawn
    }
    return {target / f"{name}.png": draw for name, draw in drawings.items()}


def _list_pictures(run: Run) -> dict[str, list[tuple[np.ndarray, str]]]:
    """Return the (pixels, title) of each figure of pictures."""
    found = {}
    if run.predicted and run.predicted.mistakes:
        found["mistakes"] = [(s.pixels, _describe(s)) for s in run.predicted.mistakes]
    if run.explained:
        found["filters"] = [(one, "") for one in run.explained.filters.images]
        found["features"] = [
            (np.repeat(one[..., None], 3, axis=2), "" if i else layer.name)
            for layer in run.explained.maps
            for i, one in enumerate(layer.images[:_COLUMNS])
        ]
        found["gradcam"] = []
        for sample, cam in run.explained.cams:
            found["gradcam"] += [(sample.pixels, _describe(sample)), (cam, "Grad-CAM")]
    return found


def _draw_overview(runs: Sequence[Run], path: Path) -> None:
    """Draw the most important charts and, for a single run, some predictions."""
    drawn = [
        *charts.make_curves(runs),
        *charts.make_speed(runs)[:1],
        *charts.make_calibration(runs)[:1],
        *charts.make_class_accuracy(runs),
    ]
    samples = [s for run in runs if run.explained and len(runs) == 1 for s, _ in run.explained.cams]
    rows = -(-len(drawn) // 3)
    heights = (3.2 * rows, 1.6 * -(-len(samples) // (2 * _COLUMNS)))
    figure = Figure(figsize=(14, sum(heights)), layout="constrained")
    if not samples:
        _draw_chart_grid(figure, drawn, runs, columns=3)
    else:
        top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=heights)[:, 0]
        _draw_chart_grid(top, drawn, runs, columns=3)
        _draw_pictures(bottom, [(s.pixels, _describe(s)) for s in samples], 2 * _COLUMNS)
    figure.savefig(path, dpi=_DPI * 2 // 3)


def _draw_charts(runs: Sequence[Run], drawn: Sequence[Chart], path: Path) -> None:
    columns = 2 if len(drawn) > 1 else 1
    height = 5.0 if drawn[0].kind in ("reliability", "confusion") else 3.4
    size = (5.5 * columns, height * -(-len(drawn) // columns))
    figure = Figure(figsize=size, layout="constrained")
    _draw_chart_grid(figure, drawn, runs, columns)
    figure.savefig(path, dpi=_DPI)


def _draw_chart_grid(
    figure: FigureBase, drawn: Sequence[Chart], runs: Sequence[Run], columns: int
) -> None:
    """Draw charts in rows, with one legend for all of them below."""
    grid = figure.subplots(-(-len(drawn) // columns), columns, squeeze=False).ravel()
    entries: dict[str, Artist] = {}
    for axes, chart in zip(grid, drawn, strict=False):
        _draw(axes, chart, len(runs) == 1, charts.find_hidden_roles(runs))
        lines, names = axes.get_legend_handles_labels()
        if len(names) > 1:
            entries |= dict(zip(names, lines, strict=True))
    for axes in grid[len(drawn) :]:
        axes.remove()
    if entries:
        handles, labels = list(entries.values()), list(entries)
        figure.legend(
            handles, labels, loc="outside lower center", ncols=columns, fontsize=8, frameon=False
        )


def _draw(axes: Axes, chart: Chart, single: bool, hidden: Sequence[str]) -> None:
    axes.set(title=chart.title, xlabel=chart.x_title, ylabel=chart.y_title)
    axes.spines[["top", "right"]].set_visible(False)
    if chart.kind == "confusion":
        draw_confusion(axes, np.array(chart.cells), chart.names, numbered=20)
        return
    axes.grid(alpha=0.25, linewidth=0.6)
    if chart.value_format.endswith("%"):
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    if chart.kind == "reliability":
        axes.plot([0, 1], [0, 1], "--", color="gray", linewidth=1)
        axes.set_aspect("equal")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    for line in chart.series:
        if line.role not in hidden:
            _draw_line(axes, chart, line, single)
    if chart.value_format.endswith("%"):
        axes.set_ylim(top=min(axes.get_ylim()[1], 1.02))
    if chart.kind == "classes":
        axes.set_xticks(range(len(chart.names)), chart.names, rotation=90, fontsize=7)
        axes.set_ylim(0, 1)
    if chart.logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    if chart.key in ("images_per_second", "input_wait"):
        axes.set_ylim(bottom=0)


def _draw_line(axes: Axes, chart: Chart, line: Series, single: bool) -> None:
    x, y = np.array(line.x, float), np.array(line.y, float)
    evaluated = line.role in ("ema", "raw")
    color = _COLORS[1 if single and evaluated else line.run % len(_COLORS)]
    if chart.kind == "classes":
        runs = len(chart.series)
        width = 0.8 / runs
        offset = width * (chart.series.index(line) - (runs - 1) / 2)
        axes.bar(x + offset, y, width, color=color, label=line.name)
        return
    style = {"ema": "o-", "raw": "x:", "reliability": "o-"}.get(line.role, "-")
    mixed = any(other.role != "train" for other in chart.series)
    alpha = 0.55 if mixed and not single and line.role == "train" else 1
    axes.plot(x, y, style, color=color, alpha=alpha, markersize=4, linewidth=1.4, label=line.name)


def _save_pictures(pictures: Sequence[tuple[np.ndarray, str]], path: Path) -> None:
    titled = any(title for _, title in pictures)
    columns = _COLUMNS if titled else 2 * _COLUMNS
    height = (9 / columns + 0.35 * titled) * -(-len(pictures) // columns)
    figure = Figure(figsize=(9, height), layout="constrained")
    _draw_pictures(figure, pictures, columns)
    figure.savefig(path, dpi=_DPI)


def _draw_pictures(
    figure: FigureBase, pictures: Sequence[tuple[np.ndarray, str]], columns: int
) -> None:
    """Draw (u8[H, W] or u8[H, W, 3], title) in rows."""
    grid = figure.subplots(-(-len(pictures) // columns), columns, squeeze=False).ravel()
    for axes, (pixels, title) in zip(grid, pictures, strict=False):
        axes.imshow(pixels, interpolation="nearest")
        axes.set_title(title, fontsize=7, parse_math=False)
    for axes in grid:
        axes.axis("off")


def _describe(sample: Sample) -> str:
    text = f"{sample.predicted[:22]} {sample.confidence:.0%}"
    return text if sample.is_right else f"{text}\nis {sample.true[:22]}"
