"""Restoring on another number of devices, and memory of the sharded state."""

import jax
import numpy as np
import pytest
from conftest import random_state

from imagenet_jax.training.checkpoint import Checkpoints, Position
from imagenet_jax.training.experiment import make_experiment
from imagenet_jax.training.sharding import make_mesh


def _experiment(config, devices, fsdp):
    config.mesh.fsdp = fsdp
    return make_experiment(config, make_mesh(fsdp, jax.devices()[:devices]))


def _save(run, directory):
    state = random_state(run.abstract).replace(step=jax.numpy.int32(0))
    checkpoints = Checkpoints(directory)
    checkpoints.save(
        state, Position(data={"next_record": 0}, interval={}),
        config=run.config.to_dict(), provenance={}, metrics=None,
    )  # fmt: skip
    checkpoints.wait()
    checkpoints.close()
    return jax.device_get(state)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((8, 2), (1, 1)),
        pytest.param((1, 1), (8, 8), marks=pytest.mark.full),
        pytest.param((8, 8), (4, 2), marks=pytest.mark.full),
        pytest.param((4, 1), (2, 2), marks=pytest.mark.full),
    ],
)
def test_saved_on_some_devices_restored_on_others(tiny, tmp_path, before, after):
    """The state is the same bit for bit, in other shards; parameters are (devices, fsdp)."""
    saved = _save(_experiment(tiny, *before), tmp_path / "checkpoints")
    run = _experiment(tiny, *after)
    state, position = Checkpoints(tmp_path / "checkpoints", write=False).restore(run.abstract, 0)
    assert position.data == {"next_record": 0}
    for (path, x), y, wanted in zip(
        jax.tree_util.tree_leaves_with_path(state),
        jax.tree.leaves(saved),
        jax.tree.leaves(run.abstract),
        strict=True,
    ):
        name = jax.tree_util.keystr(path)
        np.testing.assert_array_equal(jax.device_get(x), y, err_msg=name)
        assert x.sharding.is_equivalent_to(wanted.sharding, x.ndim), name
        assert len(x.sharding.device_set) == after[0]


def _bytes_per_device(tree):
    return sum(
        int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
    )


@pytest.mark.parametrize("model", ["resnet50", "vgg16"])
def test_fsdp_divides_parameters_and_optimizer_among_devices(tiny, model):
    """At full width: 1/fsdp of the bytes, except for the few arrays that fsdp does not divide."""
    from imagenet_jax.config.fields import defaults

    tiny.model = defaults(model).model
    tiny.model.num_classes = 10
    tiny.eval.image_size = tiny.eval.resize = tiny.augment.image_size = 64
    whole = _experiment(tiny, 8, 1).abstract
    for fsdp in (2, 4, 8):
        split = _experiment(tiny, 8, fsdp).abstract
        for part in ("params", "opt_state", "ema"):
            shares = [_bytes_per_device(getattr(state, part)) for state in (split, whole)]
            assert shares[0] == pytest.approx(shares[1] / fsdp, rel=0.01), part
