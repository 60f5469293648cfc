"""Folding of batch norm into the convolutions before it, for inference."""

import jax
from flax import nnx

from imagenet_jax.models.base import Model, Path, submodule
from imagenet_jax.models.layers import StandardizedConv
from imagenet_jax.models.norms import BatchNorm


def fold_batch_norm(model: Model) -> Model:
    """Return a copy of the model that computes `model(images, train=False)` with fewer operations.

    Batch norm is linear in evaluation. With a = scale / sqrt(var + eps), the norm of a convolution
    with kernel W equals a convolution with kernel W a and bias (bias - mean a). Both are computed
    in the precision of the parameters. The weights of all convolutions and linear layers are then
    rounded to their compute dtype, which would otherwise happen at each call.

    On GPUs, cuDNN computes convolution, bias, residual and ReLU in one kernel and rounds once. In
    bfloat16, compilers that do not fuse these, as on CPUs, also round the bias, which makes them
    slightly less accurate than with batch norm.

    A norm that does not follow a plain convolution is kept. Call this function under jax.jit.
    """
    folded: Model = nnx.merge(*nnx.split(model))
    folded.remat = "none"
    for path, norm in list(nnx.iter_modules(folded)):
        if isinstance(norm, BatchNorm):
            _fold(folded, path, norm)
    for _, layer in list(nnx.iter_modules(folded)):
        # A standardized convolution rounds its kernel after standardizing it.
        if isinstance(layer, nnx.Conv | nnx.Linear) and not isinstance(layer, StandardizedConv):
            for name in ("kernel", "bias"):
                weight = getattr(layer, name)
                if weight is not None and layer.dtype is not None:
                    setattr(layer, name, nnx.Param(weight[...].astype(layer.dtype)))
    return folded


def _fold(model: Model, path: Path, norm: BatchNorm) -> None:
    """Fold the norm at `path` into its convolution and replace it by None."""
    *parents, last = path
    parent = submodule(model, tuple(parents))
    conv = submodule(parent, (_conv_of(last),))
    if isinstance(conv, nnx.List):  # a stem of several layers
        conv = conv[-1]
    if type(conv) is not nnx.Conv:  # subclasses may ignore the bias
        return
    factor = norm.scale[...] * jax.lax.rsqrt(norm.var[...] + norm.eps)
    before = 0.0 if conv.bias is None else conv.bias[...]
    # Create new variables, because the copy shares those of the model.
    conv.kernel = nnx.Param(conv.kernel[...] * factor)
    conv.bias = nnx.Param((before - norm.mean[...]) * factor + norm.bias[...])
    conv.use_bias = True
    if isinstance(parent, nnx.List | nnx.Dict):
        parent[last] = None
    else:
        setattr(parent, last, None)


def _conv_of(norm: str | int) -> str | int:
    """Return the name or index of the convolution before a norm: conv2 for bn2, 0 for 1."""
    return norm - 1 if isinstance(norm, int) else norm.replace("bn", "conv")
