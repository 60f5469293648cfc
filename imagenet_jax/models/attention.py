"""Layers of transformers: patch embedding, multi-head attention, MLP, layer scale."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from imagenet_jax.models.windows import convolve

ZEROS = nnx.initializers.zeros_init()


def patch_conv(
    inputs: int,
    outputs: int,
    side: int,
    *,
    kernel_init: nnx.Initializer,
    dtype: jnp.dtype | None,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """Return a convolution that maps each patch of `side` x `side` pixels to `outputs` channels."""
    return nnx.Conv(
        inputs,
        outputs,
        (side, side),
        strides=side,
        padding="VALID",
        kernel_init=kernel_init,
        conv_general_dilated=convolve,
        dtype=dtype,
        rngs=rngs,
    )


class Mlp(nnx.Module):
    """Two linear layers with GELU (exact, as in torch) between them, and dropout after each."""

    def __init__(
        self,
        features: int,
        hidden: int,
        *,
        dropout: float = 0.0,
        kernel_init: nnx.Initializer,
        bias_init: nnx.Initializer = ZEROS,
        dtype: jnp.dtype | None = None,
        rngs: nnx.Rngs,
    ):
        make = partial(
            nnx.Linear, kernel_init=kernel_init, bias_init=bias_init, dtype=dtype, rngs=rngs
        )
        self.fc1, self.fc2 = make(features, hidden), make(hidden, features)
        self.dropout = nnx.Dropout(dropout)

    def __call__(
        self, x: jax.Array, *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """f[..., C] -> f[..., C]. Training draws dropout masks from `rngs.dropout`."""
        x = nnx.gelu(self.fc1(x), approximate=False)
        x = self.fc2(self.dropout(x, deterministic=not train, rngs=rngs))
        return self.dropout(x, deterministic=not train, rngs=rngs)


class Attention(nnx.Module):
    """Multi-head self-attention (Vaswani et al. 2017, arXiv:1706.03762).

    One linear layer computes queries, keys and values, concatenated in this order.
    """

    def __init__(
        self,
        features: int,
        heads: int,
        *,
        qkv_init: nnx.Initializer,
        proj_init: nnx.Initializer,
        dtype: jnp.dtype | None = None,
        rngs: nnx.Rngs,
    ):
        """`features` must be a multiple of `heads`; biases start at 0."""
        make = partial(nnx.Linear, dtype=dtype, rngs=rngs)
        self.qkv = make(features, 3 * features, kernel_init=qkv_init)
        self.proj = make(features, features, kernel_init=proj_init)
        self.heads = heads

    def __call__(self, x: jax.Array, bias: jax.Array | None = None) -> jax.Array:
        """f[B, N, C] -> f[B, N, C].

        `bias`, f[B or 1, heads, N, N], is added to the attention logits.
        """
        batch, tokens, features = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, features // self.heads)
        query, key, value = (qkv[:, :, i] for i in range(3))
        y = jax.nn.dot_product_attention(query, key, value, bias=bias)
        return self.proj(y.reshape(batch, tokens, features))


class LayerScale(nnx.Module):
    """A factor for each channel of a residual branch (Touvron et al. 2021, arXiv:2103.17239)."""

    def __init__(self, channels: int, value: float):
        """`value` is the initial factor."""
        self.gamma = nnx.Param(jnp.full((channels,), value, jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """f[..., C] -> f[..., C] in the dtype of x."""
        return x * self.gamma[...].astype(x.dtype)
