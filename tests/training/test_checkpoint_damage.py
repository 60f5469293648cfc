"""Checkpoints with truncated, missing or corrupted files, or with other arrays than the code."""

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config

from imagenet_jax import train as loop
from imagenet_jax.errors import UserError
from imagenet_jax.logs.throughput import MEASURED
from imagenet_jax.runtime.integrity import find_problems, set_aside_damaged
from imagenet_jax.training import checkpoint_errors
from imagenet_jax.training.checkpoint import Checkpoints, Position
from imagenet_jax.training.experiment import make_experiment
from imagenet_jax.training.load_weights import CheckpointReader


@pytest.fixture(scope="module")
def trained(tmp_path_factory, digits_path):
    """A finished run of 8 steps with checkpoints 4 and 8, and its config."""
    config = tiny_config(digits_path, "small_cnn")
    config.checkpoint.every_epochs = 4 * 48 / 1437
    workdir = tmp_path_factory.mktemp("damage") / "run"
    assert loop.train(config, workdir) == 0
    return config, workdir


@pytest.fixture
def run(trained, tmp_path):
    import shutil

    config, workdir = trained
    shutil.copytree(workdir, tmp_path / "run")
    return config, tmp_path / "run"


def _largest(directory):
    return max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def _truncate(directory):
    path = _largest(directory / "weights")
    path.write_bytes(path.read_bytes()[:-7])
    return path


def _remove(directory):
    path = _largest(directory / "optimizer")
    path.unlink()
    return path


def _flip(directory):
    path = _largest(directory / "weights")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)
    return path


def _flip_metrics(directory):
    path = directory / "metrics" / "metrics"
    path.write_text("x" + path.read_text()[1:])
    return path


def _flip_position(directory):
    path = directory / "position" / "metadata"
    path.write_text(path.read_text().replace("8", "7", 1))
    return path


def _history(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in MEASURED} for line in lines]


def _state(config, workdir):
    checkpoints = Checkpoints(workdir / "checkpoints", write=False)
    return jax.device_get(checkpoints.restore(make_experiment(config).abstract, 8)[0])


def test_checksums_cover_every_file_written_before_the_commit(trained):
    _, workdir = trained
    for step in (4, 8):
        directory = workdir / "checkpoints" / str(step)
        record = json.loads((directory / "checksums.json").read_text())
        files = {p for p in directory.rglob("*") if p.is_file()}
        left_out = {p.name for p in files if str(p.relative_to(directory)) not in record}
        assert left_out <= {"checksums.json", "commit_success.txt", "_CHECKPOINT_METADATA"}
        for name, entry in record.items():
            data = (directory / name).read_bytes()
            assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        assert find_problems(directory) == []


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_truncate, "bytes instead of"),
        (_remove, "is missing"),
        (_flip, "sha256 differs"),
        (_flip_metrics, "sha256 differs"),
        (_flip_position, "sha256 differs"),
    ],
)
def test_damaged_checkpoint_is_reported_and_set_aside(run, damage, says):
    _, workdir = run
    path = damage(workdir / "checkpoints" / "8")
    (note,) = set_aside_damaged(workdir)
    assert note.startswith(f"damaged: {path} ")
    assert says in note
    assert (workdir / "damaged" / "8" / "checksums.json").is_file()
    assert [p.name for p in (workdir / "checkpoints").iterdir()] == ["4"]
    assert set_aside_damaged(workdir) == []


