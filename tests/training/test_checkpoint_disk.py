"""A disk that is full, or no longer writable, while a run saves."""

import contextlib
import errno
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import REPOSITORY

from imagenet_jax.errors import UserError
from imagenet_jax.training import loop
from imagenet_jax.training.checkpoint import Checkpoints, Position
from imagenet_jax.training.experiment import experiment_of
from imagenet_jax.training.integrity import problems
from imagenet_jax.training.state import TrainState

EVERY_2_STEPS = 2 * 48 / 1437

# A process that may write no file above 100 kB saves a state of 1 kB, one of 400 kB, and one of
# 1 kB. Its limit stands for the full disk, of which orbax and tensorstore hear in the same way.
_LIMITED = """
import resource, signal, sys
from pathlib import Path
import jax, jax.numpy as jnp
from imagenet_jax.training.checkpoint import Checkpoints, Position
from imagenet_jax.training.state import TrainState

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
checkpoints = Checkpoints(Path(sys.argv[1]), keep=1)
for step, size in ((1, 250), (2, 100_000), (3, 250)):
    params = {"w": jax.random.normal(jax.random.key(step), (size,))}
    state = TrainState(jnp.int32(step), params, {}, {"m": jnp.ones(4)}, None)
    position = Position(data={"next_index": step}, interval={})
    checkpoints.save(state, position, config={}, provenance={}, metrics=None)
    checkpoints.wait()
    print(step, checkpoints.steps(), *checkpoints.failures(), sep="|", flush=True)
checkpoints.close()
"""


@pytest.fixture(scope="module")
def limited(tmp_path_factory):
    directory = tmp_path_factory.mktemp("limited") / "checkpoints"
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, directory],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return directory, done.stdout.splitlines()


def test_a_save_that_fails_leaves_the_one_before_and_the_next_one_succeeds(limited):
    directory, lines = limited
    assert lines[0] == "1|[1]"
    assert lines[1].startswith("2|[1]|checkpoint 2 could not be saved: File too large")
    assert lines[2] == "3|[3]"
    assert [p.name for p in directory.iterdir()] == ["3"]  # the space of the others is free
    assert problems(directory / "3") == []


@contextlib.contextmanager
def _failing_saves(monkeypatch, steps, error):
    """Saves of these steps fail where orbax makes the folders of a checkpoint."""
    from orbax.checkpoint import AsyncCheckpointer

    real = AsyncCheckpointer.save

    def save(self, directory, *args, **kwargs):
        if int(str(directory).rpartition("/")[2]) in steps:
            raise error
        return real(self, directory, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(AsyncCheckpointer, "save", save)
        yield


def test_training_goes_on_each_failure_is_told_and_the_end_counts(
    tiny, tmp_path, monkeypatch, capsys
):
    tiny.checkpoint.every_epochs = EVERY_2_STEPS
    full = OSError(errno.ENOSPC, "No space left on device")
    with (
        _failing_saves(monkeypatch, {4, 6, 8}, full),
        pytest.raises(UserError, match="step 8 could not be saved.*checkpoint is of step 2; make"),
    ):
        loop.train(tiny, tmp_path / "run")
    out = capsys.readouterr().out
    for step in (4, 6, 8):
        assert f"checkpoint {step} could not be saved: No space left on device" in out
    assert "finished" not in out
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", write=False)
    assert checkpoints.steps() == [2]
    checkpoints.restore(experiment_of(tiny).abstract, 2)

    with _failing_saves(monkeypatch, {4, 6}, full):
        assert loop.train(tiny, tmp_path / "run") == 0  # what counts is the end
    assert checkpoints.steps() == [2, 8]
    steps = [json.loads(x)["step"] for x in (tmp_path / "run" / "metrics.jsonl").open()]
    assert steps == [2, 4, 6, 8, 8, 8]


@pytest.fixture
def small_disk(tmp_path):
    path = tmp_path / "disk"
    path.mkdir()
    options = ["-t", "tmpfs", "-o", "size=3m", "tmpfs", str(path)]
    if subprocess.run(["mount", *options], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def test_a_disk_that_is_full_then_read_only_then_well_again(small_disk):
    """The real errors, of a file system of 3 MiB."""
    directory = small_disk / "checkpoints"
    checkpoints = Checkpoints(directory, keep=1)

    def save(step, size=1000):
        params = {"w": jax.random.normal(jax.random.key(step), (size,))}
        state = TrainState(jnp.int32(step), params, {}, {"m": jnp.ones(4)}, None)
        checkpoints.save(
            state, Position(data={}, interval={}), config={}, provenance={}, metrics=None
        )
        checkpoints.wait()
        return checkpoints.steps(), [f.rpartition(": ")[2] for f in checkpoints.failures()]

    def remount(how):
        subprocess.run(["mount", "-o", f"remount,{how}", small_disk], check=True)

    assert save(1) == ([1], [])
    assert save(2, 1_000_000) == ([1], ["No space left on device"])
    with contextlib.suppress(OSError):
        (small_disk / "other").write_bytes(b"x" * 4_000_000)
    assert save(3) == ([1], ["No space left on device"])
    (small_disk / "other").unlink()
    remount("ro")
    (steps, (reason,)) = save(4)
    assert steps == [1]
    assert "Read-only file system" in reason
    assert problems(directory / "1") == []
    remount("rw")
    assert save(5) == ([5], [])
    checkpoints.close()
    read = Checkpoints(directory, write=False).restore_weights(
        TrainState(
            None,
            {"w": jax.ShapeDtypeStruct((1000,), jnp.float32, sharding=jnp.ones(1).sharding)},
            {},
            None,
            None,
        ),
        5,
    )
    np.testing.assert_array_equal(read.params["w"], jax.random.normal(jax.random.key(5), (1000,)))
