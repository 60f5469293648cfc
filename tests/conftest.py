"""Settings of the tests, eight CPU devices, and fixtures: small data, configs and runs."""

import importlib.metadata
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
import pytest

# Tests spend most of their time in LLVM. With these flags it takes a quarter of that time, and the
# code that it makes is slower. jaxlib 0.12 lacks the second one, and a process exits at a flag that
# it does not know.
FASTER_COMPILATION = "--xla_backend_optimization_level=0"
# Options of `jax.jit` for a program that is compiled as without those flags.
USUAL_COMPILATION: dict[str, int | bool] = {"xla_backend_optimization_level": 3}
if importlib.metadata.version("jaxlib").startswith("0.10."):
    FASTER_COMPILATION += " --xla_cpu_use_fusion_emitters=false"
    USUAL_COMPILATION["xla_cpu_use_fusion_emitters"] = True
# Before jax is imported, which pytest's collection does after this file. Your flags win.
os.environ["XLA_FLAGS"] = (
    f"--xla_force_host_platform_device_count=8 {FASTER_COMPILATION} "
    + os.environ.get("XLA_FLAGS", "")
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests and the processes that they start compile the same programs: they share this cache, across
# the workers of pytest-xdist too. Set the variable yourself to keep the cache between test runs.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"

# On a shared machine an example may take any time.
hypothesis.settings.register_profile("shared", deadline=None)
hypothesis.settings.load_profile("shared")

# Started in the background by a shell, pytest and the processes of tests would ignore ctrl-C.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

# After the variables above, because these import jax.
from filled_model import filled  # noqa: E402, F401
from finished_run import baseline, finished  # noqa: E402, F401
from light_loop import history, light  # noqa: E402, F401
from miniature_tars import tars  # noqa: E402, F401

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def digits_path(tmp_path_factory):
    """The digits data set, written once for the session."""
    from imagenet_jax.data import builtin

    path = tmp_path_factory.mktemp("digits") / "digits" / "1.0.0"
    builtin.write_digits(path)
    return path


def tiny_model(name, **fields):
    """Return `config.model` with 1/16 of the width, 7 classes, and these fields."""
    from imagenet_jax.config.fields import defaults

    config = defaults(name).model
    config.width, config.num_classes = 1 / 16, 7
    for field, value in fields.items():
        config[field] = value
    return config


def image_side(name):
    """Return a small side of images that the model can train on, with its auxiliary heads."""
    return 299 if name == "inception_v3" else 64


def tiny_config(path, model="resnet18"):
    """Return a config with batches of 48 digits, 16x16 pixels and 4 channels: fast steps."""
    from imagenet_jax.config.fields import defaults

    c = defaults(model)
    c.epochs = 0.25
    c.batch_size = 48
    c.model.num_classes = 10
    c.model.width = 1 / 16
    if model.startswith("resnet"):
        c.model.stem = "small"
    c.data.source = "digits"
    c.data.path = str(path)
    c.data.threads = 2
    c.augment.image_size = 32 if model.startswith("vgg") else 16
    c.eval.resize = c.eval.image_size = c.augment.image_size
    c.eval.batch_size = 120
    c.optim.base_lr = 0.05
    c.optim.base_batch_size = 48
    c.optim.lr_scaling = "linear"  # "auto", as loading resolves it
    c.optim.schedule = "cosine"
    c.log.every_steps = 2
    c.log.tensorboard = False
    c.ema.decay = 0.9
    return c


@pytest.fixture
def tiny(digits_path):
    return tiny_config(digits_path)


@pytest.fixture
def quick(digits_path):
    """Like `tiny`, of a network without batch norm, whose step compiles in a third of the time."""
    return tiny_config(digits_path, "small_cnn")


@pytest.fixture
def run_module():
    """run_module(module, *args) starts `python -m MODULE ARGS` on one CPU device."""
    processes = []

    def start(module, *args, flags=FASTER_COMPILATION, **kwargs):
        env = os.environ | {"XLA_FLAGS": flags, "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, args)],
            cwd=REPOSITORY,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **kwargs,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture
def call_command(monkeypatch, capsys):
    """call_command(command, args) runs it like `python -m`; returns exit code, stdout, stderr."""
    from imagenet_jax import cli, progress

    # However slow the machine, standard error has only errors.
    monkeypatch.setattr(progress, "_SLOW_SECONDS", 600)

    def call(command, args):
        capsys.readouterr()
        monkeypatch.setattr("sys.argv", ["command", *map(str, args)])
        monkeypatch.setattr(cli, "exit_soon", lambda code: None)
        with pytest.raises(SystemExit) as caught:
            cli.run(command.main)
        return caught.value.code, *capsys.readouterr()

    return call


@pytest.fixture
def fails(call_command):
    """fails(command, args, *words) asserts exit code 1 and one error line with these words."""

    def check(command, args, *words):
        code, _, err = call_command(command, args)
        assert code == 1
        assert err.startswith("error: ")
        assert len(err.splitlines()) == 1, err
        for word in words:
            assert word in err, err

    return check


def random_state(abstract):
    """Return a state with values from NumPy, which, unlike initial weights, need no compilation."""
    import jax
    import numpy as np

    rng = np.random.default_rng(0)

    def draw(x):  # kernels of mean 0; scales and variances above 0
        values = rng.normal(0, 0.2, x.shape) if x.ndim > 1 else rng.uniform(0.5, 1.5, x.shape)
        return jax.device_put(values.astype(x.dtype), x.sharding)

    return jax.tree.map(draw, abstract)


class SavedRun(NamedTuple):
    workdir: Path
    config: Any  # ConfigDict
    state: Any  # TrainState


@pytest.fixture(scope="session")
def saved_run(tmp_path_factory, digits_path):
    """A run that saved step 3, with random weights and different random EMA weights."""
    import jax

    from imagenet_jax.runtime import workdir as workdirs
    from imagenet_jax.runtime.provenance import collect_provenance
    from imagenet_jax.training.checkpoint import Checkpoints, Position
    from imagenet_jax.training.data_position import get_data_position
    from imagenet_jax.training.experiment import make_experiment

    config = tiny_config(digits_path)
    run = make_experiment(config)
    state = random_state(run.abstract).replace(step=jax.numpy.int32(3))
    workdir = tmp_path_factory.mktemp("saved") / "run"
    workdirs.record_start(workdir, config, collect_provenance(run.fingerprints))
    workdirs.write_classes(workdir, run.source.class_names)
    checkpoints = Checkpoints(workdir / "checkpoints")
    position = Position(data=get_data_position(run.sampler, 3), interval={})
    alone = jax.device_put(state, jax.devices()[0])  # saving replicas compiles programs
    checkpoints.save(alone, position, config=config.to_dict(), provenance={}, metrics=None)
    checkpoints.wait()
    checkpoints.close()
    return SavedRun(workdir, config, state)
