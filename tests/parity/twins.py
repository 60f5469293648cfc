"""A torchvision model and ours with the same weights, for tests that train both.

VGG is built an eighth as wide (torchvision's own layers, fewer channels): its linear layers would
otherwise hold 120 million weights of the same kind.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torchvision
from ml_collections import ConfigDict

from imagenet_jax.config import fields
from imagenet_jax.training.state import TrainState
from imagenet_jax.training.step import StepParts, train_step
from imagenet_jax.weights import torch_names

CLASSES = 10
WIDTH = {"resnet18": 1.0, "vgg11_bn": 0.125}


def config_of(name: str, side: int) -> ConfigDict:
    """A training config without anything that is drawn at random."""
    c = fields.defaults(name)
    c.model.num_classes = CLASSES
    c.model.width = WIDTH[name]
    c.augment.image_size = side
    c.augment.flip = False
    # x / 64 - 2: no rounding, in any precision. ImageNet's constants would leave float32's in the
    # pixels and so in everything that is compared; test_one_step.py looks at those alone.
    c.data.std = (64 / 255,) * 3
    c.data.mean = (128 / 255,) * 3
    if name.startswith("vgg"):
        c.model.dropout = 0.0
    return c


def torch_model(name: str) -> torch.nn.Module:
    """torchvision's model, float32, with no bias or norm parameter left at 0 or 1."""
    torch.manual_seed(0)
    if name.startswith("resnet"):
        model = getattr(torchvision.models, name)(num_classes=CLASSES)
    else:
        channels = [
            c if c == "M" else int(c * WIDTH[name]) for c in torchvision.models.vgg.cfgs["A"]
        ]
        layers = torchvision.models.vgg.make_layers(channels, batch_norm=name.endswith("_bn"))
        model = torchvision.models.VGG(layers, num_classes=CLASSES, dropout=0.0)
        hidden, inputs = int(4096 * WIDTH[name]), int(512 * WIDTH[name]) * 49
        linear = torch.nn.Linear
        model.classifier[0] = linear(inputs, hidden)
        model.classifier[3] = linear(hidden, hidden)
        model.classifier[6] = linear(hidden, CLASSES)
    with torch.no_grad():
        for module in model.modules():
            if getattr(module, "bias", None) is not None:
                module.bias.normal_(0, 0.1)
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
        for module in model.modules():
            # Branches weaker than their shortcuts, as in trained networks: test_forward.py.
            if isinstance(module, torchvision.models.resnet.BasicBlock):
                module.bn2.weight.uniform_(0.1, 0.5)
    return model.train()


def split_kernels(model: torch.nn.Module) -> tuple[list, list]:
    """(kernels, biases and norm parameters), told apart by the kind of module that holds them."""
    kernels, others = [], []
    for module in model.modules():
        is_norm = isinstance(module, torch.nn.BatchNorm2d)
        for name, parameter in module.named_parameters(recurse=False):
            (others if is_norm or name == "bias" else kernels).append(parameter)
    return kernels, others


def torch_optimizer(optim: ConfigDict, model: torch.nn.Module) -> torch.optim.Optimizer:
    kernels, others = split_kernels(model)
    groups = [
        {"params": kernels, "weight_decay": optim.weight_decay},
        {
            "params": others,
            "weight_decay": optim.weight_decay if optim.decay_bias_and_norm else 0.0,
        },
    ]
    if optim.name == "sgd":
        return torch.optim.SGD(
            groups, lr=optim.base_lr, momentum=optim.momentum, nesterov=optim.nesterov
        )
    rule = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optim.name]
    return rule(groups, lr=optim.base_lr, betas=(optim.b1, optim.b2), eps=optim.eps)


def kept_gradients() -> optax.GradientTransformation:
    """Leaves gradients as they are, and in the optimizer's state, where a test can read them."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda grads, _state, _params: (grads, grads),
    )


def state_of(
    model: torch.nn.Module, config: ConfigDict, tx: optax.GradientTransformation, dtype: str
) -> TrainState:
    """Our state before step 0, at the torch model's weights."""
    state_dict = {k: v.numpy() for k, v in model.state_dict().items()}
    params, stats = jax.tree.map(
        lambda x: jnp.asarray(x, dtype), torch_names.from_torch(state_dict, config.model)
    )
    ema = None
    if config.ema.decay:
        ema = jax.tree.map(jnp.copy, {"params": params, "batch_stats": stats})
    state = TrainState(jnp.int32(0), params, stats, tx.init(params), ema)
    if dtype == "float64":
        # A schedule divides the count of steps: float32 of an int32, float64 of an int64.
        state = jax.tree.map(lambda x: x.astype(int) if x.dtype == jnp.int32 else x, state)
    return state


def compiled_step(parts: StepParts):
    """The package's train_step, on one device."""
    return jax.jit(lambda state, batch: train_step(state, batch, parts))


def batch_of(rows: int, side: int, seed: int) -> dict[str, np.ndarray]:
    """{"image" u8[rows, side, side, 3], "label" i32[rows]}: blurred noise, as images are smooth."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (rows, side // 4, side // 4, 3)).astype(np.float64)
    fine = coarse.repeat(4, axis=1).repeat(4, axis=2) * 0.8 + 51 * rng.random((rows, side, side, 3))
    return {
        "image": fine.round().clip(0, 255).astype(np.uint8),
        "label": rng.integers(0, CLASSES, rows).astype(np.int32),
    }


def torch_pixels(images: np.ndarray, dtype: str) -> torch.Tensor:
    """Our normalised images, exactly (see config_of), in the layout of torch."""
    exact = images.transpose(0, 3, 1, 2).astype(dtype) / 64 - 2
    return torch.from_numpy(np.ascontiguousarray(exact))


def as_torch(params, batch_stats, config: ConfigDict) -> dict[str, np.ndarray]:
    """Our arrays under torchvision's names and layouts."""
    return {
        k: v
        for k, v in torch_names.to_torch(params, batch_stats, config.model).items()
        if not k.endswith("num_batches_tracked")
    }
