"""Weight standardisation (Qiao et al. 2019, arXiv:1903.10520) as BiT uses it."""

import jax
import jax.numpy as jnp
from flax import nnx

# Added to the variance, which is biased: as in BiT's published code (Kolesnikov et al. 2020,
# arXiv:1912.11370). Qiao et al. add 1e-5 to an unbiased standard deviation.
EPSILON = 1e-10


def standardize(kernel: jax.Array) -> jax.Array:
    """f[H, W, I, O] -> f[H, W, I, O]: mean 0 and variance 1 over H, W, I of each output."""
    mean = jnp.mean(kernel, (0, 1, 2), keepdims=True)
    centred = kernel - mean
    variance = jnp.mean(jnp.square(centred), (0, 1, 2), keepdims=True)
    return centred * jax.lax.rsqrt(variance + EPSILON)


class StandardizedConv(nnx.Conv):
    """nnx.Conv without a bias whose kernel is standardised, in its own precision, at each call."""

    def __call__(self, inputs: jax.Array) -> jax.Array:  # type: ignore[override]
        """f[B, H, W, I] -> f[B, H', W', O] in `dtype`, or in the operands' common type."""
        kernel = standardize(self.kernel[...])
        dtype = self.dtype or jnp.promote_types(inputs.dtype, kernel.dtype)
        side = ((self.padding, self.padding),) * 2
        strides = (self.strides, self.strides) if isinstance(self.strides, int) else self.strides
        return jax.lax.conv_general_dilated(
            inputs.astype(dtype),
            kernel.astype(dtype),
            window_strides=strides,  # type: ignore[arg-type]
            padding=side,  # type: ignore[arg-type]
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
