"""The training loop without a network, so that a run takes a moment."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagenet_jax import train
from imagenet_jax.logs import recorder
from imagenet_jax.training import experiment, run_context
from imagenet_jax.training.sharding import make_mesh, replicated
from imagenet_jax.training.state import TrainState


def _state(*_):
    """Return a state with one weight, on one device."""
    state = TrainState(
        step=jnp.int32(0),
        params={"w": jnp.ones(2)},
        batch_stats={},
        opt_state={"m": jnp.zeros(2)},
        ema={"params": {"w": jnp.ones(2)}, "batch_stats": {}},
    )
    return jax.device_put(state, replicated(make_mesh(devices=jax.devices()[:1])))


def _abstract(*_):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _state()
    )


class LightLoop:
    """Fakes of the loop's parts, and a record of what the loop did.

    Attributes:
      steps: the steps that ran.
      epochs, records: for each step, the epoch and the index of each row's record.
      result: function of the step that returns the result of an evaluation.
      evaluated: the steps of completed evaluations.
      on_batch: called with the state's step before each batch of an evaluation, of which there are
        three.
      on_input: called with the number of each step before its batch is made.
      on_step: called with the number of each step before it runs.
    """

    def __init__(self):
        self.steps, self.epochs, self.records, self.evaluated = [], [], [], []
        self.result = lambda step: {"count": 360, "top1": 0.5, "top5": 0.9, "loss": 1.0}
        self.on_batch = self.on_step = self.on_input = lambda step: None

    def train_batches(self, source, sampler, config, *, start_step, total_steps, **_):
        for k in range(start_step, total_steps):
            self.on_input(k + 1)
            epochs, indices, _ = sampler.rows(k, range(sampler.batch_size))
            yield {
                "image": np.zeros((len(indices), 1), np.uint8),
                "label": indices,
                "epoch": epochs,
            }

    def compile_train_step(self, parts, abstract, mesh):
        def step(state, batch):
            done = int(state.step)
            self.on_step(done + 1)
            self.steps.append(done + 1)
            self.records.append(np.asarray(batch["label"]))
            self.epochs.append(np.asarray(batch["epoch"]))
            values = {"loss": 1 / (done + 1), "top1": 0.5, "grad_norm": 1.0, "param_norm": 1.0}
            values["learning_rate"] = parts.schedule(done)
            metrics = {name: jnp.float32(value) for name, value in values.items()}
            return state.replace(step=state.step + 1), metrics

        return step

    def evaluator(self, evaluation):
        def evaluate(state, watched):
            step = int(state.step)
            for _ in watched(iter(range(3))):
                self.on_batch(step)
            self.evaluated.append(step)
            return [{"weights": kind} | self.result(step) for kind in ("ema", "raw")]

        return evaluate


@pytest.fixture
def light(monkeypatch):
    run = LightLoop()
    monkeypatch.setattr(experiment, "make_mesh", lambda fsdp: make_mesh(devices=jax.devices()[:1]))
    monkeypatch.setattr(experiment, "abstract_state", _abstract)
    monkeypatch.setattr(experiment, "model_graph", lambda config: None)
    monkeypatch.setattr(experiment, "inference_graph", lambda config: None)
    monkeypatch.setattr(run_context, "create_state", _state)
    monkeypatch.setattr(recorder, "count_parameters", lambda params: 2)
    monkeypatch.setattr(train.pipeline, "train_batches", run.train_batches)
    monkeypatch.setattr(train, "compile_train_step", run.compile_train_step)
    monkeypatch.setattr(train, "Evaluator", run.evaluator)
    monkeypatch.setattr(train, "count_flops", lambda *_: 1e6)
    return run


@pytest.fixture
def history():
    """history(workdir): the lines of metrics.jsonl without the measured values."""
    from imagenet_jax.logs.throughput import MEASURED

    def read(workdir):
        lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in line.items() if k not in MEASURED} for line in lines]

    return read
