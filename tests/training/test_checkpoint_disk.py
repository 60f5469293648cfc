"""Saving on a full or read-only disk."""

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FASTER_COMPILATION, REPOSITORY

from imagenet_jax import train as loop
from imagenet_jax.errors import UserError
from imagenet_jax.runtime import workdir as workdirs
from imagenet_jax.runtime.integrity import find_problems
from imagenet_jax.runtime.lock import Lock
from imagenet_jax.training import checkpoint_errors
from imagenet_jax.training.checkpoint import Checkpoints, Position
from imagenet_jax.training.experiment import make_experiment
from imagenet_jax.training.load_weights import CheckpointReader
from imagenet_jax.training.state import TrainState

EVERY_2_STEPS = 2 * 48 / 1437

# A process that cannot write files above 100 kB saves states of 1 kB, 400 kB and 1 kB. orbax and
# tensorstore get this limit as the same kind of error as a full disk.
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
    position = Position(data={}, interval={})
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


def test_failed_save_keeps_the_previous_checkpoint_and_the_next_save_succeeds(limited):
    directory, lines = limited
    assert lines[0] == "1|[1]"
    assert lines[1].startswith("2|[1]|checkpoint 2 could not be saved: File too large")
    assert lines[2] == "3|[3]"
    assert [p.name for p in directory.iterdir()] == ["3"]  # the files of the others are removed
    assert find_problems(directory / "3") == []


@contextlib.contextmanager
def _failing_saves(monkeypatch, steps, error):
    """Let saves of these steps fail when orbax makes the directories of a checkpoint."""
    from orbax.checkpoint import AsyncCheckpointer

    real = AsyncCheckpointer.save

    def save(self, directory, *args, **kwargs):
        if int(str(directory).rpartition("/")[2]) in steps:
            raise error
        return real(self, directory, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(AsyncCheckpointer, "save", save)
        yield


def test_training_continues_after_failed_saves_but_the_last_save_must_succeed(
    quick, tmp_path, monkeypatch, capsys
):
    quick.checkpoint.every_epochs = EVERY_2_STEPS
    full = OSError(errno.ENOSPC, "No space left on device")
    with (
        _failing_saves(monkeypatch, {4, 6, 8}, full),
        pytest.raises(UserError, match="step 8 could not be saved.*checkpoint is of step 2; make"),
    ):
        loop.train(quick, tmp_path / "run")
    out = capsys.readouterr().out
    for step in (4, 6, 8):
        assert f"checkpoint {step} could not be saved: No space left on device" in out
    assert "finished" not in out
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", write=False)
    assert checkpoints.steps() == [2]
    checkpoints.restore(make_experiment(quick).abstract, 2)

    with _failing_saves(monkeypatch, {4, 6}, full):
        assert loop.train(quick, tmp_path / "run") == 0  # only the last save must succeed
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


def test_saves_on_a_disk_that_is_full_then_read_only_then_writable(small_disk, monkeypatch):
    """Real errors of a 3 MiB file system; the check of its free space is off."""
    monkeypatch.setattr(checkpoint_errors, "require_space", lambda directory, size: None)
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
    assert save(4) == ([1], ["Read-only file system"])
    assert find_problems(directory / "1") == []
    remount("rw")
    assert save(5) == ([5], [])
    checkpoints.close()
    read = CheckpointReader(directory).restore_weights(
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


def test_start_on_a_full_disk_raises_one_line_and_leaves_no_partial_file(small_disk):
    with contextlib.suppress(OSError):
        (small_disk / "other").write_bytes(b"x" * 4_000_000)
    with pytest.raises(UserError, match=f"--workdir={small_disk} cannot be written: No space"):
        workdirs.write_classes(small_disk, ("cat", "dog"))
    with pytest.raises(UserError, match="No space"), Lock(small_disk):
        pass
    assert [p.name for p in small_disk.iterdir()] == ["other"]


def test_require_space_compares_with_the_free_space(tmp_path):
    checkpoint_errors.require_space(tmp_path, 1000)
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(OSError, match="No space left on device, .* bytes free of") as e:
        checkpoint_errors.require_space(tmp_path, 2 * free)
    assert e.value.errno == errno.ENOSPC


def test_describe_returns_the_message_of_the_system():
    read_only = OSError(errno.EROFS, "Read-only file system", "/x")
    assert checkpoint_errors.describe(read_only) == "Read-only file system"
    long = 'RESOURCE_EXHAUSTED: Error writing "params.w/0" in\nOCDBT database: ' + "x" * 400
    assert (
        checkpoint_errors.describe(ValueError(f"{long}: No space left on device [28]"))
        == "No space left on device"
    )
    assert checkpoint_errors.describe(ValueError("something\nelse")) == "something else"


@pytest.mark.slow
def test_run_exits_1_on_a_full_disk_and_0_after_space_is_freed(small_disk, digits_path):
    command = [
        sys.executable, "-m", "imagenet_jax.main", "--config=tests/torture/config.py:15",
        f"--config.data.path={digits_path}", "--config.checkpoint.keep=9",
        f"--workdir={small_disk / 'run'}",
    ]  # fmt: skip

    def run():
        env = os.environ | {"XLA_FLAGS": FASTER_COMPILATION}
        return subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True)

    full = run()
    assert full.returncode == 1
    assert "step      14/15" in full.stdout
    for step in (9, 12, 15):
        assert f"checkpoint {step} could not be saved: No space left on device" in full.stdout
    (error,) = full.stderr.splitlines()
    assert error.startswith("error: step 15 could not be saved in ")
    subprocess.run(["mount", "-o", "remount,size=100m", small_disk], check=True)
    well = run()
    assert well.returncode == 0, well.stderr
    assert "continuing after step 6" in well.stdout
    lines = [json.loads(line) for line in (small_disk / "run" / "metrics.jsonl").open()]
    assert [x["step"] for x in lines if x["split"] == "train"] == [2, 4, 6, 8, 10, 12, 14, 15]
