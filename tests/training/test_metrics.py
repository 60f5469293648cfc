"""Ranks against a stable NumPy sort; interval averages; detection of what is not finite."""

import dataclasses
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagenet_jax.errors import UserError
from imagenet_jax.training.metric_window import Interval, MetricWindow, NonFiniteError
from imagenet_jax.training.metrics import METRICS, Metric, label_rank, score, shown_metrics


@settings(max_examples=60)
@given(  # few shapes, because each one is compiled
    shape=st.sampled_from([(1, 1), (6, 2), (4, 5), (5, 9)]), seed=st.integers(0, 10_000)
)
def test_rank_is_the_place_in_a_stable_sort(shape, seed):
    rows, classes = shape
    rng = np.random.default_rng(seed)
    logits = rng.integers(-2, 3, size=(rows, classes)).astype(np.float32)  # many ties
    labels = rng.integers(classes, size=rows)
    order = np.argsort(-logits, axis=1, kind="stable")
    want = [list(order[i]).index(labels[i]) for i in range(rows)]
    assert label_rank(jnp.array(logits), jnp.array(labels)).tolist() == want


def test_constant_logits_earn_only_the_first_class():
    ranks = label_rank(jnp.zeros((4, 4)), jnp.arange(4))
    assert ranks.tolist() == [0, 1, 2, 3]


def test_nan_logits_are_wrong():
    logits = jnp.array([[jnp.nan, 0.0, 1.0]] * 3)
    assert label_rank(logits, jnp.arange(3)).tolist() == [3, 3, 3]


def _metrics(value, lr=0.1):
    return {"loss": jnp.float32(value), "learning_rate": jnp.float32(lr)}


def test_window_averages_each_interval_and_leaves_the_rest():
    window = MetricWindow(every=3, end=100)
    for step in range(1, 8):
        window.append(step, _metrics(step, lr=step / 10), [])
    assert window.fetch(upto=2) == []
    (first,) = window.fetch(upto=5)
    assert first[0] == 3
    assert first[1]["loss"] == pytest.approx((1 + 2 + 3) / 3)
    assert first[1]["learning_rate"] == pytest.approx(0.3)
    (second,) = window.fetch(upto=7)
    assert second[0] == 6
    assert second[1]["loss"] == pytest.approx((4 + 5 + 6) / 3)
    assert window.partial() == {
        "count": 1,
        "sums": {"loss": 7.0, "learning_rate": pytest.approx(0.7)},
        "skipped": [],
        "skipped_before": 0,
    }


def test_window_completes_a_short_interval_at_the_end_and_counts_what_was_skipped():
    window = MetricWindow(every=2, end=5)
    for step in range(1, 6):
        window.append(step, _metrics(step), ["a", "b"] if step == 3 else ["c"] if step == 5 else [])
    first, second, last = window.fetch(upto=5)
    assert "skipped" not in first[1]
    assert second[1]["skipped"] == ["a", "b"]
    assert (last[0], last[1]["loss"], last[1]["skipped"]) == (5, 5.0, ["c"])
    assert window.skipped == 3
    assert MetricWindow(every=2, end=9, partial=Interval(**window.partial())).skipped == 3


def test_window_continues_from_a_saved_partial_interval():
    whole = MetricWindow(every=4, end=100)
    for step in range(1, 5):
        whole.append(step, _metrics(step / 3), [])
    before, after = MetricWindow(every=4, end=100), None
    for step in (1, 2):
        before.append(step, _metrics(step / 3), [])
    before.fetch(upto=2)
    after = MetricWindow(every=4, end=100, partial=Interval(**before.partial()))
    for step in (3, 4):
        after.append(step, _metrics(step / 3), [])
    assert after.fetch(upto=4) == whole.fetch(upto=4)  # the very same floats


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_window_names_the_step_and_learning_rate_of_a_loss_that_is_not_finite(bad):
    window = MetricWindow(every=10, end=100)
    window.append(41, _metrics(1.0), [])
    window.append(42, _metrics(bad, lr=0.25), [])
    with pytest.raises(NonFiniteError, match=r"loss is (nan|inf) at step 42, learning rate 0\.25"):
        window.fetch(upto=42)


def test_nan_is_wrong_in_top5_however_few_the_classes():
    from flax import nnx

    from imagenet_jax.config.fields import defaults
    from imagenet_jax.training.evaluate import eval_step

    class Broken(nnx.Module):
        def __call__(self, images, *, train):
            return jnp.full((images.shape[0], 2), jnp.nan)

    graph, _ = nnx.split(Broken())
    batch = {
        "image": jnp.zeros((3, 8, 8, 3), jnp.uint8),
        "label": jnp.zeros(3, jnp.int32),
        "mask": jnp.ones(3),
    }
    weights = {"params": nnx.State({}), "batch_stats": nnx.State({})}
    sums = eval_step(weights, batch, graph=graph, config=defaults())
    assert (sums["count"], sums["top1"], sums["top5"]) == (3, 0, 0)


def test_top5_of_five_classes_is_not_shown():
    assert [m.name for m in shown_metrics(5)] == ["top1", "loss"]
    assert [m.name for m in shown_metrics(6)] == ["top1", "top5", "loss"]


def test_best_metric_may_name_every_metric_that_ranks_checkpoints():
    from imagenet_jax.config import check
    from imagenet_jax.config.fields import defaults

    usable = [metric.name for metric in METRICS.values() if metric.ranks_checkpoints]
    config = defaults()
    for name in usable:
        config.checkpoint.best_metric = name
        check(config.copy_and_resolve_references())
    config.checkpoint.best_metric = "nonsense"
    with pytest.raises(UserError, match="best_metric") as e:
        check(config)
    assert " | ".join(usable) in str(e.value)


@pytest.fixture
def more_metrics(monkeypatch):
    """Two more entries: top-3, also in training, and the perplexity, lower is better."""
    top3 = Metric(
        "top3", "top-3", lambda logits, labels: label_rank(logits, labels) < 3, in_training=True
    )
    perplexity = dataclasses.replace(
        METRICS["loss"], name="perplexity", label="perplexity", format=".3f", finish=math.exp
    )
    for metric in (top3, perplexity):
        monkeypatch.setitem(METRICS, metric.name, metric)


def test_a_metric_is_one_entry(more_metrics, quick, tmp_path, capsys):
    from imagenet_jax import train as loop
    from imagenet_jax.classify.evaluate_weights import evaluate_workdir

    quick.epochs = 6 * 48 / 1437
    quick.log.every_steps = 6
    loop.train(quick, tmp_path)
    out = capsys.readouterr().out
    train, *evaluations = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert train["top1"] <= train["top3"] <= 1
    assert f"top-3  {train['top3']:.2%}" in out
    for line in evaluations:
        assert line["top1"] <= line["top3"] <= line["top5"]
        assert line["perplexity"] == pytest.approx(math.exp(line["loss"]))
        assert f"perplexity {line['perplexity']:7.3f}" in out
    (result,) = evaluate_workdir(tmp_path, "latest")
    assert result["top3"] == pytest.approx(evaluations[0]["top3"])
    assert result["perplexity"] == pytest.approx(evaluations[0]["perplexity"], rel=1e-5)
    assert score(result, "perplexity") == -result["perplexity"]
    assert score(result, "top3") == result["top3"]
