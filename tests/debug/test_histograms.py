"""Histograms against NumPy's; and no hook changes a bit of a run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st

from imagenet_jax import config as config_io
from imagenet_jax import train as loop
from imagenet_jax.debug.histograms import group_histograms
from imagenet_jax.errors import UserError
from imagenet_jax.logs.tensorboard import TensorBoardWriter
from imagenet_jax.training.checkpoint import Checkpoints
from imagenet_jax.training.experiment import make_experiment
from imagenet_jax.training.sharding import make_mesh, state_sharding

RATE = 0.05
EPOCH = 48 / 1437  # of one step


def _config(path):
    """Return a config of three steps of plain gradient descent on a sharded state, each saved."""
    config = tiny_config(path, "vgg11")  # compiles fast
    config.epochs, config.checkpoint.every_epochs = 3 * EPOCH, EPOCH
    config.log.every_steps, config.log.images, config.mesh.fsdp = 1, 0, 4
    config.optim.schedule, config.optim.base_lr = "constant", RATE
    config.optim.momentum = config.optim.weight_decay = 0.0
    return config


def _states(config, workdir):
    checkpoints = Checkpoints(workdir / "checkpoints", write=False)
    abstract = make_experiment(config).abstract
    return {step: jax.device_get(checkpoints.restore(abstract, step)[0]) for step in (1, 2, 3)}


@pytest.fixture(scope="module")
def plain(digits_path, tmp_path_factory):
    config, workdir = _config(digits_path), tmp_path_factory.mktemp("plain") / "run"
    assert loop.train(config, workdir) == 0
    return _states(config, workdir)


@pytest.fixture(scope="module")
def watched(digits_path, tmp_path_factory):
    """({step: histograms}, {step: state}, workdir) of a run with all hooks."""
    config, workdir = _config(digits_path), tmp_path_factory.mktemp("watched") / "run"
    config.log.tensorboard, config.log.group_norms = True, True
    config.log.histograms_every_epochs = 2 * EPOCH
    config.profile.steps = "2:3"
    config.debug.nans, config.debug.determinism = True, 2
    written, write = {}, TensorBoardWriter.histograms

    def keep(self, step, histograms):
        written[step] = histograms
        write(self, step, histograms)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TensorBoardWriter, "histograms", keep)
        assert loop.train(config, workdir) == 0
    return written, _states(config, workdir), workdir


@pytest.mark.full
def test_hooks_do_not_change_a_bit_of_the_state(plain, watched):
    for step, state in watched[1].items():
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(plain[step]), strict=True
        ):
            np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))


def _fourth_group(state):
    leaves = jax.tree.leaves(state.params["features"][3])
    return np.concatenate([np.ravel(x) for x in leaves])


@pytest.mark.slow
def test_histograms_of_weights_equal_numpys_of_the_checkpoint(watched):
    written, states, _ = watched
    assert sorted(written) == [2, 3]
    for step, histograms in written.items():
        weights = _fourth_group(states[step])
        counts, edges = histograms["weights/features.3"]
        assert edges[0] == weights.min()
        assert edges[-1] == weights.max()
        np.testing.assert_array_equal(counts, np.histogram(weights, edges)[0])


@pytest.mark.full
def test_histograms_of_gradients_match_the_applied_update(watched):
    """The difference of rounded weights gives the gradient only roughly: compare fractions."""
    written, states, _ = watched
    gradients = (_fourth_group(states[1]) - _fourth_group(states[2])) / RATE
    counts, edges = written[2]["gradients/features.3"]
    spread = float(edges[-1] - edges[0])
    assert edges[0] == pytest.approx(gradients.min(), abs=1e-3 * spread)
    assert edges[-1] == pytest.approx(gradients.max(), abs=1e-3 * spread)
    assert counts.sum() == gradients.size
    below = [np.mean(gradients < edge) for edge in edges[1:-1]]
    np.testing.assert_allclose(np.cumsum(counts)[:-1] / gradients.size, below, atol=0.01)


@pytest.mark.full
def test_tensorboard_has_the_histograms(watched):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    written, _, workdir = watched
    events = EventAccumulator(str(workdir / "tensorboard"), {"histograms": 0}).Reload()
    groups = (*(f"features.{i}" for i in range(5)), *(f"classifier.{i}" for i in range(3)))
    tags = {f"{kind}/{group}" for kind in ("weights", "gradients") for group in groups}
    assert tags <= set(events.Tags()["histograms"])
    shown = events.Histograms("weights/features.3")
    assert [point.step for point in shown] == [2, 3]
    assert shown[0].histogram_value.num == written[2]["weights/features.3"][0].sum()


@settings(max_examples=8)
@given(st.integers(0, 2**16), st.floats(-30, 30), st.sampled_from([0.0, 1e-7, 1.0, 1e4]))
def test_counts_equal_numpys_for_any_values(seed, centre, scale):
    """Sharded over eight devices; also for values that are equal or nearly equal."""
    rng = np.random.default_rng(seed)
    names = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc")
    draw = {n: (centre + scale * rng.normal(size=(8, 16))).astype(np.float32) for n in names}
    found = _group_histograms(jax.device_put(draw, state_sharding(draw, make_mesh(8))))
    for group in ("layer1", "fc", "conv1"):
        values = np.concatenate([draw["conv1"], draw["bn1"]]) if group == "conv1" else draw[group]
        counts, edges = jax.device_get(found[group])
        np.testing.assert_array_equal(counts, np.histogram(values, edges)[0])
        assert counts.sum() == values.size
        if scale:
            _, expected = np.histogram(values.astype(np.float64), 64)
            ulp = np.spacing(np.float32(abs(centre) + 5 * scale))
            np.testing.assert_allclose(edges, expected, rtol=1e-5, atol=2 * ulp)


_group_histograms = jax.jit(lambda tree: group_histograms(tree, "resnet18"))


def test_nonfinite_values_have_no_histogram():
    from imagenet_jax.debug.histograms import _to_host

    finite, nan = jnp.arange(3.0), jnp.array([1.0, jnp.nan])
    found = {"a": (jnp.ones(2, int), finite), "b": (jnp.ones(1, int), nan)}
    assert list(_to_host("weights", found)) == ["weights/a"]


def test_histograms_without_a_writer_for_them_are_refused(tiny):
    tiny.log.histograms_every_epochs = 1.0
    with pytest.raises(UserError, match=r"histograms_every_epochs = 1\.0 does nothing"):
        config_io.check(tiny)
