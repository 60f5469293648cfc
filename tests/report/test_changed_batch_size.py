"""A run whose batch size changed in mid-run, in reports and where it is to be published."""

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


def test_it_is_not_published(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    with pytest.raises(UserError, match=r"batch size in mid-run: step 5 is at epoch 0\.25, not 0"):
        publishing._require_one_batch_size(tmp_path, RUN)
    path.write_text(json.dumps({"step": 5, "split": "train", "epoch": 0.5}) + "\n")
    publishing._require_one_batch_size(tmp_path, RUN)


def test_its_length_follows_the_records():
    assert read.total_steps(LINES[-1], 3.0, RUN) == 10 + (3000 - 500) // 100
    assert read.total_steps({"step": 20, "epoch": 2.0}, 3.0, RUN) == 30


def test_its_curves_are_where_its_records_are():
    evaluation = {"step": 18, "split": "validation", "weights": "raw", "loss": 1.0}
    run = run_of(metrics=LINES, evaluations=[evaluation], steps_per_epoch=10.0)
    loss = charts.curves([run])[0]
    assert [line.x for line in loss.series] == [[0.25, 0.5, 1.0, 1.5], [pytest.approx(1.3)]]
