"""BiT: stage shapes, one block against NumPy, a start at equal logits, the same in both modes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from imagenet_jax import models
from imagenet_jax.config.fields import defaults
from imagenet_jax.errors import UserError
from imagenet_jax.models import bit


def config_of(**fields):
    config = defaults("bit_r50x1").model
    config.width, config.num_classes = 0.5, 7
    for field, value in fields.items():
        config[field] = value
    return config


def test_stage_shapes():
    def stages(images):
        model = models.build(config_of(width=1.0), rngs=nnx.Rngs(0))
        return dict(model.activations(images, train=False, rngs=None))

    out = jax.eval_shape(stages, jax.ShapeDtypeStruct((2, 224, 160, 3), jnp.float32))
    assert {name: x.shape[1:] for name, x in out.items()} == {
        "stem": (56, 40, 64),
        "stage1": (56, 40, 256),
        "stage2": (28, 20, 512),
        "stage3": (14, 10, 1024),
        "stage4": (7, 5, 2048),
        "logits": (7,),
    }


def normalised(x: np.ndarray) -> np.ndarray:
    """ReLU of group norm of f[H, W, C] with scale 1 and bias 0, 32 groups."""
    groups = x.reshape(*x.shape[:2], 32, -1)
    mean, var = groups.mean((0, 1, 3), keepdims=True), groups.var((0, 1, 3), keepdims=True)
    return np.maximum((groups - mean) / np.sqrt(var + 1e-5), 0).reshape(x.shape)


def convolved(x: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    kernel = kernel.astype(np.float64)
    kernel = (kernel - kernel.mean((0, 1, 2))) / np.sqrt(kernel.var((0, 1, 2)) + 1e-10)
    pad = len(kernel) // 2
    padded = np.pad(x, ((pad, pad), (pad, pad), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[:2], axis=(0, 1))
    return np.einsum("hwikl,klio->hwo", windows[::stride, ::stride], kernel)


@pytest.mark.parametrize(("inputs", "stride"), [(128, 1), (64, 2)])
def test_a_block_activates_first_and_projects_what_it_activated(inputs, stride):
    make = nnx.jit(lambda: bit.PreActivation(inputs, 32, stride, dtype=None, rngs=nnx.Rngs(0)))
    block = make()
    x = np.random.default_rng(0).normal(size=(6, 5, inputs))
    got = nnx.jit(lambda b, x: b(x))(block, jnp.asarray(x, jnp.float32)[None])[0]
    active = normalised(x)
    y = normalised(convolved(active, np.asarray(block.conv1.kernel[...]), 1))
    y = normalised(convolved(y, np.asarray(block.conv2.kernel[...]), stride))
    y = convolved(y, np.asarray(block.conv3.kernel[...]), 1)
    if block.downsample is None:
        assert (inputs, stride) == (128, 1)
        want = y + x
    else:
        want = y + convolved(active, np.asarray(block.downsample["conv"].kernel[...]), stride)
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)


def test_all_classes_are_alike_at_first_and_no_statistics_are_kept():
    head = jax.jit(lambda: nnx.state(models.build(config_of(), rngs=nnx.Rngs(0)).head))()
    assert all((value == 0).all() for value in jax.tree.leaves(head))
    model = nnx.eval_shape(lambda: models.build(config_of(), rngs=nnx.Rngs(0)))
    assert not jax.tree.leaves(nnx.state(model, nnx.BatchStat))


def test_fields_of_resnets_are_refused():
    with pytest.raises(UserError, match=r"config\.model\.stem does not belong to bit_r50x1"):
        models.check({**config_of().to_dict(), "stem": "small"})
    with pytest.raises(UserError, match="multiple of 32 channels, not 8"):
        models.build(config_of(width=1 / 8), rngs=nnx.Rngs(0))
