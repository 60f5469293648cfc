"""config.debug.nans names the operation and the line that made the first NaN."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config

from imagenet_jax import config as config_io
from imagenet_jax import train as loop
from imagenet_jax.errors import UserError
from imagenet_jax.training import losses
from imagenet_jax.training.checkpoint import Checkpoints


@pytest.fixture
def tiny(digits_path):
    """With a check of each operation, VGG-11 compiles in a quarter of ResNet-18's time."""
    return tiny_config(digits_path, "vgg11")


def _loss_with_a_root_of_a_negative(logits, targets, loss):
    """Give NaN for batches whose labels sum to 183, as those of the fourth batch do."""
    value = losses.cross_entropy(logits, targets)
    return value + jnp.sqrt(jnp.where(jnp.sum(targets) == 183, -1.0, 0.0))


def _line_of(function, text):
    lines, start = inspect.getsourcelines(function)
    return start + next(i for i, line in enumerate(lines) if text in line)


@pytest.mark.slow
def test_message_names_operation_and_line_of_an_injected_nan(tiny, tmp_path, monkeypatch):
    """Only the first NaN, in the forward pass of step 4, is named."""
    tiny.debug.nans = True
    tiny.checkpoint.every_epochs = 2 * 48 / 1437
    monkeypatch.setattr(losses, "per_image", _loss_with_a_root_of_a_negative)
    with pytest.raises(UserError) as caught:
        loop.train(tiny, tmp_path)
    message = str(caught.value)
    line = _line_of(_loss_with_a_root_of_a_negative, "jnp.sqrt")
    assert "operation sqrt," in message
    assert f"test_nans.py:{line} (_loss_with_a_root_of_a_negative)" in message
    assert len(message.splitlines()) == 1
    assert "NaN at step 4:" in message
    assert Checkpoints(tmp_path / "checkpoints", write=False).steps() == [2]


@pytest.mark.full
def test_message_names_an_operation_of_the_gradient(tiny, tmp_path, monkeypatch):
    """sqrt(0) has an infinite derivative, so that only the backward pass has a NaN, 0 * inf."""

    def with_root_of_zero(logits, targets, loss):
        zero = logits[:, 0] * 0
        return losses.cross_entropy(logits, targets) + jnp.sqrt(zero) * 0

    tiny.debug.nans = True
    monkeypatch.setattr(losses, "per_image", with_root_of_zero)
    with pytest.raises(UserError, match=r"NaN at step 1: .* at .*test_nans\.py:\d+ \(with_root"):
        loop.train(tiny, tmp_path)


@pytest.mark.full
def test_nan_of_a_huge_learning_rate_is_found_in_the_package(tiny, tmp_path):
    tiny.debug.nans = True
    tiny.optim.base_lr = 1e30
    with pytest.raises(UserError, match=r"NaN at step \d: first in .* at .*/imagenet_jax/.*\.py:"):
        loop.train(tiny, tmp_path)


def test_nan_check_with_rewinding_is_refused(tiny):
    tiny.debug.nans, tiny.nonfinite.policy = True, "rewind"
    with pytest.raises(UserError, match=r"config\.nonfinite\.policy = 'rewind' does nothing"):
        config_io.check(tiny)


def test_injected_functions_give_nan_in_numpy_and_in_the_gradient():
    with np.errstate(invalid="ignore"):
        assert np.isnan(np.sqrt(-1.0))
    assert np.isnan(jax.grad(lambda x: jnp.sqrt(x * 0) * 0)(1.0))
