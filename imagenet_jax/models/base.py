"""The interfaces of models and of model families."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from imagenet_jax.config.fields import Field
from imagenet_jax.errors import UserError

Path = tuple[Any, ...]  # attribute names and indices from the model to a module or an array
Config: TypeAlias = ConfigDict | Mapping[str, Any]  # config.model
Activations = Iterator[tuple[str, jax.Array]]  # (name, value) of each stage, the logits last


class Model(nnx.Module):
    """An image classifier whose variables are float32, of types nnx.Param and nnx.BatchStat.

    Attributes:
      name: name of the variant.
      remat: `config.model.remat`.
      aux_weight: factor of the losses of the auxiliary heads; 0 if there are none.
    """

    name: str
    remat: str = "none"
    aux_weight: float = 0.0

    def run(
        self,
        block: Callable[..., jax.Array],
        x: Any,
        *,
        rngs: nnx.Rngs | None = None,
        **options: Any,
    ) -> jax.Array:
        """Return `block(x, **options)`, passing `rngs` unless it is None.

        Families call their blocks through this method, so that `remat` applies: the backward pass
        recomputes activations instead of storing them (Chen et al. 2016, arXiv:1604.06174). `x` is
        an array or a tuple of arrays. An array that is read by several blocks is stored once.
        """
        random = {} if rngs is None else {"rngs": rngs}
        if self.remat == "none":
            return block(x, **random, **options)
        saved = _is_product if self.remat == "dots" else None

        def call(block: Callable[..., jax.Array], x: Any, random: Any) -> jax.Array:
            return block(x, **random, **options)

        return nnx.remat(call, policy=saved)(block, x, random)

    def activations(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None) -> Activations:
        """Yield (name, output) of each stage in order, and at the end ("logits", logits).

        In training, a model with auxiliary heads also yields their logits, as "aux...".

        Arguments and errors are those of `__call__`.
        """
        raise NotImplementedError

    def __call__(
        self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """f[B, H, W, 3] -> logits f32[B, num_classes].

        Args:
          images: normalized images.
          train: normalize with the statistics of the batch and update the running ones; apply
            dropout and drop path.
          rngs: its stream `dropout` is needed in training if the config has dropout or drop path.

        Raises UserError if the images are too small.
        """
        *_, (_, logits) = self.activations(images, train=train, rngs=rngs)
        return logits

    def training_logits(
        self, images: jax.Array, *, rngs: nnx.Rngs
    ) -> tuple[jax.Array, list[jax.Array]]:
        """Return the logits of the head, and those of each auxiliary head, in training.

        Arguments and errors are those of `__call__`.
        """
        *stages, (_, logits) = self.activations(images, train=True, rngs=rngs)
        return logits, [value for name, value in stages if name.startswith("aux")]

    def require_pixels(
        self, images: jax.Array, side: int, *, multiple: bool = False, what: str = ""
    ) -> None:
        """Raise UserError if a side of f[B, H, W, 3] has fewer than `side` pixels.

        Args:
          multiple: both sides must be multiples of `side`.
          what: what needs them, for the message; "": the name of the model.
        """
        height, width = images.shape[1:3]
        if min(height, width) < side or (multiple and (height % side or width % side)):
            raise UserError(
                f"images of {height}x{width} pixels: {what or self.name} needs "
                f"{'multiples of' if multiple else 'at least'} {side}x{side} "
                "(config.augment.image_size, eval.image_size)"
            )


def _is_product(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive in (jax.lax.conv_general_dilated_p, jax.lax.dot_general_p)


def _join(name: str, path: Path) -> str:
    return ".".join(map(str, path))


@dataclasses.dataclass(frozen=True, eq=False)
class Family:
    """The models of one file, as the rest of the package sees them.

    Attributes:
      model: the class, called with name, num_classes, width, dtype, rngs and one argument for each
        of `fields`.
      variants: names of the models.
      fields: fields of `config.model` that only this family has, by name.
      groups: layer groups from input to output, each a tuple of paths. Every parameter is in
        exactly one group. The last group starts with the head, the layer whose outputs are the
        logits, and has the auxiliary heads too. Groups without parameters in a variant are skipped.
      first: torch's name of the first convolution.
      identify: given a state dict in torch's layout, returns the models that fit it, each as
        a dict of name, width and other fields of `config.model`; [] if it is of another family.
        Need not look at every key.
      torch_name: given a model name and a path, returns torch's name of the module there.
      timm_name: like `torch_name`, for the names in state dicts with a `conv_stem`, as timm's
        MobileNets and EfficientNets have. They are only read.
      flattened: path of each linear layer that reads a flattened feature map -> side of that map.
      constants: given a model name, returns the entries of torch's state dict that are not weights.
        They are skipped when a state dict is read, and added when one is written.
      auxiliary: paths of the heads that are used only in training (config.model.aux_weight). A
        model may lack them. Their last layers have num_classes outputs too.
      multiple: given a model name, returns the number that must divide the sides of images.
      fit: given a path, the array of a state dict and the shape of the model's array there, returns
        the array in that shape if it was trained at another image size, else the array unchanged.
    """

    model: type[Model]
    variants: tuple[str, ...]
    fields: dict[str, Field]
    groups: tuple[tuple[Path, ...], ...]
    first: str
    identify: Callable[[Mapping[str, np.ndarray]], list[dict[str, Any]]]
    torch_name: Callable[[str, Path], str] = _join
    timm_name: Callable[[str, Path], str] | None = None
    flattened: Mapping[Path, int] = dataclasses.field(default_factory=dict)
    constants: Callable[[str], Mapping[str, np.ndarray]] = lambda name: {}
    auxiliary: tuple[Path, ...] = ()
    multiple: Callable[[str], int] = lambda name: 1
    fit: Callable[[Path, np.ndarray, tuple[int, ...]], np.ndarray] = lambda path, array, shape: (
        array
    )

    @property
    def head(self) -> Path:
        """Path of the layer whose outputs are the logits."""
        return self.groups[-1][0]

    def in_heads(self, path: Path) -> bool:
        """Return whether the module or array at `path` is in the head or an auxiliary head."""
        return any(path[: len(head)] == head for head in (self.head, *self.auxiliary))


def submodule(module: Any, path: Path) -> Any:
    """Return the module at `path` inside `module`."""
    for key in path:
        indexed = isinstance(module, nnx.List | nnx.Dict)
        module = module[key] if indexed else getattr(module, key)
    return module


def count_blocks(keys: Mapping[str, Any], pattern: str) -> tuple[int, ...]:
    """Return the number of blocks in each stage; `pattern` captures (stage, block) in a key."""
    pairs = {tuple(map(int, m.groups())) for key in keys if (m := re.match(pattern, key))}
    stages = [stage for stage, _ in sorted(pairs)]
    return tuple(stages.count(stage) for stage in dict.fromkeys(stages))


def count_outputs(arrays: Mapping[str, np.ndarray], key: str) -> int:
    """Return the output channels of the kernel f[O, I, H, W] at `key`; 0 if there is none."""
    kernel = arrays.get(key)
    return 0 if kernel is None or kernel.ndim != 4 else len(kernel)
