"""Vision Transformer (Dosovitskiy et al. 2020, arXiv:2010.11929) and its common variations.

Module names follow timm's vision_transformer.py. Fields of `config.model` give three forms:

- torchvision's vit_b_16, ...: the defaults. The class token and all patches have learned positions.
- DeiT (arXiv:2012.12877): init=timm, and drop_path above 0. DeiT III (arXiv:2204.07118) also has
  positions=learned_patches, layer_scale, and drop_path_form=constant.
- The simple ViT of Beyer et al. 2022 (arXiv:2205.01580; big_vision's models/vit.py): pool=mean,
  positions=sincos2d, head=mlp, init=big_vision. GELU is exact here; big_vision has its tanh
  approximation.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from imagenet_jax.config.fields import ON, Field
from imagenet_jax.errors import UserError
from imagenet_jax.models.attention import ZEROS, Attention, LayerScale, Mlp, patch_conv
from imagenet_jax.models.base import Activations, Family, Model, Path
from imagenet_jax.models.layers import (
    DROP_PATH,
    drop_branch,
    drop_path_rates,
    uniform_conv,
)
from imagenet_jax.models.norms import LayerNorm

EPSILON = 1e-6  # of layer norm, in all three forms; the library transformers has 1e-12
TEMPERATURE = 10_000.0  # of the sine and cosine embeddings


class Variant(NamedTuple):
    """Side of a patch in pixels, number of blocks, attention heads of each block.

    `head_channels` is the number of channels of each attention head at width 1.
    """

    patch: int
    depth: int
    heads: int
    head_channels: int = 64


VARIANTS = {
    "vit_ti16": Variant(16, 12, 3),
    "vit_s16": Variant(16, 12, 6),
    "vit_b16": Variant(16, 12, 12),
    "vit_b32": Variant(32, 12, 12),
    "vit_l16": Variant(16, 24, 16),
    "vit_l32": Variant(32, 24, 16),
    "vit_h14": Variant(14, 32, 16, 80),
}
DEEPEST = max(variant.depth for variant in VARIANTS.values())


_scaled = nnx.initializers.variance_scaling
_small, _tiny = nnx.initializers.normal(0.02), nnx.initializers.normal(1e-6)
_lecun, _xavier = nnx.initializers.lecun_normal(), nnx.initializers.xavier_uniform()


class Init(NamedTuple):
    """Initializers of each part; `patch` None: torch's default. Other biases start at 0."""

    patch: nnx.Initializer | None
    qkv: nnx.Initializer
    proj: nnx.Initializer
    mlp: nnx.Initializer
    mlp_bias: nnx.Initializer = ZEROS
    token: nnx.Initializer = ZEROS
    head: nnx.Initializer = ZEROS


INITS = {
    "torchvision": Init(
        patch=_scaled(1.0, "fan_in", "normal"),
        qkv=_xavier,
        proj=_scaled(1 / 3, "fan_in", "uniform"),  # torch's default
        mlp=_xavier,
        mlp_bias=_tiny,
    ),
    "timm": Init(patch=None, qkv=_small, proj=_small, mlp=_small, token=_tiny, head=_small),
    "big_vision": Init(
        patch=_lecun,
        qkv=_scaled(1.0, "fan_in", "uniform"),  # Xavier, for each of the three matrices
        proj=_xavier,
        mlp=_xavier,
        mlp_bias=_tiny,
    ),
}
FIELDS = {
    "image_size": Field(
        224, "Image side that learned positions are for; they are interpolated for other sizes",
        above=0,
    ),
    "pool": Field(
        "token", "What the head reads. token: the class token; mean: the mean of all patches",
        choices=("token", "mean"),
    ),
    "positions": Field(
        "learned", "Position embedding. learned_patches: none for the class token; sincos2d: sines "
        "and cosines of row and column", choices=("learned", "learned_patches", "sincos2d"),
    ),
    "head": Field(
        "linear", "mlp: a hidden layer with tanh before the last layer", choices=("linear", "mlp")
    ),
    "layer_scale": Field(
        0.0, "Initial value of layer scale (Touvron 2021); 0: no layer scale",
        at_least=0,
    ),
    "init": Field("torchvision", "Library whose initialization to use", choices=tuple(INITS)),
    "dropout": Field(
        0.0, "Dropout rate after the position embedding, attention and both layers of an MLP",
        at_least=0, below=1,
    ),
    "drop_path": DROP_PATH,
    "drop_path_form": Field(
        "linear", "constant: all blocks have the same probability (DeiT III)",
        choices=("linear", "constant"), read_by={"model.drop_path": ON},
    ),
}  # fmt: skip


