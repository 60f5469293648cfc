"""Layers that the model families share: convolutions, pools, drop path, initializers."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from imagenet_jax.config.fields import Field
from imagenet_jax.models.norms import BatchNorm, Pool, normalize_products
from imagenet_jax.models.windows import convolve

# Config fields of every family with batch norm.
BN_GROUP = Field(
    0, "Images that batch norm sees together in training; 0: the whole batch", at_least=0
)
NORM_IMPL = Field(
    "auto", "moments: compute a 1x1 convolution and its batch norm in one pass, from the second "
    "moments of its input, if that saves memory; plain: one after the other; auto: moments on GPUs "
    "and TPUs, plain on CPUs. Results differ by rounding",
    choices=("auto", "plain", "moments"), operational=True,
)  # fmt: skip
DROP_PATH = Field(
    0.0, "Probability of skipping the last block in training; it grows linearly from 0 at the "
    "first block", at_least=0, below=1, aliases=("drop_path_rate", "stochastic_depth"),
)  # fmt: skip


def dropout_field(rate: float) -> Field:
    """Return the config field of dropout before the last layer, whose default is `rate`."""
    return Field(rate, "Dropout rate before the last layer", at_least=0, below=1)


# Layer groups of a network with a stem and four stages in `features`, a downsampling layer before
# each stage but the first, and a `norm` before the `head`.
FOUR_STAGES = (
    (("features", 0),),
    (("features", 1),),
    (("features", 2), ("features", 3)),
    (("features", 4), ("features", 5)),
    (("features", 6), ("features", 7), ("norm",)),
    (("head",),),
)
STANDARDIZATION_EPSILON = 1e-10
# He et al. 2015, arXiv:1502.01852, with the fan-out, as in torchvision.
HE_NORMAL = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


@jax.custom_jvp
def relu(x: jax.Array) -> jax.Array:
    """Return max(x, 0). Its gradient reads the output, so that x need not be stored."""
    return jnp.maximum(x, 0)


# Not output > 0, which XLA rewrites as x > 0.
relu.defjvps(lambda tangent, output, x: jnp.where(output != 0, tangent, 0))


class ConvNorm(NamedTuple):
    """A convolution followed by batch norm, the building block of convolutional networks.

    This is not a module: models store the two under torch's names, such as conv1 and bn1, so that
    parameters have the same paths as in torch's state dicts.
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
        """Create a convolution, and batch norm if `norm`.

        Args:
          inputs, outputs: channels.
          size: height and width of the kernel; an integer for square kernels.
          padding: pixels on each side; None: size // 2, which keeps the image size at stride 1;
            "SAME": as in TensorFlow, with more padding at the bottom and right at stride 2.
          groups: feature groups of the convolution; equal to `inputs`: a depthwise convolution.
          eps, momentum, bn_group: arguments of BatchNorm.
          norm_impl: "plain" or "moments".
          dtype: compute dtype; None: that of images and parameters.
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
        max_pool: Pool | None = None,
    ) -> jax.Array:
        """f[B, H, W, I] -> f[B, h, w, O]. Training uses and updates batch statistics.

        `max_pool` pools the result. Training pools before the norm and the activation, which then
        read fewer values; the activation must not decrease. Evaluation keeps the usual order, on
        which guided backpropagation depends.
        """
        early, late = (max_pool, None) if train else (None, max_pool)
        if self.norm is None:
            x = self.conv(x)
            x = early(x) if early else x
        elif train and not early and (product := self.as_product(x)):
            x = normalize_products(*zip(*[product], strict=True))
        else:
            x = self.norm(self.conv(x), train=train, max_pool=early)
        x = activation(x) if activation else x
        return late(x) if late else x

    def as_product(self, x: jax.Array) -> tuple[BatchNorm, jax.Array, jax.Array] | None:
        """Return operands of `normalize_products`, if training uses it, or else None."""
        conv, norm = self
        if norm is None or not isinstance(conv, PointwiseConv) or not conv.widens:
            return None
        return norm, *conv.operands(x)


def add_layers(layers: Sequence[tuple[ConvNorm, jax.Array]], *, train: bool) -> jax.Array:
    """Return the sum of `layer(x, train=train, activation=None)` over pairs (layer, x).

    If training computes all of them as products, only their sum is stored.
    """
    products = [p for layer, x in layers if train and (p := layer.as_product(x))]
    if len(products) == len(layers):
        return normalize_products(*zip(*products, strict=True))
    first, *others = (layer(x, train=train, activation=None) for layer, x in layers)
    return sum(others, first)


class PointwiseConv(nnx.Conv):
    """1x1 nnx.Conv without a bias, computed as a matrix product.

    XLA fuses matrix products with more neighboring operations than convolutions.

    Attributes:
      subsample: subsample(x, stride=s) returns the pixels that a convolution of stride s reads.
    """

    subsample: Callable[..., jax.Array] = staticmethod(
        lambda x, *, stride: x[:, ::stride, ::stride]
    )

    @property
    def widens(self) -> bool:
        """Whether there are at least as many outputs as inputs, so that moments save memory."""
        return self.out_features >= self.in_features

    def operands(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the pixels f[B, h, w, I], in the compute dtype, and the kernel f[I, O]."""
        stride = self.strides
        assert isinstance(stride, int)  # as ConvNorm.make passes it
        dtype = self.dtype or jnp.promote_types(x.dtype, self.kernel.dtype)
        x = x.astype(dtype)
        return (x if stride == 1 else self.subsample(x, stride=stride)), self.kernel[0, 0]

    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]
        """f[B, H, W, I] -> f[B, h, w, O]."""
        pixels, kernel = self.operands(x)
        return pixels @ kernel.astype(pixels.dtype)


