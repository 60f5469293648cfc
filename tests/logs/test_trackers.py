"""W&B and MLflow, offline: what their own readers find after a run, and after it was killed."""

import json
import struct
import threading
import time

import numpy as np
import pytest
from conftest import tiny_config

from imagenet_jax.errors import UserError
from imagenet_jax.logs import trackers
from imagenet_jax.logs.trackers import (
    BackgroundWriter,
    MlflowWriter,
    TrackedRun,
    WandbWriter,
    require_package,
)
from imagenet_jax.logs.writers import Writer

EVAL = {"weights": "ema", "count": 360, "top1": 0.75, "top5": 0.9, "loss": 1.5, "skipped": ["a"]}


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Neither service asks the network for anything."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("DO_NOT_TRACK", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)  # MLflow's files of images


def _send(writer, steps):
    for step in steps:
        values = {"loss": 1 / step, "top1": 0.5}
        writer.write(step, "train", values | {"skipped": ["b"]} if step == 20 else values)
    writer.write(steps[-1], "validation", EVAL)
    writer.images(1, "inputs", np.full((4, 6, 3), 7, np.uint8))
    writer.histograms(4, {"weights/head": (np.array([1, 3]), np.array([0.0, 0.5, 1.0]))})


def _records(path):
    """The data of each record of a file of W&B: LevelDB's log format after a header of 7 bytes.

    https://github.com/google/leveldb/blob/main/doc/log_format.md
    """
    content, at, parts = path.read_bytes(), 7, b""
    assert content[:4] == b":W&B"
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:  # too little of the block is left for a header
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def _wandb_rows(workdir, runs=1):
    """Every row of history in the files that `wandb sync` would send, by W&B's own messages.

    W&B's other process may still be writing: until the end of so many runs is there.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    for _ in range(200):
        records = [
            Record.FromString(data)
            for path in sorted(workdir.glob("wandb/offline-run-*/*.wandb"))
            for data in _records(path)
        ]
        if sum(record.HasField("exit") for record in records) == runs:
            break
        time.sleep(0.1)
    return [
        {"/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]


def test_wandb_continues_its_run_and_doubles_nothing(offline, tmp_path):
    first = WandbWriter("project", tmp_path, {"optim": {"base_lr": 0.1}})
    _send(first, [10, 20, 30])
    first.close()  # as a kill: it did not end as it should
    run = json.loads((tmp_path / "wandb.json").read_text())["run"]
    again = WandbWriter("project", tmp_path, {"optim": {"base_lr": 0.1}})
    _send(again, [20, 30, 40])  # back at the checkpoint of step 10
    again.end("finished")
    again.close()
    assert json.loads((tmp_path / "wandb.json").read_text())["run"] == run
    folders = [path.name for path in tmp_path.glob("wandb/offline-run-*")]
    assert len(folders) == 2
    # Of two runs that start within a second, the second name ends with a number.
    assert all(f"-{run}" in name for name in folders)
    rows = _wandb_rows(tmp_path, runs=2)
    losses = [(r["step"], r["train/loss"]) for r in rows if "train/loss" in r]
    assert losses == [(step, pytest.approx(1 / step)) for step in (10, 20, 30, 40)]
    evaluated = [(r["step"], r["validation/ema/top1"]) for r in rows if "validation/ema/top1" in r]
    assert evaluated == [(30, 0.75), (40, 0.75)]
    (image,) = [r for r in rows if "inputs/_type" in r]
    assert (image["step"], image["inputs/width"]) == (1, 6)
    (histogram,) = [r for r in rows if "weights/head/_type" in r]
    assert histogram["weights/head/values"] == [1, 3]


def test_mlflow_continues_its_run_and_doubles_nothing(offline, tmp_path):
    from mlflow import MlflowClient

    config = {f"field{i}": i for i in range(120)}  # more than it takes at once
    workdir = tmp_path / "run7"
    workdir.mkdir()
    first = MlflowWriter("experiment", workdir, config)
    _send(first, [10, 20, 30])
    first.close()
    client = MlflowClient()
    (found,) = client.search_runs([client.get_experiment_by_name("experiment").experiment_id])
    assert found.info.status == "FAILED"
    again = MlflowWriter("experiment", workdir, config)
    assert client.get_run(found.info.run_id).info.status == "RUNNING"
    _send(again, [20, 30, 40])
    again.end("finished")
    again.close()
    (run,) = client.search_runs([found.info.experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "run7")
    assert run.data.params == {name: str(value) for name, value in config.items()}
    history = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "train/loss")]
    assert history == [(step, pytest.approx(1 / step)) for step in (10, 20, 30, 40)]
    evaluated = client.get_metric_history(run.info.run_id, "validation/ema/top1")
    assert [(m.step, m.value) for m in evaluated] == [(30, 0.75), (40, 0.75)]
    images = [f.path for f in client.list_artifacts(run.info.run_id, "images")]
    assert len([path for path in images if path.endswith(".png")]) == 1


def test_another_project_is_another_run(tmp_path):
    run = TrackedRun(tmp_path / "w.json", "a")
    run.begin("1")
    run.sent("train", 30)
    assert not TrackedRun(tmp_path / "w.json", "a").is_new("train", 30)
    assert TrackedRun(tmp_path / "w.json", "a").is_new("train", 31)
    assert TrackedRun(tmp_path / "w.json", "a").is_new("validation", 30)
    other = TrackedRun(tmp_path / "w.json", "b")
    assert other.id is None
    assert other.is_new("train", 30)


def test_a_torn_record_begins_a_new_run(tmp_path):
    (tmp_path / "w.json").write_text('{"project": "a", "ru')
    assert TrackedRun(tmp_path / "w.json", "a").id is None


class _Service(Writer):
    """Fails as told; remembers what it takes."""

    def __init__(self, fails=(), hold=None):
        self.taken, self.closed, self._fails, self._hold = [], False, fails, hold

    def write(self, step, split, values):
        if self._hold:
            self._hold.wait()
        if step in self._fails:
            raise ConnectionError("no route\nto host")
        self.taken.append(step)

    def close(self):
        self.closed = True


def test_a_service_that_fails_does_not_stop_training():
    service, lines = _Service(fails=(2, 3)), []
    writer = BackgroundWriter("S", lambda: service, lines.append)
    for step in (1, 2, 3, 4):
        writer.write(step, "train", {})
    writer.close()
    assert service.taken == [1, 4]
    assert service.closed
    (line,) = lines  # told once, in one line
    assert "S rejects" in line
    assert "no route to host" in line


def test_a_service_that_cannot_be_opened_is_left_out():
    def refuse():
        raise RuntimeError("no such server")

    lines = []
    writer = BackgroundWriter("S", refuse, lines.append)
    writer.write(1, "train", {})
    writer.close()
    (line,) = lines
    assert "no such server" in line
    assert "training continues without it" in line


def test_a_service_that_hangs_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(trackers, "_PATIENCE", 0.1)
    monkeypatch.setattr(trackers, "_WAITING", 3)
    hold, lines = threading.Event(), []
    service = _Service(hold=hold)
    writer = BackgroundWriter("S", lambda: service, lines.append)
    for step in range(100):  # returns at once
        writer.write(step, "train", {})
    writer.close()
    hold.set()
    assert any("some points are dropped" in line for line in lines)
    assert any("did not receive everything" in line for line in lines)
    assert len(service.taken) < 10


def test_a_missing_package_is_one_line_with_the_way_out():
    with pytest.raises(UserError, match=r"config\.log\.wandb.*pip install -e '\.\[nosuch\]'"):
        require_package("log.wandb", "nosuch")


def test_a_login_is_asked_for_before_anything_is_written(
    offline, monkeypatch, tmp_path, digits_path
):
    from imagenet_jax import train as loop

    config = tiny_config(digits_path)
    config.log.wandb = "project"
    monkeypatch.setattr(trackers, "_read_wandb_login", lambda: ("online", None))
    with pytest.raises(UserError, match="wandb login.*WANDB_MODE=offline"):
        loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.full
def test_a_run_writes_to_both(offline, tmp_path, digits_path):
    from mlflow import MlflowClient

    from imagenet_jax import train as loop

    config = tiny_config(digits_path)
    config.log.wandb, config.log.mlflow, config.log.images = "project", "experiment", 4
    workdir = tmp_path / "run"
    assert loop.train(config, workdir) == 0
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    expected = [(x["step"], x["loss"]) for x in lines if x["split"] == "train"]
    rows = _wandb_rows(workdir)
    assert [(r["step"], r["train/loss"]) for r in rows if "train/loss" in r] == expected
    assert [r["step"] for r in rows if "mistakes/_type" in r] == [8]
    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("experiment").experiment_id])
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(m.step, m.value) for m in history] == expected
    assert run.data.params["optim.base_lr"] == "0.05"
    assert run.info.status == "FINISHED"
