"""What every model and every model family has in common."""

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

Path = tuple[Any, ...]  # names and indices that lead to a module or an array in a model
Config: TypeAlias = ConfigDict | Mapping[str, Any]  # a config.model


class Model(nnx.Module):
    """An image classifier with nnx.Param and nnx.BatchStat variables only, all float32.

    `name` is the name of its variant, `remat` is `config.model.remat`. `aux_weight` is the factor
    of the losses of its auxiliary heads, if it has any.
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
        """Return `block(x, **options)`, given `rngs` too unless they are None.

        `x` is an array or a tuple of arrays. An array that several blocks read is kept once.
        Families call their blocks through this method, so that `remat` applies: the backward pass
        computes again what it does not keep (Chen et al. 2016, arXiv:1604.06174).
        """
        random = {} if rngs is None else {"rngs": rngs}
        if self.remat == "none":
            return block(x, **random, **options)
        kept = _is_product if self.remat == "dots" else None

        def call(block: Callable[..., jax.Array], x: Any, random: Any) -> jax.Array:
            return block(x, **random, **options)

        return nnx.remat(call, policy=kept)(block, x, random)

    def activations(
        self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None
    ) -> Iterator[tuple[str, jax.Array]]:
        """Yield (name, value) of the output of each stage, from input to output, then the logits.

        In training, a model with auxiliary heads also yields their logits, named "aux...".

        Arguments and errors are those of `__call__`.
        """
        raise NotImplementedError

    def __call__(
        self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """f[B, H, W, 3] -> logits f32[B, num_classes].

        `train` uses and updates batch statistics, and draws what is dropped from `rngs.dropout`,
        which is needed if the config drops anything.

        Raises UserError for images that are too small.
        """
        *_, (_, logits) = self.activations(images, train=train, rngs=rngs)
        return logits

    def training_logits(
        self, images: jax.Array, *, rngs: nnx.Rngs
    ) -> tuple[jax.Array, list[jax.Array]]:
        """Return the logits in training: of the head, and of each auxiliary head.

        Arguments and errors are those of `__call__`.
        """
        *stages, (_, logits) = self.activations(images, train=True, rngs=rngs)
        return logits, [value for name, value in stages if name.startswith("aux")]


def _is_product(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive in (jax.lax.conv_general_dilated_p, jax.lax.dot_general_p)


def _join(name: str, path: Path) -> str:
    return ".".join(map(str, path))


@dataclasses.dataclass(frozen=True, eq=False)
class Family:
    """What the rest of the package knows about the models of one file.

    Attributes:
      model: the class, called with name, num_classes, width, dtype, `fields` and rngs.
      variants: the names of its models.
      fields: the fields of `config.model` that only this family has, by name.
      groups: the parameters from input to output: for each group, the paths where they are. Every
        parameter is in one group; the last group is the head, the layer that num_classes shapes,
        and the auxiliary heads. Groups in which a variant has no parameters do not count.
      first: torch's name of the first convolution.
      identify: returns what a state dict in torch's layout can be of: for each candidate, name,
        width and other fields of `config.model`, the likeliest first; [] for another family. It
        need not look at every key.
      torch_name: returns torch's name of the module at a path of the model of that name.
      timm_name: the same for state dicts with a `conv_stem`, as timm's mobile networks have. They
        are read, not written.
      flattened: linear layers that read a flattened feature map, and the side of that map.
      constants: returns the entries of torch's state dict of the model of that name that are no
        weights: reading a state dict skips them, writing one adds them.
      auxiliary: where the heads are that only training uses (config.model.aux_weight). A model may
        lack them. Their last layers have num_classes outputs too.
      multiple: returns the number of pixels of which sides of images must be multiples.
      fit: given a path, the array of a state dict and the shape of the model's array there, returns
        the array in that shape if it only belongs to another image size, else the array as it is.
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
        """The path of the last linear layer."""
        return self.groups[-1][0]

    def in_heads(self, path: Path) -> bool:
        """Return whether a module or an array is part of the head or of an auxiliary head."""
        return any(path[: len(head)] == head for head in (self.head, *self.auxiliary))


def require_pixels(images: jax.Array, least: int, who: str, *, multiple: bool = False) -> None:
    """Raise UserError, which names `who`, unless each side of f[B, H, W, 3] has `least` pixels.

    With `multiple`, sides must be multiples of `least`.
    """
    height, width = images.shape[1:3]
    if min(height, width) < least or (multiple and (height % least or width % least)):
        what = "multiples of" if multiple else "at least"
        raise UserError(
            f"images of {height}x{width} pixels: {who} needs {what} {least}x{least} "
            "(config.augment.image_size, eval.image_size)"
        )


def submodule(module: Any, path: Path) -> Any:
    """Return the module at `path` inside `module`."""
    for key in path:
        indexed = isinstance(module, nnx.List | nnx.Dict)
        module = module[key] if indexed else getattr(module, key)
    return module


def count_blocks(keys: Mapping[str, Any], pattern: str) -> tuple[int, ...]:
    """Return the number of blocks in each stage, of the (stage, block) that `pattern` captures."""
    pairs = {tuple(map(int, m.groups())) for key in keys if (m := re.match(pattern, key))}
    stages = [stage for stage, _ in sorted(pairs)]
    return tuple(stages.count(stage) for stage in dict.fromkeys(stages))


def count_outputs(arrays: Mapping[str, np.ndarray], key: str) -> int:
    """Return the output channels of a kernel f[O, I, H, W]; 0 if there is no such kernel."""
    kernel = arrays.get(key)
    return 0 if kernel is None or kernel.ndim != 4 else len(kernel)