def standardize(kernel: jax.Array) -> jax.Array:
    """f[H, W, I, O] -> f[H, W, I, O] with mean 0 and variance 1 over H, W and I.

    Weight standardization (Qiao et al. 2019, arXiv:1903.10520) as in the code of BiT (Kolesnikov et
    al. 2020, arXiv:1912.11370): 1e-10 is added to the biased variance, whereas Qiao et al. add 1e-5
    to the unbiased standard deviation.
    """
    centered = kernel - jnp.mean(kernel, (0, 1, 2), keepdims=True)
    variance = jnp.mean(jnp.square(centered), (0, 1, 2), keepdims=True)
    return centered * jax.lax.rsqrt(variance + STANDARDIZATION_EPSILON)


class StandardizedConv(nnx.Conv):
    """nnx.Conv without a bias that standardizes its kernel, in float32, at each call."""

    def __call__(self, inputs: jax.Array) -> jax.Array:  # type: ignore[override]
        """f[B, H, W, I] -> f[B, h, w, O] in `dtype`, or in the common dtype of the operands."""
        kernel = standardize(self.kernel[...])
        dtype = self.dtype or jnp.promote_types(inputs.dtype, kernel.dtype)
        padding = ((self.padding, self.padding),) * 2
        strides = (self.strides, self.strides) if isinstance(self.strides, int) else self.strides
        return convolve(
            inputs.astype(dtype),
            kernel.astype(dtype),
            strides,  # type: ignore[arg-type]
            padding,  # type: ignore[arg-type]
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


class SqueezeExcite(nnx.Module):
    """Scale each channel by a gate in [0, 1] that depends on the means of all channels.

    Hu et al. 2018, arXiv:1709.01507. The two linear layers are 1x1 convolutions, fc1 and fc2, as in
    torchvision and timm.
    """

    def __init__(
        self,
        channels: int,
        squeezed: int,
        *,
        activation: Callable[[jax.Array], jax.Array] = nnx.relu,
        gate: Callable[[jax.Array], jax.Array] = nnx.sigmoid,
        dtype: jnp.dtype | None = None,
        rngs: nnx.Rngs,
    ):
        """`squeezed` is the number of hidden channels; `gate` is the activation of the output."""
        make = partial(nnx.Conv, kernel_size=(1, 1), kernel_init=HE_NORMAL, dtype=dtype)
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
    """Return a linear layer with torch's default initialization: uniform in +-1 / sqrt(inputs).

    `kernel_init` replaces that of the kernel, not that of the bias.
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
    """Return the three linear layers of AlexNet and VGG; the last one computes in float32."""
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
    """Return a convolution with torch's default initialization: uniform in +-1 / sqrt(fan-in)."""
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
    """f[B, ...] -> f[B, ...]: each example is 0 with probability `rate`, else x / (1 - rate).

    Stochastic depth (Huang et al. 2016, arXiv:1603.09382), like torchvision's mode "row". Outputs
    are scaled in training, whereas the paper scales them in evaluation.
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
    """Yield the drop path rate of each block, growing linearly from 0 to `last`.

    This is timm's rule. In the paper of `drop_path`, the first block has a rate above 0.
    """
    return (last * i / max(1, blocks - 1) for i in range(blocks))


def global_average_pool(x: jax.Array, *, keepdims: bool = False) -> jax.Array:
    """f[B, H, W, C] -> f[B, C], or f[B, 1, 1, C] with `keepdims`, in float32 or float64.

    Not in bfloat16, because the mean and the logits computed from it are cheap.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.mean(x, axis=(1, 2), keepdims=keepdims, dtype=wide)


def adaptive_average_pool(x: jax.Array, side: int) -> jax.Array:
    """f[B, H, W, C] -> f[B, side, side, C], like torch's AdaptiveAvgPool2d.

    Output row i is the mean of the input rows from floor(i * H / side) to
    ceil((i + 1) * H / side) - 1, and likewise for columns. Sums are in float32 or float64.
    """
    if x.shape[1:3] == (side, side):
        return x
    wide = jnp.promote_types(x.dtype, jnp.float32)
    rows, columns = (jnp.asarray(_bins(size, side), wide) for size in x.shape[1:3])
    pooled = jnp.einsum("ih,jw,bhwc->bijc", rows, columns, x.astype(wide), precision="highest")
    return pooled.astype(x.dtype)


def _bins(size: int, side: int) -> np.ndarray:
    """Return f64[side, size]: row i has the weights of output i."""
    weights = np.zeros((side, size))
    for i in range(side):
        start, stop = i * size // side, -(-(i + 1) * size // side)
        weights[i, start:stop] = 1 / (stop - start)
    return weights
