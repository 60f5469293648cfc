"""Swin Transformer (Liu et al. 2021, arXiv:2103.14030).

Semantics, initial weights and module names follow torchvision.models.swin_transformer; arrays are
NHWC. As there, sides that are not a multiple of the window, or odd before a merge, are padded with
zeros.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from imagenet_jax.models.attention import Attention, Mlp
from imagenet_jax.models.base import Activations, Family, Model, Path, count_blocks
from imagenet_jax.models.layers import (
    DROP_PATH,
    FOUR_STAGES,
    drop_branch,
    drop_path_rates,
    global_average_pool,
    uniform_conv,
)
from imagenet_jax.models.norms import LayerNorm

# name -> (blocks in each of the four stages, attention heads in each)
VARIANTS = {
    "swin_t": ((2, 2, 6, 2), (3, 6, 12, 24)),
    "swin_s": ((2, 2, 18, 2), (3, 6, 12, 24)),
    "swin_b": ((2, 2, 18, 2), (4, 8, 16, 32)),
}
PATCH, WINDOW = 4, 7  # pixels, patches
HEAD_CHANNELS = 32  # channels of each attention head
MASKED = -100.0  # added to attention logits of pixels that are not neighbors in the image
# torch.nn.init.trunc_normal_ truncates at -2 and 2, which are 100 standard deviations.
INIT = nnx.initializers.normal(0.02)


class WindowAttention(Attention):
    """Self-attention in 7x7 windows, shifted by `shift`, with relative position bias."""

    def __init__(
        self, channels: int, heads: int, shift: int, *, dtype: jnp.dtype | None, rngs: nnx.Rngs
    ):
        super().__init__(channels, heads, qkv_init=INIT, proj_init=INIT, dtype=dtype, rngs=rngs)
        table = INIT(rngs.params(), ((2 * WINDOW - 1) ** 2, heads), jnp.float32)
        self.relative_position_bias_table = nnx.Param(table)
        self.shift = shift

    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]
        """f[B, H, W, C] -> f[B, H, W, C]."""
        height, width = x.shape[1:3]
        x = jnp.pad(x, ((0, 0), (0, -height % WINDOW), (0, -width % WINDOW), (0, 0)))
        batch, rows, columns, channels = x.shape
        # A side with a single window is not shifted.
        shifts = tuple(self.shift if side > WINDOW else 0 for side in (rows, columns))
        x = jnp.roll(x, tuple(-shift for shift in shifts), (1, 2))
        grid = (batch, rows // WINDOW, WINDOW, columns // WINDOW, WINDOW, channels)
        windows = x.reshape(grid).swapaxes(2, 3).reshape(batch, -1, WINDOW**2, channels)
        bias = self.relative_position_bias_table[...][position_index()]
        bias = bias.reshape(1, WINDOW**2, WINDOW**2, self.heads).transpose(0, 3, 1, 2)
        if any(shifts):
            bias = bias + window_mask(rows, columns, shifts)[:, None]
        windows = jax.vmap(partial(super().__call__, bias=bias))(windows)  # over images
        x = windows.reshape(batch, grid[1], grid[3], WINDOW, WINDOW, channels).swapaxes(2, 3)
        x = jnp.roll(x.reshape(batch, rows, columns, channels), shifts, (1, 2))
        return x[:, :height, :width]


def position_index() -> np.ndarray:
    """Return i64[49 * 49]: the row of the bias table for each query and key of a window."""
    places = np.stack(np.meshgrid(*2 * [np.arange(WINDOW)], indexing="ij"), -1).reshape(-1, 2)
    down, right = np.moveaxis(places[:, None] - places[None] + WINDOW - 1, 2, 0)
    return (down * (2 * WINDOW - 1) + right).reshape(-1)


def window_mask(rows: int, columns: int, shifts: tuple[int, ...]) -> np.ndarray:
    """Return f32[windows, 49, 49]: MASKED if the shift brought query and key together, else 0."""

    def parts(side: int, shift: int) -> np.ndarray:
        """Return i64[side]: 0 before the last window, 1 and 2 in the two parts of the last."""
        place = np.arange(side)
        # Without a shift, the last window is one part.
        return (place >= side - WINDOW).astype(int) + ((place >= side - shift) & (shift > 0))

    part = 3 * parts(rows, shifts[0])[:, None] + parts(columns, shifts[1])
    part = part.reshape(rows // WINDOW, WINDOW, columns // WINDOW, WINDOW).swapaxes(1, 2)
    part = part.reshape(-1, WINDOW**2)
    return np.where(part[:, :, None] == part[:, None], 0, MASKED).astype(np.float32)


class Block(nnx.Module):
    """Window attention and an MLP with GELU, each after a norm and with a shortcut."""

    def __init__(
        self,
        channels: int,
        heads: int,
        shift: int,
        rate: float,
        *,
        dtype: jnp.dtype | None,
        rngs: nnx.Rngs,
    ):
        """`rate` is the probability of dropping a branch of an image in training."""
        self.norm1 = LayerNorm(channels)
        self.attn = WindowAttention(channels, heads, shift, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(channels)
        self.mlp = Mlp(channels, 4 * channels, kernel_init=INIT, dtype=dtype, rngs=rngs)
        self.rate = rate

    def __call__(self, x: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        """f[B, H, W, C] -> f[B, H, W, C]; errors are those of `drop_branch`."""
        drop = partial(drop_branch, rate=self.rate, train=train, rngs=rngs)
        x = x + drop(self.attn(self.norm1(x)))
        return x + drop(self.mlp(self.norm2(x)))


class PatchMerging(nnx.Module):
    """Concatenate the pixels of each 2x2 patch; then a norm, and a linear layer to 2 C channels."""

    def __init__(self, channels: int, *, dtype: jnp.dtype | None, rngs: nnx.Rngs):
        self.norm = LayerNorm(4 * channels)
        self.reduction = nnx.Linear(
            4 * channels, 2 * channels, use_bias=False, kernel_init=INIT, dtype=dtype, rngs=rngs
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """f[B, H, W, C] -> f[B, ceil(H / 2), ceil(W / 2), 2 C]."""
        x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
        pixels = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]  # down first
        return self.reduction(self.norm(jnp.concatenate(pixels, -1)))


class SwinTransformer(Model):
    """4x4 patches, four stages with patch merging between, norm, pool, linear classifier."""

    def __init__(
        self, name: str, *, num_classes: int, width: float, drop_path: float,
        dtype: jnp.dtype | None, rngs: nnx.Rngs,
    ):  # fmt: skip
        """`dtype` is the compute dtype of hidden layers; None: that of images and parameters.

        `width` scales the channels of each head, so that heads stay equal.
        """
        self.name = name
        depths, heads = VARIANTS[name]
        channels = heads[0] * max(1, round(HEAD_CHANNELS * width))
        rates = drop_path_rates(drop_path, sum(depths))
        stem = nnx.Dict(
            conv=uniform_conv(3, channels, PATCH, PATCH, dtype=dtype, rngs=rngs),
            norm=LayerNorm(channels),
        )
        features: list[Any] = [stem]
        for i, depth in enumerate(depths):
            if i:
                features.append(PatchMerging(channels, dtype=dtype, rngs=rngs))
                channels *= 2
            blocks = [
                Block(
                    channels,
                    heads[i],
                    WINDOW // 2 if j % 2 else 0,
                    next(rates),
                    dtype=dtype,
                    rngs=rngs,
                )
                for j in range(depth)
            ]
            features.append(nnx.List(blocks))
        self.features: nnx.List[Any] = nnx.List(features)
        self.norm = LayerNorm(channels)
        self.head = nnx.Linear(channels, num_classes, kernel_init=INIT, rngs=rngs)

    def activations(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None) -> Activations:
        self.require_pixels(images, PATCH)
        stem, *rest = self.features
        x = stem.norm(stem.conv(images))
        yield "stem", x
        for i in range(4):
            if i:
                x = rest[2 * i - 1](x)
            for block in rest[2 * i]:
                x = self.run(block, x, train=train, rngs=rngs)
            yield f"stage{i + 1}", x
        x = self.norm(x)
        x = global_average_pool(x)
        yield "logits", self.head(x)


# Indices in torchvision's nn.Sequential, which also count permutations, GELU and dropout.
_PLACES = {"fc1": "0", "fc2": "3", "conv": "0"}


def _torch_name(name: str, path: Path) -> str:
    if path == ("features", 0, "norm"):
        return "features.0.2"
    return ".".join(_PLACES.get(str(key), str(key)) for key in path)


def identify(arrays: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return the Swin Transformer models that fit a state dict: see Family."""
    key = "features.1.0.attn.relative_position_bias_table"
    if key not in arrays or arrays[key].ndim != 2 or "features.0.2.weight" not in arrays:
        return []
    depths = count_blocks(arrays, r"features\.([1357])\.(\d+)\.norm1\.weight$")
    heads, channels = arrays[key].shape[1], len(arrays["features.0.2.weight"])
    return [
        {"name": name, "width": channels / (HEAD_CHANNELS * heads)}
        for name, (known, known_heads) in VARIANTS.items()
        if (known, known_heads[0]) == (depths, heads)
    ]


def _constants(name: str) -> dict[str, np.ndarray]:
    """Return the buffers of torchvision's model, which are no weights."""
    return {
        f"features.{2 * i + 1}.{j}.attn.relative_position_index": position_index()
        for i, depth in enumerate(VARIANTS[name][0])
        for j in range(depth)
    }


FAMILY = Family(
    model=SwinTransformer,
    variants=tuple(VARIANTS),
    fields={"drop_path": DROP_PATH},
    groups=FOUR_STAGES,
    constants=_constants,
    first="features.0.0",
    identify=identify,
    torch_name=_torch_name,
)
