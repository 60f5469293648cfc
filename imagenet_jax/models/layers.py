"""Layers that the model families share: convolutions, pools, drop path, initializers."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from imagenet_jax.config.fields import Field
from imagenet_jax.models.norms import BatchNorm
from imagenet_jax.models.windows import convolve

# Config fields of every family with batch norm.
BN_GROUP = Field(
    0, "Images that batch norm sees together in training; 0: the whole batch", at_least=0
)
NORM_IMPL = Field(
    "auto", "moments: compute a 1x1 convolution and its batch norm in one pass, from the second "
    "moments of its input, where that saves memory; plain: one after the other; auto: moments on "
    "GPUs and TPUs, plain on CPUs. Results differ by rounding",
    choices=("auto", "plain", "moments"), operational=True,
)  # fmt: skip
DROP_PATH = Field(
    0.0, "Probability to skip the last block in training; it rises linearly from 0 at the first "
    "block", at_least=0, below=1, aliases=("drop_path_rate", "stochastic_depth"),
)  # fmt: skip
# Layer groups of a network whose `features` are a stem and four stages, each after the first behind
# a layer that shrinks the image, and whose `norm` comes before the `head`.
FOUR_STAGES = (
    (("features", 0),),
    (("features", 1),),
    (("features", 2), ("features", 3)),
    (("features", 4), ("features", 5)),
    (("features", 6), ("features", 7), ("norm",)),
    (("head",),),
)
STANDARDIZATION_EPSILON = 1e-10
# He et al. 2015, arXiv:1502.01852, over the fan-out, as in torchvision.
HE_NORMAL = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


@jax.custom_jvp
def relu(x: jax.Array) -> jax.Array:
    """max(x, 0), elementwise. Its gradient reads the output, so that x need not be kept for it."""
    return jnp.maximum(x, 0)


# Not output > 0, which XLA would rewrite as x > 0.
relu.defjvps(lambda tangent, output, x: jnp.where(output != 0, tangent, 0))


class ConvNorm(NamedTuple):
    """A convolution and the norm of its output, the building block of convolutional networks.

    This is not a module: a model stores the two under the names that torch has for them, such as
    conv1 and bn1, so that parameters have the same paths as in torch's state dicts.
    """

    conv: nnx.Conv
    norm: BatchNorm | None

    @classmethod
    def make(
        cls,
        inputs: int,
        outputs: int,
        size: int | tuple[int, int],
        stride: int = 1,
        *,
        padding: int | str | None = None,
        norm: bool = True,
        bias: bool = False,
        groups: int = 1,
        eps: float = 1e-5,
        momentum: float = 0.9,
        bn_group: int = 0,
        norm_impl: str = "plain",
        kernel_init: nnx.Initializer = HE_NORMAL,
        dtype: jnp.dtype | None = None,
        rngs: nnx.Rngs,
    ) -> "ConvNorm":
        """Return a convolution, by default with He's initial weights, and batch norm if `norm`.

        Args:
          size: of the kernel; one number is that of a square.
          padding: pixels on each side; None: size // 2, which keeps the size at stride 1; "SAME":
            TensorFlow's, which pads a strided convolution more at the bottom and right.
          groups: of channels that are convolved apart; `inputs` of them: a depthwise convolution.
          eps, momentum, bn_group: of the norm, see BatchNorm.
          norm_impl: "plain" or "moments".
          dtype: of the computation; None: that of images and parameters.
        """
        height, width = (size, size) if isinstance(size, int) else size
        # Symmetric, as in torch.
        sides = (padding, padding) if isinstance(padding, int) else (height // 2, width // 2)
        pointwise = (height, width, groups) == (1, 1, 1) and sides == (0, 0)
        as_product = norm_impl == "moments" and norm and pointwise and not bias
        conv = (PointwiseConv if as_product else nnx.Conv)(
            inputs,
            outputs,
            (height, width),
            strides=stride,
            padding=padding if isinstance(padding, str) else tuple((s, s) for s in sides),
            feature_group_count=groups,
            use_bias=bias,
            kernel_init=kernel_init,
            conv_general_dilated=convolve,
            dtype=dtype,
            rngs=rngs,
        )
        if not norm:
            return cls(conv, None)
        return cls(conv, BatchNorm(outputs, eps=eps, momentum=momentum, images_per_group=bn_group))

    def __call__(
        self,
        x: jax.Array,
        *,
        train: bool,
        activation: Callable[[jax.Array], jax.Array] | None = relu,
    ) -> jax.Array:
        """f[B, H, W, I] -> f[B, h, w, O]; training uses and updates batch statistics."""
        if self.norm is None:
            x = self.conv(x)
        elif train and isinstance(self.conv, PointwiseConv) and self.conv.widens:
            x = self.norm.of_product(*self.conv.operands(x))
        else:
            x = self.norm(self.conv(x), train=train)
        return x if activation is None else activation(x)


class PointwiseConv(nnx.Conv):
    """nnx.Conv of size 1x1 without a bias, as a matrix product.

    XLA fuses a matrix product with more of its neighbors than a convolution.

    Attributes:
      subsample: called as subsample(x, stride=2), returns the pixels to multiply.
    """

    subsample: Callable[..., jax.Array] = staticmethod(
        lambda x, *, stride: x[:, ::stride, ::stride]
    )

    @property
    def widens(self) -> bool:
        """Whether the output, which moments of the input save, is at least as wide as the input."""
        return self.out_features >= self.in_features

    def operands(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the pixels f[B, h, w, I] to multiply, in the compute dtype, and kernel f[I, O]."""
        stride = self.strides
        assert isinstance(stride, int)  # ConvNorm.make, which makes these, gives one number
        dtype = self.dtype or jnp.promote_types(x.dtype, self.kernel.dtype)
        x = x.astype(dtype)
        return (x if stride == 1 else self.subsample(x, stride=stride)), self.kernel[0, 0]

    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]
        """f[B, H, W, I] -> f[B, h, w, O]."""
        pixels, kernel = self.operands(x)
        return pixels @ kernel.astype(pixels.dtype)


