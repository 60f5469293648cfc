"""The sections of the page: what each shows, or the line that says why it cannot."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from imagenet_jax.markup import escape, table
from imagenet_jax.report import charts, galleries, results
from imagenet_jax.report.charts import Chart
from imagenet_jax.report.class_table import class_table
from imagenet_jax.report.places import legend, note, places, swatch
from imagenet_jax.report.records import Predicted, Run

_OTHER_LOSS = ("loss.label_smoothing", "augment.mixup", "augment.cutmix")


class Section(NamedTuple):
    """`key` is the anchor; `charts` are those that `body` has places for."""

    key: str
    title: str
    body: str
    charts: tuple[Chart, ...] = ()


def sections_of(runs: Sequence[Run]) -> list[Section]:
    """All of them, in the order of the page."""
    return [
        _results(runs),
        _curves(runs),
        _speed(runs),
        _config(runs),
        _provenance(runs),
        _classes(runs),
        _calibration(runs),
        _confusions(runs),
        _mistakes(runs),
        *_explained(runs),
    ]


def _results(runs: Sequence[Run]) -> Section:
    parts = []
    if len(runs) > 1:
        parts.append("<p>In grey: the difference from the first run.</p>")
        parts.append(_comparison(runs))
        differing = results.config_differences(runs)
        parts.append("<h3>Where the configs differ</h3>")
        if differing:
            head = ["field", *(run.name for run in runs)]
            parts.append(table(head, differing))
        else:
            parts.append("<p>Nowhere: the runs have the same config.</p>")
    for run in runs:
        rows = results.result_rows(run)
        if len(runs) > 1:
            parts.append(f"<h3>{swatch(run, runs)}{escape(run.name)}</h3>")
        if rows:
            parts.append(table(results.RESULT_HEAD, rows, results.RESULT_NUMBERS))
        else:
            parts.append(note("Not evaluated yet."))
    return Section("results", "Results", "".join(parts))


def _comparison(runs: Sequence[Run]) -> str:
    head = "".join(
        f'<th scope="col" class="number">{swatch(run, runs)}{escape(run.name)}</th>' for run in runs
    )
    body = []
    for name, cells in results.comparison_rows(runs):
        columns = "".join(
            f'<td class="number compared">{escape(value)}'
            + (f" <small>{escape(difference)}</small>" if difference else "")
            + "</td>"
            for value, difference in cells
        )
        body.append(f'<tr><th scope="row">{escape(name)}</th>{columns}</tr>')
    return (
        f'<div class="scroll"><table><thead><tr><th scope="col"></th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _curves(runs: Sequence[Run]) -> Section:
    drawn = charts.curves(runs)
    parts = []
    for run in runs:
        if not run.metrics:
            parts.append(note(f"{run.workdir}/metrics.jsonl has no lines yet: nothing to draw."))
    if drawn:
        parts.append(legend(runs, drawn))
        parts.append(places(drawn))
        hint = "Drag to zoom, double-click to see all again; the charts zoom together."
        if any(run.config[field] for run in runs for field in _OTHER_LOSS):
            hint += (
                " The training loss is that of the config, with smoothed or mixed labels; the "
                "evaluation loss is plain cross-entropy."
            )
        if charts.thinned(runs):
            hint += f" Of each curve {charts.MOST_POINTS:,} points at most are shown."
        parts.append(f'<p class="muted">{hint}</p>')
    return Section("curves", "Curves", "".join(parts), tuple(drawn))


def _speed(runs: Sequence[Run]) -> Section:
    drawn = charts.speed(runs)
    if not drawn:
        body = note("No speed was logged: it takes two steps, and log.every_steps of them.")
        return Section("throughput", "Throughput", body)
    rows = []
    for run in runs:
        rate = results.median_of(run, "images_per_second")
        wait = results.median_of(run, "input_wait")
        if rate is not None and wait is not None:
            devices = str(dict(results.provenance_rows(run.provenance)).get("devices", ""))
            rows.append((run.name, devices, f"{rate:,.0f} img/s", f"{wait:.1%}"))
    head = ["run", "devices", "median throughput", "median input wait"]
    body = table(head, rows, (2, 3)) + places(drawn)
    return Section("throughput", "Throughput", body, tuple(drawn))


def _config(runs: Sequence[Run]) -> Section:
    def body(run: Run) -> str:
        fields = [(name, str(value)) for name, value in run.config.items()]
        return (
            f"{table(['', ''], run.recipe)}<details><summary>All {len(fields)} fields of "
            f"config.json</summary>{table(['field', 'value'], fields)}</details>"
        )

    return Section("config", "Config", _per_run(runs, body))


def _provenance(runs: Sequence[Run]) -> Section:
    body = _per_run(runs, lambda r: table(["", ""], results.provenance_rows(r.provenance)))
    differing = results.provenance_differences(runs)
    if differing:
        body = (
            "<p>Where the runs differ:</p>"
            + table(["", *(run.name for run in runs)], differing)
            + body
        )
    return Section("provenance", "Provenance", body)


def _classes(runs: Sequence[Run]) -> Section:
    chart = charts.class_accuracy(runs)

    def body(run: Run, predicted: Predicted) -> str:
        means = predicted.by_class.as_json()
        return (
            f"<p>{_measured(predicted)} Means over classes: precision {means['precision']:.2%}, "
            f"recall {means['recall']:.2%}, F1 {means['f1']:.2%}.</p>"
            + class_table(f"classes-{runs.index(run)}", predicted)
        )

    drawn = (chart,) if chart else ()
    text = places(drawn, "") + _per_predicted(runs, body)
    return Section("classes", "Classes", text, drawn)


def _calibration(runs: Sequence[Run]) -> Section:
    drawn = tuple(c for c in (charts.reliability(runs), charts.confidences(runs)) if c)
    if not drawn:
        return Section("calibration", "Calibration", _per_predicted(runs, lambda *_: ""))
    rows = [
        (run.name, f"{run.predicted.reliability.error:.2%}", f"{run.predicted.images:,}")
        for run in runs
        if run.predicted
    ]
    text = (
        "<p>Predictions in 15 bins of equal width of their confidence (Guo et al. 2017): a "
        "calibrated model is right as often as it is confident, on the dashed line.</p>"
        + table(["run", "expected calibration error", "images"], rows, (1, 2))
        + places(drawn, " two")
        + "".join(_missing(run, runs) for run in runs if not run.predicted)
    )
    return Section("calibration", "Calibration", text, drawn)


def _confusions(runs: Sequence[Run]) -> Section:
    drawn = []

    def body(run: Run, predicted: Predicted) -> str:
        chart = charts.confusion(runs.index(run), run)
        if chart:
            drawn.append(chart)
        place = places([chart], "") if chart else ""
        if not predicted.pairs:
            return place + note("No image is misclassified.")
        return (
            f"{place}<h3>Most confused pairs</h3>"
            f"<p>The {len(predicted.pairs)} most frequent, with the images of highest "
            f"confidence.</p>{galleries.pairs(predicted.pairs)}"
        )

    text = _per_predicted(runs, body)
    return Section("confusions", "Confusions", text, tuple(drawn))


def _mistakes(runs: Sequence[Run]) -> Section:
    def body(run: Run, predicted: Predicted) -> str:
        if not predicted.mistakes:
            return note("No image is misclassified.")
        return (
            f"<p>{predicted.wrong:,} of {predicted.images:,} images are misclassified; here are "
            f"the {len(predicted.mistakes)} of highest confidence.</p>"
            f"{galleries.samples(predicted.mistakes)}"
        )

    return Section("mistakes", "Mistakes", _per_predicted(runs, body))


def _explained(runs: Sequence[Run]) -> list[Section]:
    shown = (
        ("filters", "First-layer filters", galleries.filters),
        ("features", "Feature maps", galleries.feature_maps),
        ("gradcam", "Grad-CAM", galleries.cams),
    )
    found = []
    for key, title, draw in shown:

        def body(run: Run, draw=draw) -> str:
            return draw(run.explained) if run.explained else _missing(run, [])

        found.append(Section(key, title, _per_run(runs, body)))
    return found


def _measured(predicted: Predicted) -> str:
    kind = "average" if predicted.weights == "ema" else "raw"
    return escape(
        f"{kind.capitalize()} weights of step {predicted.step:,} on {predicted.images:,} images "
        f"of {predicted.split}: top-1 {predicted.top1:.2%}, top-5 {predicted.top5:.2%}."
    )


def _per_run(runs: Sequence[Run], body: Callable[[Run], str]) -> str:
    """The body of a single run as it is; those of several folded."""
    if len(runs) == 1:
        return body(runs[0])
    return "".join(
        f"<details><summary>{swatch(run, runs)}{escape(run.name)}</summary>{body(run)}</details>"
        for run in runs
    )


def _per_predicted(runs: Sequence[Run], body: Callable[[Run, Predicted], str]) -> str:
    def of(run: Run) -> str:
        return body(run, run.predicted) if run.predicted else _missing(run, [])

    return _per_run(runs, of)


def _missing(run: Run, runs: Sequence[Run]) -> str:
    name = f"{run.name}: " if len(runs) > 1 else ""
    return note(f"{name}not shown, as {run.missing}")
