"""Training that starts from a weights file: which arrays are its, when, and what is refused."""

import hashlib
import json

import jax
import numpy as np
import optax
import pytest
from conftest import tiny_config

from imagenet_jax import config as config_io
from imagenet_jax import main as main_command
from imagenet_jax import train as loop
from imagenet_jax.errors import UserError
from imagenet_jax.runtime import workdir as workdirs
from imagenet_jax.runtime.provenance import collect_provenance
from imagenet_jax.training.load_weights import read_initial_weights, start_from
from imagenet_jax.training.sharding import make_mesh
from imagenet_jax.training.state import abstract_state
from imagenet_jax.weights import state_dicts, weight_file


def random_weights(model, path):
    """A file for the model of `model`, every value distinct; returns the state dict."""
    abstract = abstract_state(model, optax.identity(), False, make_mesh())
    rng = np.random.default_rng(1)
    trees = jax.tree.map(
        lambda x: rng.uniform(0.5, 1.5, x.shape).astype(np.float32), abstract.weights("raw")
    )
    state_dict = state_dicts.to_torch(trees["params"], trees["batch_stats"], model)
    weight_file.save(state_dict, path)
    return state_dict


def zeros(model, tx, *, ema=True, fsdp=1):
    """A state whose every array is 0, where random values would be."""
    abstract = abstract_state(model, tx, ema, make_mesh(fsdp))
    return jax.tree.map(lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding), abstract)


@pytest.fixture
def weights(tiny, tmp_path):
    tiny.init.weights = str(tmp_path / "w.safetensors")
    return random_weights(tiny.model, tiny.init.weights)


@pytest.mark.parametrize("fsdp", [1, 4])
def test_every_array_comes_from_the_file(tiny, weights, fsdp):
    tx = optax.trace(0.9)
    before = zeros(tiny.model, tx, fsdp=fsdp)
    state = start_from(read_initial_weights(tiny), before, tx)
    for which in ("raw", "ema"):
        tree = jax.device_get(state.weights(which))
        written = state_dicts.to_torch(tree["params"], tree["batch_stats"], tiny.model)
        for key, array in weights.items():
            np.testing.assert_array_equal(written[key], array)
    jax.tree.map(lambda a, b: a.sharding == b.sharding or pytest.fail(), state, before)
    # The step donates the state: no two arrays may be one.
    pointers = [
        x.addressable_shards[0].data.unsafe_buffer_pointer()
        for x in jax.tree.leaves((state.params, state.batch_stats, state.ema))
    ]
    assert len(set(pointers)) == len(pointers)


def test_the_optimizer_starts_at_the_new_weights(tiny, weights):
    tx = optax.contrib.schedule_free_sgd(0.1)  # keeps a copy of the parameters
    state = start_from(read_initial_weights(tiny), zeros(tiny.model, tx, ema=False), tx)
    jax.tree.map(np.testing.assert_array_equal, state.opt_state.z, state.params)


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("resnet18", "fc"),
        ("vgg11_bn", "classifier.6"),
        ("vgg13", "classifier.6"),
        ("bit_r50x1", "head.fc"),
    ],
)
def test_the_head_of_another_number_of_classes_stays_random(name, head, tmp_path, digits_path):
    config = tiny_config(digits_path, name)
    config.model.num_classes = 4
    if name.startswith("bit"):
        config.model.width = 0.5  # the least that 32 groups divide
    config.init.weights = str(tmp_path / "w.safetensors")
    weights = random_weights(config.model, config.init.weights)
    config.model.num_classes = 10
    tx = optax.identity()
    initial = read_initial_weights(config)
    assert "4 classes there and 10 here" in initial.summary
    state = start_from(initial, zeros(config.model, tx), tx)
    tree = jax.device_get(state.weights("ema"))
    written = state_dicts.to_torch(tree["params"], tree["batch_stats"], config.model)
    new = [key for key in weights if not np.array_equal(written[key], weights[key])]
    assert new == [f"{head}.bias", f"{head}.weight"]
    assert not any(written[key].any() for key in new)


@pytest.mark.full
def test_a_run_starts_from_the_file_once(tiny, weights, tmp_path, monkeypatch, capsys):
    tiny.epochs, tiny.checkpoint.every_epochs = 2 * 48 / 1437, 0.0
    tiny.data.eval_split = "validation[:8]"
    tiny.optim.base_lr = tiny.optim.weight_decay = 0.0  # nothing moves but statistics
    tiny.log.every_steps = 1
    path = tmp_path / "w.safetensors"
    assert loop.train(tiny, tmp_path / "run") == 0
    assert f"starting from weights of {path}" in capsys.readouterr().out.replace("\n", "")
    norm = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])[
        "param_norm"
    ]
    trained = [v for k, v in weights.items() if "running" not in k and v.ndim]
    assert norm == pytest.approx(np.sqrt(sum(float(np.square(v).sum()) for v in trained)), rel=1e-5)
    provenance = json.loads((tmp_path / "run" / "provenance.json").read_text())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert provenance["initial_weights"] == {"file": str(path), "sha256": digest}

    path.unlink()  # a resumed run reads it no more
    assert loop.train(tiny, tmp_path / "run") == 0
    assert "starting from" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--weights=nope.safetensors"], ["weights file nope.safetensors", "not exist"]),
        (["--config.init.weights=w.npz"], ["w.npz", "is empty"]),
        (
            ["--weights=18.safetensors", "--config.model.name=resnet34"],
            ["resnet34", "it holds resnet18"],
        ),
        (
            ["--weights=18.safetensors", "--config.model.width=0.25"],
            ["width=0.25", "it holds resnet18, width 0.0625, stem small, 10 classes"],
        ),
        (["--weights_key=ema"], ["init.weights_key = 'ema'", "--config.init.weights="]),
        (["--weights=18.safetensors", "--weights_key=ema"], ["no state dict 'ema'"]),
        (["--weights=text.safetensors"], ["text.safetensors", "cannot be read"]),
        (
            ["--weights=18.safetensors", "--config.model.zero_init_residual=true"],
            ["zero_init_residual", "config.init.weights", "=false"],
        ),
    ],
)
def test_bad_files_are_one_line_and_nothing_is_written(
    args, words, tiny, tmp_path, monkeypatch, fails
):
    monkeypatch.chdir(tmp_path)
    random_weights(tiny.model, "18.safetensors")
    (tmp_path / "text.safetensors").write_text("weights, allegedly")
    (tmp_path / "w.npz").touch()
    monkeypatch.setattr(config_io, "load", lambda spec, overrides: load_tiny(tiny, overrides))
    fails(main_command, ["--config=tiny.py", "--workdir=run", *args], *words)
    assert not (tmp_path / "run").exists()


def load_tiny(tiny, overrides):
    for field, text in overrides:
        config_io.override(tiny, field, text)
    return config_io.check(tiny)


def test_another_file_is_another_run(tiny, weights, saved_run):
    tiny.init.weights = "other.safetensors"
    with pytest.raises(UserError, match=r"init\.weights: '' -> 'other\.safetensors'"):
        workdirs.record_start(saved_run.workdir, tiny, collect_provenance({}))
