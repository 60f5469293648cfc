"""The report's page, Markdown and PNG files: numbers, and names that look like markup."""

import json
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from report_runs import probabilities_of, run_of
from sklearn.metrics import precision_recall_fscore_support

from imagenet_jax.classify.by_class import reliability
from imagenet_jax.report import charts, figures, make, tables
from imagenet_jax.training.metrics import METRICS, Metric

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{b}|`*_"


class Page(HTMLParser):
    """A parsed page: tags, table rows as text, and the data of the charts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.rows, self.text = [], [], [], ""
        self._in_cell, self._script = False, None
        self.scripts = {}
        self.feed(text)
        self.data = json.loads(self.scripts["report-data"])
        self.charts = {chart["key"]: chart for chart in self.data["charts"]}

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *attribute) for attribute in attrs]
        self._script = None
        if tag == "script":
            self._script = dict(attrs).get("id", f"script {len(self.scripts)}")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data):
        if self._script:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data
            self._script = None
            return
        self.text += data
        if self._in_cell:
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def single():
    run = run_of()
    return run, Page(make.make_page([run]))


@pytest.mark.parametrize(
    ("key", "role", "field"),
    [
        ("loss", "train", "loss"),
        ("loss", "ema", "loss"),
        ("top1", "raw", "top1"),
        ("learning_rate", "train", "learning_rate"),
        ("grad_norm", "train", "grad_norm"),
        ("images_per_second", "train", "images_per_second"),
        ("input_wait", "train", "input_wait"),
    ],
)
def test_curves_show_the_lines_of_metrics_jsonl(single, key, role, field):
    run, shown = single
    (line,) = [s for s in shown.charts[key]["series"] if s["role"] == role]
    kind = "train" if role == "train" else role
    expected = [x for x in run.metrics if kind in (x["split"], x.get("weights"))]
    assert line["y"] == [x[field] for x in expected]
    assert line["x"] == pytest.approx([x["step"] / 22.5 for x in expected])
    assert line["text"] == [f"step {x['step']:,}" for x in expected]


def test_results_show_the_last_and_the_best_evaluation(single):
    run, shown = single
    ema = [x for x in run.metrics if x.get("weights") == "ema"]
    best = max(ema, key=lambda x: x["top1"])
    assert best["step"] == 200
    rows = [row for row in shown.rows if row[0].startswith(("last", "best by top-1"))]
    assert [(row[0], row[5], row[1], row[2]) for row in rows] == [
        (name, str(x["step"]), kind, f"{x['top1']:.2%}")
        for name, step in (("last", 400), ("best by top-1", best["step"]))
        for kind, weights in (("EMA", "ema"), ("raw", "raw"))
        for x in run.metrics
        if x["step"] == step and x.get("weights") == weights
    ]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_non_finite_evaluation_is_never_the_best(bad):
    run = run_of(best_metric="loss")
    lines = [x | ({"loss": bad} if x["step"] in (100, 400) else {}) for x in run.evaluations]
    shown = Page(make.make_page([run_of(best_metric="loss", evaluations=lines)]))
    rows = [row for row in shown.rows if row[0].startswith(("last", "best by loss"))]
    assert [row[5] for row in rows] == ["400", "400", "200", "200"]  # 1 - top1 is least at 200


def test_class_metrics_equal_those_of_sklearn(single):
    run, shown = single
    labels, probabilities = probabilities_of(np.random.default_rng(0), 200, 10)
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, probabilities.argmax(1)
    )
    rows = [row for row in shown.rows if row[0].startswith("kind ")][:10]
    assert [row[0] for row in rows] == [f"kind {i}" for i in np.argsort(f1, kind="stable")]
    for row in rows:
        i = int(row[0].removeprefix("kind "))
        numbers = [f"{x:.1%}" for x in (precision[i], recall[i], f1[i])]
        assert row[1:5] == [*numbers, str(support[i])]
    assert shown.charts["classes"]["series"][0]["y"] == pytest.approx(recall.tolist())
    assert np.trace(shown.charts["confusion-0"]["cells"]) == round(run.predicted.top1 * 200)


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_reliability_equals_a_loop_over_bins(bins):
    labels, probabilities = probabilities_of(np.random.default_rng(3), 300, 7)
    probabilities[0], probabilities[1] = np.eye(7)[0], np.full(7, 1 / 7)
    found = reliability(labels, probabilities, bins)
    confidence, guess = probabilities.max(1), probabilities.argmax(1)
    error = 0.0
    for b in range(bins):
        inside = (confidence > b / bins) & (confidence <= (b + 1) / bins)
        assert found.images[b] == inside.sum()
        if not inside.any():
            assert np.isnan(found.accuracy[b])
            continue
        accuracy, mean = (guess == labels)[inside].mean(), confidence[inside].mean()
        assert found.accuracy[b] == pytest.approx(accuracy)
        assert found.confidence[b] == pytest.approx(mean)
        error += abs(accuracy - mean) * inside.sum() / 300
    assert found.error == pytest.approx(error)


def test_names_are_never_markup():
    names = tuple(f"{HOSTILE} {i}" for i in range(4))
    run = run_of(HOSTILE, class_names=names, status=HOSTILE, workdir=HOSTILE)
    config = run.config | {HOSTILE: HOSTILE}
    runs = [run, run_of("other", seed=1, config=config, missing=HOSTILE, predicted=None)]
    shown = Page(make.make_page(runs))
    assert shown.tags.count("script") == 3
    assert not [a for a in shown.attributes if a[1].startswith("on")]
    sources = [value for tag, name, value in shown.attributes if name == "src"]
    assert all(source.startswith("data:image/") for source in sources)
    assert HOSTILE in shown.text
    assert shown.data["runs"][0] == HOSTILE
    assert shown.charts["classes"]["names"] == list(names)


def test_the_page_loads_nothing(single):
    _, shown = single
    links = [v for _, name, v in shown.attributes if name in ("href", "src")]
    assert links
    assert all(link.startswith(("#", "data:")) for link in links)
    policy = [v for tag, name, v in shown.attributes if tag == "meta" and name == "content"][0]
    assert policy.startswith("default-src 'none'")


def test_the_class_table_is_limited_and_the_page_says_so():
    shown = Page(make.make_page([run_of(classes=1000)]))
    assert sum(row[0].startswith("kind ") for row in shown.rows) >= 1000
    assert "with the lowest F1" not in shown.text
    assert "confusion-0" not in shown.charts
    shown = Page(make.make_page([run_of(classes=2100)]))
    assert "Only the 2,000 classes with the lowest F1 of 2,100 are shown" in shown.text


def test_long_curves_are_thinned_and_the_page_says_so():
    lines = [
        {"step": i, "split": "train", "loss": float("nan") if i == 1 else 1 / i}
        for i in range(1, 9001)
    ]
    run = run_of(metrics=lines, evaluations=[])
    shown = Page(make.make_page([run]))
    (line,) = shown.charts["loss"]["series"]
    assert line["y"][0] is None
    assert line["y"][1:] == [1 / i for i in range(4, 9001, 3)]
    assert "4,000 points" in shown.text


def test_each_section_says_what_is_missing():
    run = run_of(metrics=[], evaluations=[], predicted=None, explained=None, missing="no data here")
    shown = Page(make.make_page([run]))
    assert shown.text.count("Not available: no data here") == 7
    assert "has no lines yet" in shown.text
    assert shown.data["charts"] == []


def test_several_runs_are_compared():
    runs = [run_of("a", 0), run_of("b", 1)]
    shown = Page(make.make_page(runs))
    assert [s["run"] for s in shown.charts["grad_norm"]["series"]] == [0, 1]
    assert ["seed", "0", "1"] in shown.rows
    (row,) = [row for row in shown.rows if row[0] == "top-1, last"]
    last = [[x for x in run.evaluations if x["weights"] == "ema"][-1]["top1"] for run in runs]
    gap = 100 * (last[1] - last[0])
    assert row[1:] == [f"{last[0]:.2%}", f"{last[1]:.2%} {gap:+.2f} points"]


def test_markdown_has_the_tables_with_escaped_names():
    runs = [run_of("a|b", 0), run_of("b", 1, predicted=None, missing="no *data*")]
    text = tables.format_markdown(runs)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all("a|b" not in line for line in rows)
    assert "| seed | 0 | 1 |" in rows
    last = [x for x in runs[0].evaluations if x["weights"] == "ema"][-1]
    assert any(f"{last['top1']:.2%}" in line for line in rows)
    assert "no \\*data\\*" in text


def test_pngs_have_content(tmp_path):
    runs = [run_of("a/x", 0), run_of("b", 1, explained=None)]
    names = figures.plan_figures(runs, tmp_path)
    assert {path.name for path in names} >= {"curves.png", "gradcam_a_x.png", "confusion_b.png"}
    names |= figures.plan_figures(runs, tmp_path / "all.png")
    for path, draw in names.items():
        draw(path)
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("L"))
        assert pixels.std() > 10, path


def test_legends_cover_no_chart(monkeypatch, tmp_path):
    saved = []

    def save(figure, path, **options):
        figure.draw_without_rendering()  # places everything
        saved.append(figure)

    monkeypatch.setattr(Figure, "savefig", save)
    for runs in ([run_of()], [run_of("a", 0), run_of("b", 1)]):
        for path, draw in figures.plan_figures(runs, tmp_path).items():
            draw(path)
        figures.plan_figures(runs, tmp_path / "all.png")[tmp_path / "all.png"](tmp_path / "all.png")
    legends = 0
    for figure in saved:
        parts = [figure, *figure.subfigs]
        boxes = [axes.get_tightbbox() for axes in figure.axes if axes.axison]
        assert not any(axes.get_legend() for axes in figure.axes)
        for legend in (legend for part in parts for legend in part.legends):
            legends += 1
            assert not any(legend.get_window_extent().overlaps(box) for box in boxes)
    assert legends >= 6


def test_a_new_metric_is_in_tables_and_charts(monkeypatch, tmp_path):
    metric = Metric(
        "perplexity", "perplexity", lambda logits, labels: logits, ".3f", higher_is_better=False
    )
    monkeypatch.setitem(METRICS, "perplexity", metric)
    runs = [run_of("a", 0), run_of("b", 1)]
    for run in runs:
        for i, line in enumerate(run.evaluations):
            line["perplexity"] = 1.5 + i
    shown = Page(make.make_page(runs))
    assert [len(s["y"]) for s in shown.charts["perplexity"]["series"]] == [4] * 4
    assert shown.charts["perplexity"]["y_title"] == "perplexity"
    (head, *_) = [row for row in shown.rows if row[0] == "checkpoint"]
    column = head.index("perplexity")
    found = [row[column] for row in shown.rows if row[0] in ("last", "best by top-1")]
    assert found[:2] == ["7.500", "8.500"]  # EMA and raw weights at step 400
    assert ["perplexity, last", "7.500", "7.500 +0.000"] in shown.rows
    assert "| perplexity, last | 7.500 | 7.500 (+0.000) |" in tables.format_markdown(runs)


def test_values_of_configs_are_formatted():
    config = run_of().config | {"eval.flip": True, "tags": {"a": 1.0, "b": [1, 1, 2]}, "empty": ()}
    run = run_of(config=config, provenance={"git_dirty": False, "packages": {"jax": "0.10"}})
    rows = Page(make.make_page([run])).rows
    for row in (
        ["eval.flip", "true"], ["tags", "a: 1, b: 2 x 1, 2"], ["empty", "none"],
        ["git_dirty", "false"], ["packages.jax", "0.10"], ["optim.base_lr", "0.1"],
    ):  # fmt: skip
        assert row in rows


def test_charts_without_data_are_not_drawn(tmp_path):
    run = run_of(metrics=[], evaluations=[], predicted=None, explained=None, missing="none")
    assert charts.make_curves([run]) == []
    assert figures.plan_figures([run], tmp_path) == {}
