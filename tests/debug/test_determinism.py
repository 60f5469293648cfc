"""config.debug.determinism detects runs that are not repeatable."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagenet_jax import train as loop
from imagenet_jax.errors import UserError


@pytest.fixture
def checked(quick):
    quick.debug.determinism = 3
    return quick


def test_changing_source_is_reported_with_its_batch(checked, tmp_path, monkeypatch):
    """One pixel changes by one level in the third batch of the second pass."""
    real, readings = loop.prefetch_to_device, []

    def place(batches, mesh):
        readings.append(0)
        second = len(readings) == 2
        for i, batch in enumerate(real(batches, mesh)):
            if second and i == 2:
                image = np.array(batch["image"])
                image[17, 3, 5, 1] ^= 1
                batch["image"] = jax.device_put(image, batch["image"].sharding)
            yield batch

    monkeypatch.setattr(loop, "prefetch_to_device", place)
    with pytest.raises(UserError, match="batch 3 is not repeatable: image has different bits"):
        loop.train(checked, tmp_path)
    assert not (tmp_path / "metrics.jsonl").read_text()


def test_changing_step_is_reported_with_the_array(checked, tmp_path, monkeypatch):
    """Two parameters change by one bit each in the second step of the second run; +0 is not -0."""
    real, calls = loop.compile_train_step, []

    def compile_step(*args):
        step = real(*args)

        def noisy(state, batch):
            calls.append(0)
            state, metrics = step(state, batch)
            if len(calls) == 4:
                fc = dict(state.params["fc2"])
                fc["bias"] = jnp.nextafter(fc["bias"], 9.0)
                fc["kernel"] = fc["kernel"].at[0, 0].multiply(-1)
                state = state.replace(params=state.params | {"fc2": fc})
            return state, metrics

        noisy.lower = step.lower
        return noisy

    monkeypatch.setattr(loop, "compile_train_step", compile_step)
    with pytest.raises(UserError) as caught:
        loop.train(checked, tmp_path)
    message = str(caught.value)
    assert "step 2 is not repeatable: params.fc2.bias and 1 other arrays have" in message
    assert "XLA_FLAGS=--xla_gpu_deterministic_ops=true" in message
    assert len(message.splitlines()) == 1


@pytest.mark.full
def test_steps_after_a_restart_are_checked(checked, tmp_path, capsys):
    assert loop.train(checked, tmp_path, stop_after=6) == 0
    assert "repeatable: steps 1 to 3 ran twice" in capsys.readouterr().out
    assert loop.train(checked, tmp_path) == 0
    assert "repeatable: steps 7 to 8 ran twice" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "train"] == [2, 4, 6, 8]
