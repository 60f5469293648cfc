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
from imagenet_jax.models import convnext, mobilenet, vit
from imagenet_jax.training.state import TrainState
from imagenet_jax.training.step import StepParts, train_step
from imagenet_jax.weights import library_names, state_dicts

CLASSES = 10
NORMS = (torch.nn.BatchNorm2d, torch.nn.LayerNorm)
WIDTH = {"resnet18": 1.0, "vgg11_bn": 0.125}  # others: 1.0


def config_of(name: str, side: int) -> ConfigDict:
    """A training config without anything that is drawn at random."""
    c = fields.defaults(name)
    c.model.num_classes = CLASSES
    c.model.width = WIDTH.get(name, 1.0)
    c.augment.image_size = side
    c.augment.flip = False
    # x / 64 - 2: no rounding, in any precision. ImageNet's constants would leave float32's in the
    # pixels and so in everything that is compared; test_one_step.py looks at those alone.
    c.data.std = (64 / 255,) * 3
    c.data.mean = (128 / 255,) * 3
    if "dropout" in c.model:
        c.model.dropout = 0.0
    if "image_size" in c.model:
        c.model.image_size = side
    return c


def torch_model(name: str, side: int) -> torch.nn.Module:
    """Return torchvision's model, float32, with no array of equal values.

    It has as many blocks as the tables of our families say.
    """
    torch.manual_seed(0)
    if name == "vit_ti16":
        model = torchvision.models.VisionTransformer(
            image_size=side,
            patch_size=16,
            num_layers=vit.VARIANTS[name].depth,
            num_heads=3,
            hidden_dim=192,
            mlp_dim=768,
            num_classes=CLASSES,
        )
    elif name.startswith("convnext"):
        depths, channels = convnext.VARIANTS[name]
        widths = [channels * 2**i for i in range(4)]
        stages = map(torchvision.models.convnext.CNBlockConfig, widths, [*widths[1:], None], depths)
        model = torchvision.models.ConvNeXt(list(stages), num_classes=CLASSES)
    elif name == "mobilenet_v2":
        model = torchvision.models.MobileNetV2(CLASSES, 1.0, [*mobilenet.STAGES], dropout=0.0)
    elif name.startswith("resnet"):
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
            if isinstance(module, NORMS):
                module.weight.uniform_(0.5, 1.5)
        for module in model.modules():
            # Branches weaker than their shortcuts, as in trained networks: test_forward.py.
            if isinstance(module, torchvision.models.resnet.BasicBlock):
                module.bn2.weight.uniform_(0.1, 0.5)
        for parameter in model.parameters():
            if parameter.std() == 0:  # the class token and the head of ViT, ConvNeXt's layer scales
                parameter.normal_(0, 0.1)
    return model.train()


def split_kernels(model: torch.nn.Module) -> tuple[list, list]:
    """Return (kernels, all others), told apart by their names and the modules that hold them."""
    kernels, others = [], []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            is_kernel = name.endswith("weight") and not isinstance(module, NORMS)
            (kernels if is_kernel else others).append(parameter)
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
    if optim.name == "rmsprop":
        assert optim.rmsprop_form == "torch"
        return torch.optim.RMSprop(
            groups, lr=optim.base_lr, alpha=optim.b2, eps=optim.eps, momentum=optim.momentum
        )
    rule = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optim.name]
    return rule(groups, lr=optim.base_lr, betas=(optim.b1, optim.b2), eps=optim.eps)


def torch_scheduler(
    optim: ConfigDict, optimizer: torch.optim.Optimizer, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Return the schedule "constant" or "cosine" of a run whose epochs are steps."""
    schedulers = torch.optim.lr_scheduler
    if optim.schedule == "constant":
        return schedulers.ConstantLR(optimizer, factor=1.0)
    warmup = round(optim.warmup_epochs)
    start = optim.warmup_start_lr / optim.base_lr
    return schedulers.SequentialLR(
        optimizer,
        [
            schedulers.LinearLR(optimizer, start_factor=start, total_iters=warmup),
            schedulers.CosineAnnealingLR(optimizer, T_max=steps - warmup),
        ],
        milestones=[warmup],
    )


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
    state_dict = renamed({k: v.numpy() for k, v in model.state_dict().items()})
    params, stats = jax.tree.map(
        lambda x: jnp.asarray(x, dtype), state_dicts.from_torch(state_dict, config.model)
    )
    ema = None
    if config.ema.decay:
        ema = jax.tree.map(jnp.copy, {"params": params, "batch_stats": stats})
    state = TrainState(jnp.int32(0), params, stats, tx.init(params), ema)
    if dtype == "float64":
        # A schedule divides the count of steps: float32 of an int32, float64 of an int64.
        state = jax.tree.map(lambda x: x.astype(int) if x.dtype == jnp.int32 else x, state)
    return state


def float64_attention(query, key, value, bias=None):
    """f64[B, N, heads, C] -> f64[B, N, heads, C]: jax.nn's, whose softmax is always in float32."""
    assert query.dtype == jnp.float64
    logits = jnp.einsum("bqhc,bkhc->bhqk", query, key) / query.shape[-1] ** 0.5
    weights = jax.nn.softmax(logits if bias is None else logits + bias)
    return jnp.einsum("bhqk,bkhc->bqhc", weights, value)


def compiled_step(parts: StepParts, options=None):
    """The package's train_step, on one device."""
    return jax.jit(lambda state, batch: train_step(state, batch, parts), compiler_options=options)


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


def renamed(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return arrays under the names of `as_torch`: timm's for ViTs, else torchvision's."""
    names, _ = library_names.rename(arrays, origin="torchvision")
    return {names[key]: value for key, value in arrays.items()}


def as_torch(params, batch_stats, config: ConfigDict) -> dict[str, np.ndarray]:
    """Return our arrays under the names and in the layouts of torch."""
    return {
        k: v
        for k, v in state_dicts.to_torch(params, batch_stats, config.model).items()
        if not k.endswith("num_batches_tracked")
    }
