"""Steps of optimizers and clipping against timm's and torch's, in float64, on random gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch")
timm_optim = pytest.importorskip("timm.optim")

from timm.utils import dispatch_clip_grad  # noqa: E402

from imagenet_jax.config.fields import defaults  # noqa: E402
from imagenet_jax.training import optim  # noqa: E402
from imagenet_jax.training.layer_groups import NO_TUNING, FineTuning  # noqa: E402

pytestmark = pytest.mark.parity

RATES = [0.01, 0.03, 0.02, 0.02, 0.005]  # a change shows whether momentum has the rate in it
SHAPES = {  # in torch's layouts; the head is last
    "conv1": {"weight": (8, 3, 3, 3)},
    "bn1": {"weight": (8,), "bias": (8,)},
    "fc": {"weight": (5, 8), "bias": (5,)},
}


def _random(seed):
    """Return arrays whose output channels differ in size: some are clipped, some are not."""
    rng = np.random.default_rng(seed)

    def draw(shape):
        sizes = 10 ** rng.uniform(-1, 1, shape[0])
        return rng.normal(size=shape) * sizes.reshape(-1, *[1] * (len(shape) - 1))

    return {(m, n): draw(shape) for m, arrays in SHAPES.items() for n, shape in arrays.items()}


def _to_jax(arrays):
    """Return our tree: channels last, and our names."""
    tree = {}
    for (module, name), x in arrays.items():
        kernel = x.ndim > 1
        ours = ("kernel" if kernel else "scale") if name == "weight" else "bias"
        value = x.transpose(2, 3, 1, 0) if x.ndim == 4 else x.T
        tree.setdefault(module, {})[ours] = jnp.asarray(value)
    return tree


def _ours(changes, tuning, grads):
    config = defaults().optim
    config.update(changes)
    tx = optim.make_optimizer(config, lambda t: jnp.asarray(RATES)[t], tuning)
    params = _to_jax(_random(0))
    state = tx.init(params)
    for g in grads:
        updates, state = tx.update(_to_jax(g), state, params)
        params = optax.apply_updates(params, updates)
    return params


def _theirs(make, clip, grads):
    params = {k: torch.nn.Parameter(torch.from_numpy(x.copy())) for k, x in _random(0).items()}
    optimizer = make(list(params.values()))
    for rate, g in zip(RATES, grads, strict=True):
        for key, p in params.items():
            p.grad = torch.from_numpy(g[key].copy())
        clip([p for (module, _), p in params.items() if module != "fc"], list(params.values()))
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
    return _to_jax({k: p.detach().numpy() for k, p in params.items()})


def _compare(changes, make, clip=lambda body, all_of_them: None, tuning=NO_TUNING):
    with jax.enable_x64(True):
        grads = [_random(seed) for seed in range(1, 1 + len(RATES))]
        ours, theirs = _ours(changes, tuning, grads), _theirs(make, clip, grads)
        for module in ours:
            for name, x in ours[module].items():
                assert x.dtype == jnp.float64
                np.testing.assert_allclose(x, theirs[module][name], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_rmsprop_of_tensorflow_is_timms(momentum):
    _compare(
        {"name": "rmsprop", "b2": 0.9, "eps": 1e-3, "momentum": momentum, "weight_decay": 0.1},
        lambda p: timm_optim.RMSpropTF(p, alpha=0.9, eps=1e-3, momentum=momentum, weight_decay=0.1),
    )


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_rmsprop_of_torch_is_torchs(momentum):
    """torchvision's recipe of MobileNetV3: alpha 0.9, epsilon 0.0316."""
    _compare(
        {"name": "rmsprop", "rmsprop_form": "torch", "b2": 0.9, "eps": 0.0316,
         "momentum": momentum, "weight_decay": 0.1},
        lambda p: torch.optim.RMSprop(
            p, alpha=0.9, eps=0.0316, momentum=momentum, weight_decay=0.1
        ),
    )  # fmt: skip


def test_lion_is_timms():
    _compare(
        {"name": "lion", "b1": 0.9, "b2": 0.99, "weight_decay": 0.1},
        lambda p: timm_optim.Lion(p, betas=(0.9, 0.99), weight_decay=0.1),
    )


def _sgd(params):
    return torch.optim.SGD(params, lr=0.1, momentum=0.9)


def test_clipping_by_value():
    _compare(
        {"grad_clip_value": 0.5, "weight_decay": 0.0},
        _sgd,
        lambda _, everything: torch.nn.utils.clip_grad_value_(everything, 0.5),
    )


def test_adaptive_clipping_leaves_the_head_out():
    _compare(
        {"agc": 0.5, "weight_decay": 0.0},
        _sgd,
        lambda body, _: dispatch_clip_grad(body, 0.5, mode="agc"),
        FineTuning("resnet18", layer_decay=1.0, frozen_steps=0),
    )