def test_training_continues_exactly_from_the_previous_checkpoint(trained, run, capsys):
    config, workdir = run
    path = _truncate(workdir / "checkpoints" / "8")
    assert loop.train(config, workdir) == 0
    out = capsys.readouterr().out
    assert f"damaged: {path} has " in out
    assert "continuing after step 4" in out
    for a, b in zip(
        jax.tree.leaves(_state(config, workdir)),
        jax.tree.leaves(_state(config, trained[1])),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    assert _history(workdir) == _history(trained[1])


def test_strict_restore_raises_and_changes_nothing(run):
    config, workdir = run
    path = _flip(workdir / "checkpoints" / "8")
    with pytest.raises(UserError, match="sha256 differs.*--strict_restore") as e:
        loop.train(config, workdir, strict_restore=True)
    assert str(path) in str(e.value)
    assert (workdir / "checkpoints" / "8").is_dir()
    assert not (workdir / "damaged").exists()


def test_run_without_an_intact_checkpoint_does_not_start_over(run):
    config, workdir = run
    _flip(workdir / "checkpoints" / "8")
    _remove(workdir / "checkpoints" / "4")
    for _ in range(2):  # the first attempt leaves everything where it is
        with pytest.raises(UserError, match="no checkpoint of .* is intact .*another --workdir"):
            loop.train(config, workdir)


def test_unreadable_checksums_count_as_damage(run):
    _, workdir = run
    directory = workdir / "checkpoints" / "8"
    for text in ("{", "[]", '{"weights/d": {}}', '{"weights/d": 3}'):
        (directory / "checksums.json").write_text(text)
        assert "checksums.json cannot be read" in find_problems(directory)[0]


def test_evaluation_names_the_damaged_file(run):
    config, workdir = run
    path = _flip(workdir / "checkpoints" / "8")
    checkpoints = CheckpointReader(workdir / "checkpoints")
    with pytest.raises(UserError, match="sha256 differs") as e:
        checkpoints.restore_weights(make_experiment(config).abstract, 8)
    assert str(path) in str(e.value)


def test_lost_checksums_are_reported_and_the_previous_checkpoint_is_used(run):
    _, workdir = run
    path = workdir / "checkpoints" / "8" / "checksums.json"
    path.unlink()
    with pytest.raises(UserError, match="cannot be verified.*--strict_restore") as e:
        set_aside_damaged(workdir, strict=True)
    assert str(path) in str(e.value)
    (note,) = set_aside_damaged(workdir)
    assert note.startswith(f"damaged: {path} is missing")
    assert [p.name for p in (workdir / "checkpoints").iterdir()] == ["4"]
    assert (workdir / "damaged" / "8" / "weights").is_dir()


def test_without_any_checksums_the_newest_checkpoint_is_used(run):
    _, workdir = run
    for step in (4, 8):
        (workdir / "checkpoints" / str(step) / "checksums.json").unlink()
    kept, moved = set_aside_damaged(workdir)
    assert kept.startswith(f"damaged: {workdir / 'checkpoints' / '8'}")
    assert kept.endswith("no verified checkpoint is left; training continues from this one")
    assert "checkpoint moved to" in moved
    assert [p.name for p in (workdir / "checkpoints").iterdir()] == ["8"]


def test_partly_removed_older_checkpoint_does_not_stop_training(run):
    _, workdir = run
    (workdir / "checkpoints" / "4" / "checksums.json").unlink()
    (note,) = set_aside_damaged(workdir, strict=True)
    assert f"moved to {workdir / 'damaged' / '4'}" in note


def test_evaluation_warns_if_it_cannot_verify(run, capsys):
    config, workdir = run
    path = workdir / "checkpoints" / "8" / "checksums.json"
    path.unlink()
    checkpoints = CheckpointReader(workdir / "checkpoints")
    checkpoints.restore_weights(make_experiment(config).abstract, 8)
    assert capsys.readouterr().err.startswith(f"warning: {path} is missing")


def test_arrays_changed_by_the_code_are_named(trained):
    config, workdir = trained
    abstract = make_experiment(config).abstract
    name = next(iter(abstract.params))
    renamed = {("renamed" if k == name else k): v for k, v in abstract.params.items()}
    checkpoints = CheckpointReader(workdir / "checkpoints")
    with pytest.raises(UserError, match=r"params\.renamed\..*absent in the checkpoint.*workdir"):
        checkpoints.restore(abstract.replace(params=renamed), 8)
    with pytest.raises(UserError, match=rf"params\.{name}\..*absent in the code"):
        checkpoints.restore_weights(abstract.replace(params=renamed), 8)
    wider = abstract.replace(
        opt_state=jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((*x.shape, 2), x.dtype, sharding=x.sharding),
            abstract.opt_state,
        )
    )
    with pytest.raises(UserError, match=r"opt_state\..*float32\[.*\] in the checkpoint"):
        checkpoints.restore(wider, 8)


def test_list_changes_compares_path_shape_and_dtype():
    a = {"w": jnp.zeros((2, 3)), "b": jnp.zeros(3), "same": [jnp.zeros(())]}
    b = {
        "w": jnp.zeros((3, 2)),
        "b": jnp.zeros(3, jnp.int32),
        "same": (jnp.zeros(()),),
        "c": a["b"],
    }
    assert checkpoint_errors.list_changes(a, b) == [
        "b: float32[3] in the checkpoint, int32[3] in the code",
        "c: absent in the checkpoint, float32[3] in the code",
        "w: float32[2, 3] in the checkpoint, float32[3, 2] in the code",
    ]
    assert checkpoint_errors.list_changes(a, a) == []


def test_committed_checkpoints_have_checksums(trained, tmp_path):
    """The writing thread writes them before the rename that commits the checkpoint."""
    config, _ = trained
    run = make_experiment(config)
    state = jax.tree.map(
        lambda x: jax.device_put(jnp.ones(x.shape, x.dtype), x.sharding), run.abstract
    )
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=9)
    for step in range(1, 5):
        checkpoints.save(
            state.replace(step=jnp.int32(step)),
            Position(data={}, interval={}),
            config={}, provenance={}, metrics=None,
        )  # fmt: skip
        for path in (tmp_path / "checkpoints").iterdir():
            if path.name.isdecimal():
                assert (path / "checksums.json").is_file()
    checkpoints.close()
    assert (
        sorted(p.name for p in (tmp_path / "checkpoints").glob("*/checksums.json"))
        == ["checksums.json"] * 4
    )
