"""Norms that the model families share: batch norm, group norm and layer norm, as in torch."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from imagenet_jax.errors import UserError

Pool = Callable[[jax.Array], jax.Array]  # f[B, H, W, C] -> f[B, h, w, C]
GROUPS = 32  # of channels in group norm, as in its paper and in BiT


class BatchNorm(nnx.Module):
    """Batch norm (Ioffe & Szegedy 2015, arXiv:1502.03167) over all axes but the last.

    As in torch, and unlike in flax.nnx.BatchNorm, training normalizes with the biased variance of
    the batch, but the running variance averages the unbiased one, which is n / (n - 1) times
    larger. Statistics can therefore be exchanged with torch. In a jitted step with a sharded batch,
    they are over the global batch.

    With `images_per_group`, the batch is normalized in groups of that many consecutive images, as
    on devices that do not share statistics (Goyal et al. 2017, arXiv:1706.02677, section 2.3: 32
    images at every batch size). The running statistics average over the groups.

    Moments are computed in float32 or float64, in one pass (E[x^2] - E[x]^2) that XLA fuses into
    the operation that produces x.
    """

    def __init__(
        self,
        features: int,
        *,
        eps: float = 1e-5,
        momentum: float = 0.9,
        images_per_group: int = 0,
    ):
        """`momentum` is that of Flax: new = momentum * old + (1 - momentum) * batch.

        torch's default, 0.1, is 0.9 here. `images_per_group` 0: the whole batch is one group.
        """
        self.scale = nnx.Param(jnp.ones((features,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros((features,), jnp.float32))
        self.var = nnx.BatchStat(jnp.ones((features,), jnp.float32))
        self.eps, self.momentum = eps, momentum
        self.images_per_group = images_per_group

    def __call__(self, x: jax.Array, *, train: bool, max_pool: Pool | None = None) -> jax.Array:
        """f[B, ..., C] -> f[B, ..., C] in the dtype of x. Training updates the running statistics.

        With `max_pool`, return max_pool(norm(x)), but pool first and normalize fewer values.
        Normalization keeps the order of values where the scale is positive. It reverses the order
        where the scale is negative, so those channels are negated before they are pooled.

        Raises UserError in training if a channel has only one value, whose variance is undefined,
        or if the batch is not divisible by `images_per_group`.
        """
        scale, mean, var = self.scale[...], self.mean[...], self.var[...]
        if max_pool is not None:
            sign = jnp.where(scale < 0, -1.0, 1.0)
            x, scale, mean = x * sign.astype(x.dtype), scale * sign, mean * sign
        if train:
            grouped, n = self._grouped(x)
            wide = grouped.astype(jnp.promote_types(x.dtype, jnp.float32))
            axes = tuple(range(grouped.ndim - x.ndim, grouped.ndim - 1))
            mean = jnp.mean(wide, axes, keepdims=grouped.ndim > x.ndim)
            square = jnp.mean(jnp.square(wide), axes, keepdims=grouped.ndim > x.ndim)
            var = jnp.maximum(square - jnp.square(mean), 0.0)
            self._track(mean if max_pool is None else mean * sign, var, n)
        if max_pool is not None:
            x = max_pool(x)
        scale = scale * jax.lax.rsqrt(var + self.eps)
        shift = self.bias[...] - mean * scale
        grouped = self._grouped(x)[0] if train else x
        return (grouped * scale + shift).astype(x.dtype).reshape(x.shape)

    def _grouped(self, x: jax.Array) -> tuple[jax.Array, int]:
        """Return (x, values per channel in each group); several groups add a leading axis to x."""
        size = self.images_per_group or x.shape[0]
        if x.shape[0] % size:
            raise UserError(
                f"a batch of {x.shape[0]} images cannot be normalized in groups of "
                f"config.model.bn_group = {size}"
            )
        groups = x.shape[0] // size
        n = x.size // x.shape[-1] // groups
        # A leading axis of size 1 would keep XLA from compiling a plain sum.
        return (x if groups == 1 else x.reshape(groups, size, *x.shape[1:])), n

    def _track(self, mean: jax.Array, var: jax.Array, n: int) -> None:
        """Update the running statistics with those of groups of `n` values per channel."""
        if n < 2:
            raise UserError(
                "batch norm sees one value per channel (one image, reduced to 1x1): use a "
                "larger config.batch_size, config.augment.image_size or config.model.bn_group"
            )
        for average, value in ((self.mean, mean), (self.var, var * (n / (n - 1)))):
            value = jnp.mean(value.reshape(-1, value.shape[-1]), 0) if value.ndim > 1 else value
            average[...] = self.momentum * average[...] + (1 - self.momentum) * value


class GroupNorm(nnx.Module):
    """Group norm (Wu & He 2018, arXiv:1803.08494) with 32 groups of consecutive channels.

    Epsilon 1e-5 is the default of torch and the value in BiT.
    """

    def __init__(self, features: int):
        """Create the norm. Raises UserError unless `features` is a multiple of 32."""
        if features % GROUPS:
            raise UserError(
                f"group norm needs a multiple of {GROUPS} channels, not {features}: use a larger "
                "config.model.width, such as 1.0"
            )
        self.scale = nnx.Param(jnp.ones((features,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """f[B, H, W, C] -> f[B, H, W, C] in the dtype of x."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        grouped = wide.reshape(x.shape[0], -1, GROUPS, x.shape[-1] // GROUPS)
        mean = jnp.mean(grouped, (1, 3), keepdims=True)
        var = jnp.mean(jnp.square(grouped - mean), (1, 3), keepdims=True)
        normal = ((grouped - mean) * jax.lax.rsqrt(var + 1e-5)).reshape(x.shape)
        return (normal * self.scale[...] + self.bias[...]).astype(x.dtype)


