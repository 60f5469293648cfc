"""Runs whose batch size changed during training: reports and publishing."""

import json
from fractions import Fraction
from types import SimpleNamespace

import pytest
from report_runs import run_of

from imagenet_jax.baselines import publishing
from imagenet_jax.errors import UserError
from imagenet_jax.report import charts, read

# 1,000 records, 3 epochs: 10 steps of 50 records, then steps of 100.
LINES = [{"step": s, "split": "train", "epoch": s / 20, "loss": 1.0} for s in (5, 10)]
LINES += [{"step": s, "split": "train", "epoch": s / 10 - 0.5, "loss": 1.0} for s in (15, 20)]
RUN = SimpleNamespace(
    steps_per_epoch=Fraction(10),
    total_steps=30,
    config=SimpleNamespace(batch_size=100),
    epoch_at=lambda step: step / 10,
)


def test_publishing_is_refused(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    with pytest.raises(UserError, match=r"during training: step 5 is at epoch 0\.25, not 0"):
        publishing._require_one_batch_size(tmp_path, RUN)
    path.write_text(json.dumps({"step": 5, "split": "train", "epoch": 0.5}) + "\n")
    publishing._require_one_batch_size(tmp_path, RUN)


def test_the_last_step_follows_from_the_records_left():
    assert read.find_last_step(LINES[-1], 3.0, RUN) == 10 + (3000 - 500) // 100
    assert read.find_last_step({"step": 20, "epoch": 2.0}, 3.0, RUN) == 30


def test_curves_are_drawn_at_the_logged_epochs():
    evaluation = {"step": 18, "split": "validation", "weights": "raw", "loss": 1.0}
    run = run_of(metrics=LINES, evaluations=[evaluation], steps_per_epoch=10.0)
    (loss,) = (chart for chart in charts.make_curves([run]) if chart.key == "loss")
    assert [line.x for line in loss.series] == [[0.25, 0.5, 1.0, 1.5], [pytest.approx(1.3)]]
