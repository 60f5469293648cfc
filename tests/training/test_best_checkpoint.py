"""Kept and best checkpoints, with orbax's own manager."""

import json
import math

import jax.numpy as jnp
import pytest

from imagenet_jax.errors import UserError
from imagenet_jax.training.checkpoint import Checkpoints, Position
from imagenet_jax.training.metrics import score
from imagenet_jax.training.state import TrainState

NAN, INF = math.nan, math.inf


def save_all(directory, metric, values):
    checkpoints = Checkpoints(directory, keep=1, metric=metric)
    for step, value in enumerate(values, 1):
        state = TrainState(jnp.int32(step), {"w": jnp.ones(4)}, {}, {"m": jnp.ones(4)}, None)
        position = Position(data={"next_record": step}, interval={})
        metrics = {"top1": 0.5, "top5": 0.5, "loss": 1.0} | {metric: value}
        checkpoints.save(state, position, config={}, provenance={}, metrics=metrics)
    checkpoints.wait()
    checkpoints.close()


@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [
        ("loss", (2.0, 1.0, NAN, 1.5, 1.6), 2),
        ("loss", (2.0, -INF, INF, 1.5, 1.6), 4),
        ("top1", (0.1, 0.7, NAN, 0.6, 0.5), 2),
        ("top5", (NAN, 0.7, 0.8, NAN), 3),
    ],
)
def test_nonfinite_values_rank_last(tmp_path, metric, values, best):
    save_all(tmp_path / "checkpoints", metric, values)
    for write in (True, False):  # as training continues, and as evaluation reads
        checkpoints = Checkpoints(tmp_path / "checkpoints", metric=metric, write=write)
        assert checkpoints.steps() == sorted({best, len(values)})
        assert checkpoints.find("best") == best
        checkpoints.close()


def test_no_checkpoint_is_best_without_a_finite_value(tmp_path):
    save_all(tmp_path / "checkpoints", "loss", (INF, NAN))
    checkpoints = Checkpoints(tmp_path / "checkpoints", metric="loss", write=False)
    with pytest.raises(UserError, match="finite loss.*--checkpoint=latest"):
        checkpoints.find("best")
    assert checkpoints.find("latest") == 2
    file = tmp_path / "checkpoints" / "2" / "metrics" / "metrics"

    def refuse(literal):
        raise ValueError(literal)

    assert json.loads(file.read_text(), parse_constant=refuse)["loss"] is None


def test_score_orders_all_numbers():
    values = [NAN, 3.0, INF, 1.0, 2.0, -INF, None]
    order = sorted(range(7), key=lambda i: score({"loss": values[i]}, "loss"))
    assert order[-3:] == [1, 4, 3]
    order = sorted(range(7), key=lambda i: score({"top1": values[i]}, "top1"))
    assert order[-3:] == [3, 4, 1]
