"""Worker processes of the pipeline: a stop signal to the job spares them; they end with it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY

from imagenet_jax.data import workers
from imagenet_jax.errors import UserError

# The parent ignores the signals, as training does until it has saved.
_SCRIPT = """
import multiprocessing, pathlib, signal, sys
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: None)
from imagenet_jax.data import builtin, pipeline, sources
from imagenet_jax.config.fields import defaults
path = pathlib.Path(sys.argv[1])
builtin.write_digits(path)
config = defaults("resnet18")
config.data.source, config.data.path, config.data.workers = "digits", str(path), 2
config.augment.image_size = 16
source = sources.open_source(config.data, "train")
sampler = pipeline.make_sampler(source, config.data, seed=0, batch_size=4)
batches = pipeline.train_batches(source, sampler, config, total_steps=10_000)
next(batches)
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
sys.stdin.readline()
print(sum(len(next(batches)["label"]) for _ in range(200)), flush=True)  # a few wait by now
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
sys.stdin.readline()
"""


def _blocked(pid):
    """The signals that a process has blocked, from proc(5)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (mask,) = (int(line.split()[1], 16) for line in lines if line.startswith("SigBlk"))
    return {number for number in range(1, 32) if mask >> (number - 1) & 1}


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_workers_outlast_stop_signals_and_end_with_their_parent(tmp_path):
    parent = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, tmp_path / "digits" / "1.0.0"],
        cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        processes = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(processes) == 2
        for worker in processes:  # inherited, so from the first moment on
            assert {signal.SIGTERM, signal.SIGINT} <= _blocked(worker)
        os.killpg(parent.pid, signal.SIGTERM)
        os.killpg(parent.pid, signal.SIGINT)
        parent.stdin.write("\n")
        parent.stdin.flush()
        assert int(parent.stdout.readline()) == 800
        assert [int(pid) for pid in parent.stdout.readline().split()] == processes
        assert all(map(_runs, processes))
        parent.kill()
        end = time.monotonic() + 30
        while any(map(_runs, processes)):
            assert time.monotonic() < end, "a worker outlives its parent"
            time.sleep(0.05)
    finally:
        parent.kill()
        parent.wait()


def test_a_worker_that_was_killed_is_one_line():
    def batches():
        yield {"label": [1]}
        raise RuntimeError(  # grain's words
            "Worker process was terminated unexpectedly with exit code -9. Search the logs above"
        )

    rows = workers._yield_from_workers(batches())
    assert next(rows) == {"label": [1]}
    with pytest.raises(UserError, match=r"memory.*exit code -9.*[Ff]ewer workers"):
        next(rows)

    def defect():
        yield {"label": [1]}
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        list(workers._yield_from_workers(defect()))
