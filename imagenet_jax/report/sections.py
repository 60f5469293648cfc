"""The sections of the page."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from imagenet_jax.formatting import Html, escape
from imagenet_jax.report import charts, tables
from imagenet_jax.report.charts import Chart
from imagenet_jax.report.fragments import (
    show_cams,
    show_charts,
    show_class_table,
    show_feature_maps,
    show_filters,
    show_legend,
    show_name,
    show_note,
    show_pairs,
    show_samples,
    show_table,
)
from imagenet_jax.report.predictions import Explained, Predicted
from imagenet_jax.report.read import Run
from imagenet_jax.training.metrics import METRICS, WEIGHTS_LABELS

_MIXED_LABELS = ("loss.label_smoothing", "augment.mixup", "augment.cutmix")


class Section(NamedTuple):
    """A section. `key` is its anchor, and `body` is HTML with placeholders for `charts`."""

    key: str
    title: str
    body: str
    charts: Sequence[Chart] = ()


def make_sections(runs: Sequence[Run]) -> list[Section]:
    """Return all sections in the order of the page."""
    return [
        _show_results(runs),
        _show_curves(runs),
        _show_speed(runs),
        Section("config", "Config", _fold(runs, _show_config)),
        _show_provenance(runs),
        _show_classes(runs),
        _show_calibration(runs),
        _show_confusions(runs),
        Section("mistakes", "Mistakes", _fold_predicted(runs, _show_mistakes)),
        _show_explained(runs, "filters", "First-layer filters", show_filters),
        _show_explained(runs, "features", "Feature maps", show_feature_maps),
        _show_explained(runs, "gradcam", "Grad-CAM", show_cams),
    ]


def _show_results(runs: Sequence[Run]) -> Section:
    parts = []
    if len(runs) > 1:
        parts.append("<p>In gray: the difference from the first run.</p>")
        parts.append(_show_comparison(runs))
        differences = tables.find_differences(runs, tables.tabulate_config)
        parts.append("<h3>Config differences</h3>")
        if differences:
            parts.append(show_table(["field", *(run.name for run in runs)], differences))
        else:
            parts.append("<p>None: all runs have the same config.</p>")
    for run in runs:
        head, rows = tables.tabulate_results(run)
        if len(runs) > 1:
            parts.append(f"<h3>{show_name(run, runs)}</h3>")
        numbers = {*range(2, len(head))} - {head.index("split")}
        parts.append(show_table(head, rows, numbers) if rows else show_note("Not evaluated yet."))
    return Section("results", "Results", "".join(parts))


def _show_comparison(runs: Sequence[Run]) -> str:
    rows = [
        (name, *(Html(f"{value} <small>{gap}</small>" if gap else value) for value, gap in cells))
        for name, cells in tables.tabulate_comparison(runs)
    ]
    head = ["", *(show_name(run, runs) for run in runs)]
    return f'<div class="compared">{show_table(head, rows, range(1, len(head)))}</div>'


def _show_curves(runs: Sequence[Run]) -> Section:
    drawn = charts.make_curves(runs)
    parts = [
        show_note(f"{run.workdir}/metrics.jsonl has no lines yet, so there are no curves.")
        for run in runs
        if not run.metrics
    ]
    if drawn:
        parts += [show_legend(runs, drawn), show_charts(drawn)]
        hint = "Drag to zoom, double-click to reset; all charts zoom together."
        if any(run.config[field] for run in runs for field in _MIXED_LABELS):
            hint += (
                " The training loss is that of the config, with smoothed or mixed labels; the "
                "evaluation loss is plain cross-entropy."
            )
        if charts.is_thinned(runs):
            hint += f" Each curve shows at most {charts.MAX_POINTS:,} points."
        parts.append(f'<p class="muted">{hint}</p>')
    return Section("curves", "Curves", "".join(parts), drawn)


def _show_speed(runs: Sequence[Run]) -> Section:
    drawn = charts.make_speed(runs)
    if not drawn:
        body = show_note("No speed was logged; it needs at least two steps and a logged interval.")
        return Section("throughput", "Throughput", body)
    rows = []
    for run in runs:
        rate = tables.find_median(run, "images_per_second")
        wait = tables.find_median(run, "input_wait")
        if rate is not None and wait is not None:
            devices = dict(tables.tabulate_provenance(run)).get("devices", "")
            rows.append((run.name, f"{rate:,.0f} img/s", f"{wait:.1%}", devices))
    head = ["run", "median throughput", "median input wait", "devices"]
    return Section(
        "throughput", "Throughput", show_table(head, rows, (1, 2)) + show_charts(drawn), drawn
    )


def _show_config(run: Run) -> str:
    fields = tables.tabulate_config(run)
    return (
        f"{show_table(['', ''], run.recipe)}<details><summary>All {len(fields)} fields of "
        f"config.json</summary>{show_table(['field', 'value'], fields)}</details>"
    )


def _show_provenance(runs: Sequence[Run]) -> Section:
    body = _fold(runs, lambda run: show_table(["", ""], tables.tabulate_provenance(run)))
    differences = tables.find_differences(runs, tables.tabulate_provenance)
    if differences:
        head = ["", *(run.name for run in runs)]
        body = f"<p>Differences between the runs:</p>{show_table(head, differences)}{body}"
    return Section("provenance", "Provenance", body)


def _show_classes(runs: Sequence[Run]) -> Section:
    def show(run: Run, predicted: Predicted) -> str:
        means = predicted.by_class.as_json()
        has_top5 = run.num_classes >= METRICS["top5"].min_classes
        top5 = f", top-5 {predicted.top5:.2%}" if has_top5 else ""
        measured = (
            f"{WEIGHTS_LABELS[predicted.weights]} weights of step {predicted.step:,} on "
            f"{predicted.images:,} images of {predicted.split}: top-1 {predicted.top1:.2%}{top5}."
        )
        return (
            f"<p>{escape(measured[0].upper() + measured[1:])} Class means: precision "
            f"{means['precision']:.2%}, recall {means['recall']:.2%}, F1 {means['f1']:.2%}.</p>"
            + show_class_table(f"classes-{runs.index(run)}", predicted.by_class)
        )

    drawn = charts.make_class_accuracy(runs)
    return Section("classes", "Classes", show_charts(drawn) + _fold_predicted(runs, show), drawn)


def _show_calibration(runs: Sequence[Run]) -> Section:
    drawn = charts.make_calibration(runs)
    if not drawn:
        return Section("calibration", "Calibration", _fold_predicted(runs, lambda *_: ""))
    rows = [
        (run.name, f"{run.predicted.reliability.error:.2%}", f"{run.predicted.images:,}")
        for run in runs
        if run.predicted
    ]
    text = (
        "<p>Predictions in 15 bins of equal width by confidence (Guo et al. 2017). The accuracy of "
        "a calibrated model equals its confidence: the dashed line.</p>"
        + show_table(["run", "expected calibration error", "images"], rows, (1, 2))
        + show_charts(drawn, "two")
        + "".join(_note_missing(run, f"{run.name}: ") for run in runs if not run.predicted)
    )
    return Section("calibration", "Calibration", text, drawn)


def _show_confusions(runs: Sequence[Run]) -> Section:
    drawn = []

    def show(run: Run, predicted: Predicted) -> str:
        chart = charts.make_confusion(runs.index(run), run)
        drawn.extend(chart)
        if not predicted.pairs:
            return show_charts(chart) + show_note("No image is misclassified.")
        return (
            f"{show_charts(chart)}<h3>Most confused pairs</h3>"
            f"<p>The {len(predicted.pairs)} most frequent, with the images of highest "
            f"confidence.</p>{show_pairs(predicted.pairs)}"
        )

    return Section("confusions", "Confusions", _fold_predicted(runs, show), drawn)


def _show_mistakes(run: Run, predicted: Predicted) -> str:
    if not predicted.mistakes:
        return show_note("No image is misclassified.")
    return (
        f"<p>{predicted.wrong:,} of {predicted.images:,} images are misclassified; these are the "
        f"{len(predicted.mistakes)} with the highest confidence.</p>"
        f"{show_samples(predicted.mistakes)}"
    )


def _show_explained(
    runs: Sequence[Run], key: str, title: str, show: Callable[[Explained], str]
) -> Section:
    body = _fold(runs, lambda r: show(r.explained) if r.explained else _note_missing(r))
    return Section(key, title, body)


def _note_missing(run: Run, prefix: str = "") -> str:
    return show_note(f"{prefix}Not available: {run.missing}")


def _fold(runs: Sequence[Run], show: Callable[[Run], str]) -> str:
    """Return the content of a single run, or that of each run in a collapsible element."""
    if len(runs) == 1:
        return show(runs[0])
    return "".join(
        f"<details><summary>{show_name(run, runs)}</summary>{show(run)}</details>" for run in runs
    )


def _fold_predicted(runs: Sequence[Run], show: Callable[[Run, Predicted], str]) -> str:
    """Return `_fold` of the predictions of the runs, with a note for runs without predictions."""
    return _fold(
        runs, lambda run: show(run, run.predicted) if run.predicted else _note_missing(run)
    )