class Block(nnx.Module):
    """Attention and an MLP, each after a layer norm and with a shortcut."""

    def __init__(
        self,
        features: int,
        heads: int,
        *,
        init: Init,
        dropout: float,
        rate: float,
        layer_scale: float,
        dtype: jnp.dtype | None,
        rngs: nnx.Rngs,
    ):
        """`rate` is the probability of dropping a branch of an image in training."""
        self.norm1 = LayerNorm(features, eps=EPSILON)
        self.attn = Attention(
            features, heads, qkv_init=init.qkv, proj_init=init.proj, dtype=dtype, rngs=rngs
        )
        self.ls1 = LayerScale(features, layer_scale) if layer_scale else None
        self.norm2 = LayerNorm(features, eps=EPSILON)
        self.mlp = Mlp(
            features,
            4 * features,
            dropout=dropout,
            kernel_init=init.mlp,
            bias_init=init.mlp_bias,
            dtype=dtype,
            rngs=rngs,
        )
        self.ls2 = LayerScale(features, layer_scale) if layer_scale else None
        self.dropout = nnx.Dropout(dropout)
        self.rate = rate

    def __call__(self, x: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        """f[B, N, C] -> f[B, N, C]; errors are those of `drop_branch`."""
        y = self.dropout(self.attn(self.norm1(x)), deterministic=not train, rngs=rngs)
        y = self.ls1(y) if self.ls1 else y
        x = x + drop_branch(y, self.rate, train=train, rngs=rngs)
        y = self.mlp(self.norm2(x), train=train, rngs=rngs)
        y = self.ls2(y) if self.ls2 else y
        return x + drop_branch(y, self.rate, train=train, rngs=rngs)


class VisionTransformer(Model):
    """Linear embedding of patches, transformer blocks, layer norm and a head."""

    def __init__(
        self, name: str, *, num_classes: int, width: float, image_size: int, pool: str,
        positions: str, head: str, layer_scale: float, init: str, dropout: float, drop_path: float,
        drop_path_form: str, dtype: jnp.dtype | None, rngs: nnx.Rngs,
    ):  # fmt: skip
        """`dtype` is the compute dtype of all but the last layer; None: that of the operands.

        `width` scales the channels of each attention head, and thereby all layers.

        Raises UserError if the channels do not divide into the four parts of sincos2d.
        """
        self.name = name
        patch, depth, heads, head_channels = VARIANTS[name]
        inits = INITS[init]
        features = heads * max(1, round(head_channels * width))
        if positions == "sincos2d" and (features % 4 or features < 8):
            raise UserError(
                "config.model.positions = 'sincos2d' needs a multiple of 4 channels, at least 8, "
                f"not {features}: use another config.model.width, such as 1.0"
            )
        proj = uniform_conv(3, features, patch, patch, dtype=dtype, rngs=rngs)
        if inits.patch is not None:
            proj = patch_conv(3, features, patch, kernel_init=inits.patch, dtype=dtype, rngs=rngs)
        self.patch_embed = nnx.Dict(proj=proj)
        normal = nnx.initializers.normal(features**-0.5 if init == "big_vision" else 0.02)

        def embedding(init: nnx.Initializer, count: int) -> nnx.Param[jax.Array]:
            return nnx.Param(init(rngs.params(), (1, count, features), jnp.float32))

        has_token = pool == "token"
        self.cls_token = embedding(inits.token, 1) if has_token else None
        count = (image_size // patch) ** 2 + (has_token and positions == "learned")
        self.pos_embed = embedding(normal, count) if positions != "sincos2d" else None
        self.dropout = nnx.Dropout(dropout)
        constant = drop_path_form == "constant"
        rates = [drop_path] * depth if constant else drop_path_rates(drop_path, depth)
        self.blocks: nnx.List[Block] = nnx.List(
            Block(
                features,
                heads,
                init=inits,
                dropout=dropout,
                rate=rate,
                layer_scale=layer_scale,
                dtype=dtype,
                rngs=rngs,
            )
            for rate in rates
        )
        self.norm = LayerNorm(features, eps=EPSILON)
        self.pre_logits = (
            nnx.Dict(fc=nnx.Linear(features, features, kernel_init=_lecun, rngs=rngs))
            if head == "mlp"
            else None
        )
        self.head = nnx.Linear(features, num_classes, kernel_init=inits.head, rngs=rngs)

    def activations(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None) -> Activations:
        self.require_pixels(images, VARIANTS[self.name].patch, multiple=True)
        x = self.patch_embed["proj"](images)
        rows, columns = x.shape[1:3]
        x = x.reshape(len(x), rows * columns, x.shape[-1])
        if self.pos_embed is None:
            positions = jnp.asarray(sincos2d(rows, columns, x.shape[-1]))
        else:
            positions = resize_positions(self.pos_embed[...], rows, columns)
        positions = positions.astype(x.dtype)
        before = positions.shape[1] - x.shape[1]  # 1 if the class token has a position, else 0
        x = x + positions[:, before:]
        if self.cls_token is not None:
            token = self.cls_token[...].astype(x.dtype)
            if before:
                token = token + positions[:, :1]
            x = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, x.shape[-1])), x], 1)
        x = self.dropout(x, deterministic=not train, rngs=rngs)
        yield "embedding", x
        for i, block in enumerate(self.blocks):
            x = self.run(block, x, train=train, rngs=rngs)
            yield f"block{i}", x
        # The mean over patches and the head are cheap: compute them in float32.
        x = self.norm(x).astype(jnp.promote_types(x.dtype, jnp.float32))
        x = jnp.mean(x, axis=1) if self.cls_token is None else x[:, 0]
        if self.pre_logits is not None:
            x = jnp.tanh(self.pre_logits["fc"](x))
        yield "logits", self.head(x)


