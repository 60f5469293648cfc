"""The report's charts and pictures as PNG files for papers and slides."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter, PercentFormatter

from imagenet_jax.report import charts
from imagenet_jax.report.charts import Chart, Series
from imagenet_jax.report.records import Explained, Run, Sample

# As --run-0 to --run-7 of style.css on white.
_HUES = (
    "#0067a8", "#c44f00", "#00805c", "#a8417f", "#8a6d00", "#1f83b8", "#5b4bb3", "#555555",
)  # fmt: skip
_DPI = 150
_COLUMNS = 6  # of pictures

Draw = Callable[[Path], None]


def names_of(runs: Sequence[Run], target: Path) -> dict[Path, Draw]:
    """What to draw where: one overview where `target` ends in .png, else a file each in it."""
    if target.suffix.lower() == ".png":
        overview = [*charts.curves(runs), *charts.speed(runs)]
        overview += [c for c in (charts.reliability(runs), charts.class_accuracy(runs)) if c]
        return {target: partial(_draw_charts, overview, runs)} if overview else {}
    drawings: dict[Path, Draw] = {}
    for name, drawn in (
        ("curves", charts.curves(runs)),
        ("throughput", charts.speed(runs)),
        ("calibration", [charts.reliability(runs)]),
        ("classes", [charts.class_accuracy(runs)]),
    ):
        present = [chart for chart in drawn if chart]
        if present:
            drawings[target / f"{name}.png"] = partial(_draw_charts, present, runs)
    for i, run in enumerate(runs):
        mark = f"_{run.name.replace('/', '_')}" if len(runs) > 1 else ""
        square = charts.confusion(i, run)
        if square:
            drawings[target / f"confusion{mark}.png"] = partial(_draw_charts, [square], runs)
        if run.predicted and run.predicted.mistakes:
            drawings[target / f"mistakes{mark}.png"] = partial(
                _draw_samples, run.predicted.mistakes
            )
        if run.explained:
            drawings[target / f"filters{mark}.png"] = partial(_draw_filters, run.explained)
            drawings[target / f"features{mark}.png"] = partial(_draw_features, run.explained)
            drawings[target / f"gradcam{mark}.png"] = partial(_draw_cams, run.explained)
    return drawings


def _draw_charts(drawn: Sequence[Chart], runs: Sequence[Run], path: Path) -> None:
    columns = 2 if len(drawn) > 1 else 1
    rows = -(-len(drawn) // columns)
    tall = 5.0 if drawn[0].kind in ("reliability", "confusion") else 3.4
    figure = Figure(figsize=(5.5 * columns, tall * rows), layout="constrained")
    for axes, chart in zip(figure.subplots(rows, columns, squeeze=False).flat, drawn, strict=False):
        _draw(axes, chart, len(runs) == 1, charts.hidden_roles(runs))
    for axes in figure.axes[len(drawn) : rows * columns]:
        axes.remove()
    figure.savefig(path, dpi=_DPI)


def _draw(axes: Axes, chart: Chart, single: bool, hidden: Sequence[str]) -> None:
    axes.set(title=chart.title, xlabel=chart.x_title, ylabel=chart.y_title)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if chart.kind == "confusion":
        _draw_confusion(axes, chart)
        return
    axes.grid(alpha=0.25, linewidth=0.6)
    if chart.value_format.endswith("%"):
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    if chart.kind == "reliability":
        axes.plot([0, 1], [0, 1], "--", color="gray", linewidth=1)
        axes.set_aspect("equal")
    if chart.kind == "reliability" or chart.kind == "histogram":
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    shown = [line for line in chart.series if line.role not in hidden]
    for line in shown:
        _draw_line(axes, chart, line, single)
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
    if len(shown) > 1:
        axes.legend(fontsize=7, framealpha=0.8)


def _draw_line(axes: Axes, chart: Chart, line: Series, single: bool) -> None:
    x = np.array(line.x, float)
    y = np.array(line.y, float)
    evaluated = line.role in ("ema", "raw")
    hue = _HUES[1 if single and evaluated else line.run % len(_HUES)]
    if chart.kind == "classes":
        runs = len(chart.series)
        width = 0.8 / runs
        place = x + width * (chart.series.index(line) - (runs - 1) / 2)
        axes.bar(place, y, width, color=hue, label=line.name)
        return
    style = {"ema": "o-", "raw": "x:", "reliability": "o-"}.get(line.role, "-")
    mixed = any(other.role != "train" for other in chart.series)
    alpha = 0.55 if mixed and not single and line.role == "train" else 1
    axes.plot(x, y, style, color=hue, alpha=alpha, markersize=4, linewidth=1.4, label=line.name)


def _draw_confusion(axes: Axes, chart: Chart) -> None:
    cells = np.array(chart.cells)
    shares = cells / np.maximum(cells.sum(axis=1, keepdims=True), 1)
    picture = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
    if len(chart.names) <= charts.NAMED_CLASSES:
        axes.set_xticks(range(len(chart.names)), chart.names, rotation=90, fontsize=7)
        axes.set_yticks(range(len(chart.names)), chart.names, fontsize=7)
    if len(chart.names) <= 20:
        for true, predicted in zip(*np.nonzero(cells), strict=True):
            axes.text(
                predicted, true, f"{cells[true, predicted]:,}", ha="center", va="center",
                fontsize=7, color="white" if shares[true, predicted] > 0.5 else "black",
            )  # fmt: skip
    figure = axes.figure
    figure.colorbar(picture, ax=axes, label="share of the true class", shrink=0.8)


def _draw_samples(samples: Sequence[Sample], path: Path) -> None:
    _draw_grid([(s.pixels, _verdict(s)) for s in samples], path)


def _draw_filters(explained: Explained, path: Path) -> None:
    _draw_grid([(kernel, "") for kernel in explained.filters], path, columns=12)


def _draw_features(explained: Explained, path: Path) -> None:
    pictures = []
    for layer in explained.feature_maps:
        for i, one in enumerate(layer.maps[:_COLUMNS]):
            pictures.append((np.repeat(one[..., None], 3, axis=2), "" if i else layer.layer))
    _draw_grid(pictures, path)


def _draw_cams(explained: Explained, path: Path) -> None:
    pictures = []
    for sample, cam in explained.cams:
        pictures += [(sample.pixels, _verdict(sample)), (cam, "Grad-CAM")]
    _draw_grid(pictures, path)


def _draw_grid(
    pictures: Sequence[tuple[np.ndarray, str]], path: Path, columns: int = _COLUMNS
) -> None:
    rows = -(-len(pictures) // columns)
    titled = any(title for _, title in pictures)
    side = 9.0 / columns
    figure = Figure(figsize=(9, rows * (side + 0.35 * titled)), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid:
        axes.axis("off")
    for axes, (pixels, title) in zip(grid, pictures, strict=False):
        axes.imshow(pixels, interpolation="nearest")
        axes.set_title(title, fontsize=7)
    figure.savefig(path, dpi=_DPI)


def _verdict(sample: Sample) -> str:
    text = f"{sample.predicted[:22]} {sample.confidence:.0%}"
    return text if sample.is_right else f"{text}\nis {sample.true[:22]}"