def standardize(kernel: jax.Array) -> jax.Array:
    """f[H, W, I, O] -> f[H, W, I, O]: mean 0 and variance 1 over H, W, I of each output.

    Weight standardization (Qiao et al. 2019, arXiv:1903.10520) as in BiT's published code
    (Kolesnikov et al. 2020, arXiv:1912.11370): 1e-10 is added to the biased variance, while Qiao
    et al. add 1e-5 to the unbiased standard deviation.
    """
    centered = kernel - jnp.mean(kernel, (0, 1, 2), keepdims=True)
    variance = jnp.mean(jnp.square(centered), (0, 1, 2), keepdims=True)
    return centered * jax.lax.rsqrt(variance + STANDARDIZATION_EPSILON)


class StandardizedConv(nnx.Conv):
    """nnx.Conv without a bias, whose kernel is standardized in its own precision at each call."""

    def __call__(self, inputs: jax.Array) -> jax.Array:  # type: ignore[override]
        """f[B, H, W, I] -> f[B, H', W', O] in `dtype`, or in the operands' common type."""
        kernel = standardize(self.kernel[...])
        dtype = self.dtype or jnp.promote_types(inputs.dtype, kernel.dtype)
        side = ((self.padding, self.padding),) * 2
        strides = (self.strides, self.strides) if isinstance(self.strides, int) else self.strides
        return convolve(
            inputs.astype(dtype),
            kernel.astype(dtype),
            strides,  # type: ignore[arg-type]
            side,  # type: ignore[arg-type]
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


class SqueezeExcite(nnx.Module):
    """Scale each channel by a gate in [0, 1] computed from the means of all channels.

    Hu et al. 2018, arXiv:1709.01507. The two linear maps are 1x1 convolutions with a bias, fc1 and
    fc2, as in torchvision and timm.
    """

    def __init__(
        self,
        channels: int,
        squeezed: int,
        *,
        activation: Callable[[jax.Array], jax.Array] = nnx.relu,
        gate: Callable[[jax.Array], jax.Array] = nnx.sigmoid,
        kernel_init: nnx.Initializer = HE_NORMAL,
        dtype: jnp.dtype | None = None,
        rngs: nnx.Rngs,
    ):
        """`squeezed` is the number of hidden channels; `gate` makes the factor of each channel."""
        make = partial(nnx.Conv, kernel_size=(1, 1), kernel_init=kernel_init, dtype=dtype)
        self.fc1 = make(channels, squeezed, rngs=rngs)
        self.fc2 = make(squeezed, channels, rngs=rngs)
        self.activation, self.gate = activation, gate

    def __call__(self, x: jax.Array) -> jax.Array:
        """f[B, H, W, C] -> f[B, H, W, C]; the mean over pixels is in float32 at least."""
        mean = global_average_pool(x, keepdims=True).astype(x.dtype)
        return x * self.gate(self.fc2(self.activation(self.fc1(mean))))


def uniform_linear(
    inputs: int,
    outputs: int,
    *,
    kernel_init: nnx.Initializer | None = None,
    dtype: jnp.dtype | None = None,
    rngs: nnx.Rngs,
) -> nnx.Linear:
    """Return torch's default linear layer: weights and bias uniform within 1 / sqrt(inputs).

    `kernel_init` replaces the initial weights, not the bias.
    """
    init = _uniform(inputs)
    return nnx.Linear(
        inputs, outputs, kernel_init=kernel_init or init, bias_init=init, dtype=dtype, rngs=rngs
    )


def three_linear(
    make: Callable[..., nnx.Linear],
    inputs: int,
    hidden: int,
    num_classes: int,
    dtype: jnp.dtype | None,
) -> nnx.List[nnx.Linear]:
    """Return the classifier of AlexNet and VGG; its last layer does not round the logits."""
    first, second = make(inputs, hidden, dtype=dtype), make(hidden, hidden, dtype=dtype)
    return nnx.List([first, second, make(hidden, num_classes)])


def uniform_conv(
    inputs: int,
    outputs: int,
    size: int,
    stride: int = 1,
    padding: int = 0,
    *,
    dtype: jnp.dtype | None = None,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """Return torch's default convolution: weights and bias uniform within 1 / sqrt(fan-in)."""
    init = _uniform(inputs * size**2)
    return nnx.Conv(
        inputs,
        outputs,
        (size, size),
        strides=stride,
        padding=padding,
        kernel_init=init,
        bias_init=init,
        conv_general_dilated=convolve,
        dtype=dtype,
        rngs=rngs,
    )


def _uniform(fan_in: int) -> Callable[..., jax.Array]:
    bound = fan_in**-0.5

    def uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any, **_: Any) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return uniform


def drop_path(x: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    """f[B, ...] -> f[B, ...]: each row is 0 with probability `rate`, else x / (1 - rate).

    Stochastic depth (Huang et al. 2016, arXiv:1603.09382), scaled in training and not, as in the
    paper, in evaluation. Rows are drawn independently, as in torchvision's mode "row".
    """
    keep = 1.0 - rate
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    kept = jax.random.bernoulli(key, keep, shape)
    return jnp.where(kept, x / keep, jnp.zeros((), x.dtype)).astype(x.dtype)


def drop_branch(x: jax.Array, rate: float, *, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
    """Return `drop_path` of the residual branch x in training, x itself in evaluation.

    Raises ValueError in training if there is a rate but no `rngs`.
    """
    if not (train and rate):
        return x
    if rngs is None:
        raise ValueError("drop path needs rngs=nnx.Rngs(dropout=key) in training")
    return drop_path(x, rate, rngs.dropout())


def drop_path_rates(last: float, blocks: int) -> Iterator[float]:
    """Yield the drop path rate of each block, from 0 to `last`.

    This is timm's rule, whose recipes the configs follow; the linear rule of the paper of
    `drop_path` drops the first block too.
    """
    return (last * i / max(1, blocks - 1) for i in range(blocks))


def global_average_pool(x: jax.Array, *, keepdims: bool = False) -> jax.Array:
    """f[B, H, W, C] -> f[B, C], or f[B, 1, 1, C] with `keepdims`, in float32 or wider.

    The mean and what follows it, the logits, are cheap and should not round.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.mean(x, axis=(1, 2), keepdims=keepdims, dtype=wide)


def adaptive_average_pool(x: jax.Array, side: int) -> jax.Array:
    """f[B, H, W, C] -> f[B, side, side, C], torch's AdaptiveAvgPool2d.

    Output i averages input rows floor(i * H / side) up to ceil((i + 1) * H / side), exclusive;
    columns likewise. Sums are in float32 at least.
    """
    if x.shape[1:3] == (side, side):
        return x
    wide = jnp.promote_types(x.dtype, jnp.float32)
    rows, columns = (jnp.asarray(_bins(size, side), wide) for size in x.shape[1:3])
    pooled = jnp.einsum("ih,jw,bhwc->bijc", rows, columns, x.astype(wide), precision="highest")
    return pooled.astype(x.dtype)


def _bins(size: int, side: int) -> np.ndarray:
    """f64[side, size]: row i holds the weights of output i."""
    weights = np.zeros((side, size))
    for i in range(side):
        start, stop = i * size // side, -(-(i + 1) * size // side)
        weights[i, start:stop] = 1 / (stop - start)
    return weights