class LayerNorm(nnx.Module):
    """Layer norm (Ba et al. 2016, arXiv:1607.06450) over the last axis.

    Moments are computed in float32 or float64.
    """

    def __init__(self, features: int, *, eps: float = 1e-5):
        """`eps` is added to the biased variance. torch's default is 1e-5; most models use 1e-6."""
        self.scale = nnx.Param(jnp.ones((features,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """f[..., C] -> f[..., C] in the dtype of x."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        centered = wide - jnp.mean(wide, -1, keepdims=True)
        var = jnp.mean(jnp.square(centered), -1, keepdims=True)
        normal = centered * jax.lax.rsqrt(var + self.eps)
        return (normal * self.scale[...] + self.bias[...]).astype(x.dtype)


# Products of small float32 matrices are cheap. By default, TPUs round their inputs to bfloat16.
_matmul = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def normalize_products(
    norms: Sequence[BatchNorm], xs: Sequence[jax.Array], kernels: Sequence[jax.Array]
) -> jax.Array:
    """Return the sum of `norm(x @ kernel, train=True)`, without computing any `x @ kernel`.

    All norms have the same `images_per_group`.
    """
    grouped, counts = zip(
        *(norm._grouped(x) for norm, x in zip(norms, xs, strict=True)), strict=True
    )
    add = partial(product_norms, eps=tuple(norm.eps for norm in norms))
    if grouped[0].ndim > xs[0].ndim:
        add = jax.vmap(add, in_axes=(0, None, None, None))
    scales, biases = [norm.scale[...] for norm in norms], [norm.bias[...] for norm in norms]
    out, moments = add(list(grouped), list(kernels), scales, biases)
    for norm, (mean, var), n in zip(norms, moments, counts, strict=True):
        norm._track(mean, var, n)
    return out.reshape(*xs[0].shape[:-1], -1)


def product_norms(
    xs: list[jax.Array],
    kernels: list[jax.Array],
    scales: list[jax.Array],
    biases: list[jax.Array],
    eps: tuple[float, ...],
) -> tuple[jax.Array, list[tuple[jax.Array, jax.Array]]]:
    """Return the sum of the batch norms of `x @ kernel` over all axes but the last, in training.

    A step of ResNet-50 is limited by memory bandwidth. Its widest arrays are the outputs of 1x1
    convolutions, which batch norm reads twice and the backward pass once more. But y = x W is
    linear, so the mean and variance of y follow from the mean and covariance of x, which has fewer
    channels. The normalized output is computed directly, and y is never stored. Both passes read
    and write nothing as wide as y except that output and its gradient.

    Let x have n rows (all pixels of the batch), let S be the covariance matrix of its C channels,
    W[C, K] the kernel, and g and b the scale and bias of the norm:

        u = x - mean(x)         S = u'u / n             var(y) = diag(W'S W)
        r = 1 / sqrt(var(y) + eps)                      a = g r
        out = u (W a) + b

    and with d, the gradient of the loss with respect to `out`:

        G = u'd                 db = sum(d)             dg = r diag(W'G)
        k = a r dg / n          dW = G a - n S W k      dx = d (W a)' - u (W k W') - db (W a)' / n

    x is centered first because a variance far below the squared mean would lose its digits. The sum
    of several outputs is one product, of all channels of u with all rows of W a. Of a residual
    branch and its shortcut, only the sum is stored.

    Args:
      xs: f[..., C] each, in the compute dtype.
      kernels: f[C, K] each.
      scales, biases: f[K] each.
      eps: added to the variances.

    Returns:
      The sum f[..., K] in the dtype of x, and the mean and biased variance f[K] of each
      `x @ kernel` in float32 or float64, through which no gradients flow.
    """
    return _product_norms(xs, kernels, scales, biases, eps)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _product_norms(xs, kernels, scales, biases, eps):
    return _products_forward(xs, kernels, scales, biases, eps)[0]


def _products_forward(xs, kernels, scales, biases, eps):
    moments, weights, saved = [], [], []
    for x, kernel, scale, epsilon in zip(xs, kernels, scales, eps, strict=True):
        wide = jnp.promote_types(x.dtype, jnp.float32)
        n = x.size // x.shape[-1]
        mean = jnp.mean(x, range(x.ndim - 1), dtype=wide)
        centered = (x - mean).astype(x.dtype)
        moments_kernel = _matmul(_sum_of_products(centered, centered) / n, kernel)  # S W
        var = jnp.sum(kernel * moments_kernel, 0)
        root = jax.lax.rsqrt(var + epsilon)
        moments.append((_matmul(mean, kernel), var))
        weights.append((kernel * scale * root).astype(x.dtype))
        saved.append((centered, kernel, scale, moments_kernel, root))
    centered = jnp.concatenate([first for first, *_ in saved], -1)
    out = (centered @ jnp.concatenate(weights) + sum(biases)).astype(centered.dtype)
    return (out, moments), saved


def _products_backward(eps, saved, gradients):
    d = gradients[0]  # the moments have none
    n = d.size // d.shape[-1]
    wide = jnp.promote_types(d.dtype, jnp.float32)
    d_bias = jnp.sum(d, range(d.ndim - 1), dtype=wide)
    found = []
    for centered, kernel, scale, moments_kernel, root in saved:
        products = _sum_of_products(centered, d)  # G
        d_scale = root * jnp.sum(kernel * products, 0)
        factor = scale * root  # a
        correction = factor * root * d_scale / n  # k
        d_kernel = products * factor - n * moments_kernel * correction
        forward = (kernel * factor).astype(d.dtype)  # W a, as the forward pass rounds it
        d_x = (
            d @ forward.T
            - centered @ _matmul(kernel * correction, kernel.T).astype(d.dtype)
            - jnp.sum(forward * d_bias, 1) / n
        )
        found.append((d_x.astype(d.dtype), d_kernel, d_scale, d_bias))
    return tuple(map(list, zip(*found, strict=True)))


_product_norms.defvjp(_products_forward, _products_backward)


def _sum_of_products(a: jax.Array, b: jax.Array) -> jax.Array:
    """f[..., C], f[..., K] -> f[C, K]: the sum of a_i b_j over all rows, in float32 or float64."""
    rows = tuple(range(a.ndim - 1))
    wide = jnp.promote_types(a.dtype, jnp.float32)
    return jax.lax.dot_general(a, b, ((rows, rows), ((), ())), preferred_element_type=wide)