def sincos2d(rows: int, columns: int, features: int) -> np.ndarray:
    """Return f64[1, rows * columns, features]: sin and cos of the column, then of the row.

    These are the embeddings of MoCo v3 (Chen et al. 2021, arXiv:2104.02057) and big_vision.
    """
    y, x = (grid.reshape(-1, 1) for grid in np.mgrid[:rows, :columns])
    frequencies = TEMPERATURE ** -np.linspace(0, 1, features // 4)
    angles = (x * frequencies, y * frequencies)
    return np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], 1)[None]


def resize_positions(positions: jax.Array, rows: int, columns: int) -> jax.Array:
    """f[1, T + N, C] of a square of N patches -> f[1, T + rows * columns, C].

    Interpolation is bicubic with antialiasing, as in timm's resample_abs_pos_embed. The class token
    keeps its embedding. It is present (T = 1) if the number of positions is not a square.
    """
    count = positions.shape[1]
    side = math.isqrt(count)
    tokens = count - side**2
    if (side, side) == (rows, columns):
        return positions
    grid = positions[:, tokens:].reshape(1, side, side, -1)
    grid = jax.image.resize(grid, (1, rows, columns, grid.shape[-1]), "cubic", antialias=True)
    return jnp.concatenate([positions[:, :tokens], grid.reshape(1, rows * columns, -1)], 1)


def _fit(path: Path, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Interpolate learned positions that were trained at another image size: see Family."""
    if path != ("pos_embed",) or array.ndim != 3 or array.shape[2] != shape[2]:
        return array
    (old, old_tokens), (new, new_tokens) = (
        (math.isqrt(size[1]), size[1] - math.isqrt(size[1]) ** 2) for size in (array.shape, shape)
    )
    if old_tokens != new_tokens or old_tokens > 1 or old == new:
        return array
    return np.asarray(resize_positions(jnp.asarray(array), new, new))


def identify(arrays: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return the ViT models that fit a state dict: see Family.

    The number of heads, and so the variant at a width other than 1, cannot be read from it.
    """
    kernel = arrays.get("patch_embed.proj.weight")
    if kernel is None or kernel.ndim != 4 or "blocks.0.attn.qkv.weight" not in arrays:
        return []
    blocks = {m[1] for key in arrays if (m := re.match(r"blocks\.(\d+)\.", key))}
    features, patch = len(kernel), kernel.shape[-1]
    form: dict[str, Any] = {
        "pool": "token" if "cls_token" in arrays else "mean",
        "positions": "sincos2d",
        "head": "mlp" if "pre_logits.fc.weight" in arrays else "linear",
        # The initial value is not stored; 1e-4 is that of DeiT III.
        "layer_scale": 1e-4 if "blocks.0.ls1.gamma" in arrays else 0.0,
    }
    if (positions := arrays.get("pos_embed")) is not None and positions.ndim == 3:
        side = math.isqrt(positions.shape[1])
        has_token = form["pool"] == "mean" or side**2 < positions.shape[1]
        form["positions"] = "learned" if has_token else "learned_patches"
        form["image_size"] = side * patch
    return [
        {"name": name, "width": features / (known.heads * known.head_channels), **form}
        for name, known in VARIANTS.items()
        if (known.patch, known.depth) == (patch, len(blocks)) and features % known.heads == 0
    ]


FAMILY = Family(
    model=VisionTransformer,
    variants=tuple(VARIANTS),
    fields=FIELDS,
    groups=(
        (("patch_embed",), ("cls_token",), ("pos_embed",)),
        *((("blocks", i),) for i in range(DEEPEST)),
        (("head",), ("norm",), ("pre_logits",)),
    ),
    first="patch_embed.proj",
    identify=identify,
    multiple=lambda name: VARIANTS[name].patch,
    fit=_fit,
)
