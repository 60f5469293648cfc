"""ConvNeXt (Liu et al. 2022, arXiv:2201.03545).

Semantics, initial weights and module names follow torchvision.models.convnext; arrays are NHWC.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from imagenet_jax.models.attention import Mlp, patch_conv
from imagenet_jax.models.base import Activations, Family, Model, Path, count_blocks, count_outputs
from imagenet_jax.models.layers import (
    DROP_PATH,
    FOUR_STAGES,
    drop_branch,
    drop_path_rates,
    global_average_pool,
)
from imagenet_jax.models.norms import LayerNorm
from imagenet_jax.models.windows import convolve

# name -> (blocks in each of the four stages, channels of the first stage); each stage doubles them
VARIANTS = {
    "convnext_tiny": ((3, 3, 9, 3), 96),
    "convnext_small": ((3, 3, 27, 3), 96),
    "convnext_base": ((3, 3, 27, 3), 128),
    "convnext_large": ((3, 3, 27, 3), 192),
}
STRIDE = 32  # of the whole network; without padding, smaller images have no output
LAYER_SCALE = 1e-6  # initial value
# torch.nn.init.trunc_normal_ truncates at -2 and 2, which are 100 standard deviations.
INIT = nnx.initializers.normal(0.02)
EPSILON = 1e-6  # of layer norm
# Indices in torchvision's nn.Sequential, which also count permutations and GELU.
_IN_BLOCK = {"conv": "0", "norm": "2", "fc1": "3", "fc2": "5"}


class Block(nnx.Module):
    """Depthwise 7x7 convolution, layer norm, MLP with GELU, layer scale, and a shortcut."""

    def __init__(self, channels: int, rate: float, *, dtype: jnp.dtype | None, rngs: nnx.Rngs):
        """`rate` is the probability of dropping the branch of an image in training."""
        self.conv = nnx.Conv(
            channels,
            channels,
            (7, 7),
            padding=3,
            feature_group_count=channels,
            kernel_init=INIT,
            conv_general_dilated=convolve,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = LayerNorm(channels, eps=EPSILON)
        self.mlp = Mlp(channels, 4 * channels, kernel_init=INIT, dtype=dtype, rngs=rngs)
        self.layer_scale = nnx.Param(jnp.full((channels,), LAYER_SCALE, jnp.float32))
        self.rate = rate

    def __call__(self, x: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        """f[B, H, W, C] -> f[B, H, W, C]; errors are those of `drop_branch`."""
        y = self.mlp(self.norm(self.conv(x)))
        y = y * self.layer_scale[...].astype(y.dtype)
        return x + drop_branch(y, self.rate, train=train, rngs=rngs)


class ConvNeXt(Model):
    """4x4 patches, four stages with 2x2 convolutions between, pool, norm, linear classifier."""

    def __init__(
        self, name: str, *, num_classes: int, width: float, drop_path: float,
        dtype: jnp.dtype | None, rngs: nnx.Rngs,
    ):  # fmt: skip
        """`dtype` is the compute dtype of hidden layers; None: that of images and parameters."""
        self.name = name
        depths, channels = VARIANTS[name]
        channels = round(channels * width)
        rates = drop_path_rates(drop_path, sum(depths))
        norm = partial(LayerNorm, eps=EPSILON)
        patches = partial(patch_conv, kernel_init=INIT, dtype=dtype, rngs=rngs)
        features: list[Any] = [nnx.List([patches(3, channels, 4), norm(channels)])]
        for i, depth in enumerate(depths):
            if i:
                downsample = [norm(channels), patches(channels, 2 * channels, 2)]
                features.append(nnx.List(downsample))
                channels *= 2
            blocks = [Block(channels, next(rates), dtype=dtype, rngs=rngs) for _ in range(depth)]
            features.append(nnx.List(blocks))
        self.features: nnx.List[Any] = nnx.List(features)
        self.norm = norm(channels)
        self.head = nnx.Linear(channels, num_classes, kernel_init=INIT, rngs=rngs)

    def activations(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None) -> Activations:
        self.require_pixels(images, STRIDE)
        x = images
        for i in range(0, len(self.features), 2):
            first, second = self.features[i]
            x = second(first(x))
            if i == 0:
                yield "stem", x
            for block in self.features[i + 1]:
                x = self.run(block, x, train=train, rngs=rngs)
            yield f"stage{i // 2 + 1}", x
        x = global_average_pool(x)
        yield "logits", self.head(self.norm(x))


def _torch_name(name: str, path: Path) -> str:
    if path == ("norm",):
        return "classifier.0"
    if path == ("head",):
        return "classifier.2"
    *stage, layer = path
    if layer in _IN_BLOCK:
        stage = [*path[:3], "block"]
        layer = _IN_BLOCK[layer]
    return ".".join(map(str, (*stage, layer)))


def identify(arrays: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return the ConvNeXt models that fit a state dict: see Family.

    The three larger variants differ only in width.
    """
    depths = count_blocks(arrays, r"features\.([1357])\.(\d+)\.block\.0\.weight$")
    channels = count_outputs(arrays, "features.0.0.weight")
    return [
        {"name": name, "width": channels / first}
        for name, (known, first) in VARIANTS.items()
        if known == depths and channels
    ]


FAMILY = Family(
    model=ConvNeXt,
    variants=tuple(VARIANTS),
    fields={"drop_path": DROP_PATH},
    groups=FOUR_STAGES,
    first="features.0.0",
    identify=identify,
    torch_name=_torch_name,
)
