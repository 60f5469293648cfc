"""Inverted residuals, the blocks of MobileNet and EfficientNet, and timm's names of their parts.

Where `config.model.width` is not 1, these networks round channels to integers, not to multiples of
8 as torchvision does.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx

from imagenet_jax.models.layers import ConvNorm, SqueezeExcite, drop_branch

TIMM_BLOCK = r"blocks\.(\d+)\.(\d+)\."  # captures stage and block in timm's names


class InvertedResidual(nnx.Module):
    """1x1 convolution to `wide` channels, depthwise convolution, linear 1x1, and a shortcut.

    If `wide` equals `inputs`, there is no first 1x1 convolution.
    """

    def __init__(
        self,
        inputs: int,
        wide: int,
        outputs: int,
        make: Callable[..., ConvNorm],
        *,
        size: int = 3,
        stride: int = 1,
        activation: Callable[[jax.Array], jax.Array] = nnx.relu6,
        gate: Callable[..., SqueezeExcite] = SqueezeExcite,
        squeezed: int = 0,
        fused: bool = False,
        rate: float = 0.0,
    ):
        """Create the block.

        Args:
          inputs, wide, outputs: channels.
          make: `ConvNorm.make` with the options of the network.
          size, stride: of the depthwise convolution.
          gate: makes the squeeze-and-excitation from its channels and hidden channels.
          squeezed: hidden channels of a squeeze-and-excitation after the depthwise convolution
            (Howard et al. 2019, arXiv:1905.02244); 0: none.
          fused: one dense convolution replaces the first two convolutions (Tan & Le 2021,
            arXiv:2104.00298), or all three if `wide` equals `inputs`.
          rate: probability of dropping the branch of an image in training.
        """
        layers: list[Any] = []
        if fused:
            layers.append(make(inputs, wide if wide != inputs else outputs, size, stride))
        else:
            layers += [make(inputs, wide, 1)] if wide != inputs else []
            layers.append(make(wide, wide, size, stride, groups=wide))
        if squeezed:
            layers.append(gate(wide, squeezed))
        if wide != inputs or not fused:
            layers.append(make(wide, outputs, 1))
        self.block: nnx.List[Any] = nnx.List(
            [
                nnx.Dict(conv=layer.conv, bn=layer.norm) if isinstance(layer, ConvNorm) else layer
                for layer in layers
            ]
        )
        self.activation, self.rate = activation, rate
        self.has_shortcut = stride == 1 and inputs == outputs

    def __call__(self, x: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        """f[B, H, W, I] -> f[B, h, w, O]."""
        y, last = x, len(self.block) - 1
        for i, layer in enumerate(self.block):
            if isinstance(layer, SqueezeExcite):
                y = layer(y)
            else:
                activation = None if 0 < i == last else self.activation
                y = ConvNorm(layer.conv, layer.bn)(y, train=train, activation=activation)
        if not self.has_shortcut:
            return y
        return x + drop_branch(y, self.rate, train=train, rngs=rngs)


def round_channels(channels: float) -> int:
    """Return the multiple of 8 nearest to `channels` that is at least 8 and 0.9 * channels."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def timm_block_name(stage: int, block: int, layer: int, part: str, *, expands: bool) -> str:
    """Return timm's name of a module in an inverted residual.

    Args:
      stage, block, layer: indices of the layer in the network.
      part: "conv" or "bn"; "fc1" or "fc2" in the squeeze-and-excitation.
      expands: whether the block begins with a 1x1 convolution.
    """
    if part in ("fc1", "fc2"):
        return f"blocks.{stage}.{block}.se.conv_{'reduce' if part == 'fc1' else 'expand'}"
    names = ("conv_pw", "conv_dw", "conv_pwl") if expands else ("conv_dw", "conv_pw")
    layer = min(layer, len(names) - 1)  # the squeeze-and-excitation, if any, comes before the last
    return f"blocks.{stage}.{block}.{names[layer] if part == 'conv' else f'bn{layer + 1}'}"


def timm_end_name(index: int, part: str) -> str:
    """Return timm's name of "conv" or "bn" (`part`) in the stem (`index` 0) or the last layer."""
    names = ("conv_stem", "bn1") if index == 0 else ("conv_head", "bn2")
    return names[part == "bn"]


def locate_block(index: int, counts: Sequence[int]) -> tuple[int, int]:
    """Return (stage, index in the stage) of a block; `counts` are the blocks of each stage."""
    for stage, count in enumerate(counts):
        if index < count:
            return stage, index
        index -= count
    raise IndexError(index)
