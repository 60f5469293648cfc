"""Batch norm of a 1x1 convolution, computed from the second moments of its input.

A step of a ResNet-50 waits for memory, and its widest arrays are outputs of 1x1 convolutions, which
batch norm reads twice and the backward pass once more. But y = x W is linear: mean and variance of
y follow from those of x, which has a fraction of the channels. So the normalized output is written
directly, and y never exists. Neither pass reads or writes anything as wide except that output and
its gradient.

With x of n rows (all pixels of the batch), S the covariance of its C channels, W[C, K] the kernel,
g and b the scale and bias of the norm:

    u = x - mean(x)         S = u'u / n             var(y) = diag(W'S W)
    r = 1 / sqrt(var(y) + eps)                      a = g r
    out = u (W a) + b

and with d, the gradient of the loss by `out`:

    G = u'd                 db = sum(d)             dg = r diag(W'G)
    k = a r dg / n          dW = G a - n S W k      dx = d (W a)' - u (W k W') - db (W a)' / n

Centering x first keeps variances accurate that are far below the squared mean.
"""

from functools import partial

import jax
import jax.numpy as jnp

# The products of small float32 matrices cost little; by default TPUs would round their inputs.
_matmul = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def product_norm(
    x: jax.Array, kernel: jax.Array, scale: jax.Array, bias: jax.Array, eps: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return batch norm of `x @ kernel` over all axes but the last, in training.

    Args:
      x: f[..., C], in the dtype of the computation.
      kernel: f[C, K].
      scale, bias: f[K].
      eps: added to the variance.

    Returns:
      The output f[..., K] in the dtype of x; mean and biased variance f[K] of `x @ kernel` in
      float32 or wider. No gradients flow through mean and variance.
    """
    out, mean, var = _product_norm(x, kernel, scale, bias, eps)
    return out, jax.lax.stop_gradient(mean), jax.lax.stop_gradient(var)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _product_norm(x, kernel, scale, bias, eps):
    return _forward(x, kernel, scale, bias, eps)[0]


def _forward(x, kernel, scale, bias, eps):
    wide = jnp.promote_types(x.dtype, jnp.float32)
    n = x.size // x.shape[-1]
    mean = jnp.mean(x, range(x.ndim - 1), dtype=wide)
    centered = (x - mean).astype(x.dtype)
    moments_kernel = _matmul(_sum_of_products(centered, centered) / n, kernel)  # S W
    var = jnp.sum(kernel * moments_kernel, 0)
    root = jax.lax.rsqrt(var + eps)
    out = (centered @ (kernel * scale * root).astype(x.dtype) + bias).astype(x.dtype)
    return (out, _matmul(mean, kernel), var), (centered, kernel, scale, moments_kernel, root)


def _backward(eps, saved, gradients):
    centered, kernel, scale, moments_kernel, root = saved
    d = gradients[0]
    n = d.size // d.shape[-1]
    wide = jnp.promote_types(d.dtype, jnp.float32)
    d_bias = jnp.sum(d, range(d.ndim - 1), dtype=wide)
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
    return d_x.astype(d.dtype), d_kernel, d_scale, d_bias


_product_norm.defvjp(_forward, _backward)


def _sum_of_products(a: jax.Array, b: jax.Array) -> jax.Array:
    """f[..., C], f[..., K] -> f[C, K]: the sum of a_i b_j over all rows, in float32 or wider."""
    rows = tuple(range(a.ndim - 1))
    wide = jnp.promote_types(a.dtype, jnp.float32)
    return jax.lax.dot_general(a, b, ((rows, rows), ((), ())), preferred_element_type=wide)
