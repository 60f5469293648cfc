"""Compile the train step, and the same networks in plain Flax, without accelerators.

  pip install 'jax[tpu]' jax-cuda12-plugin jax-cuda12-pjrt     # the compilers, for jax's version
  python -m benchmarks.compile
  python -m benchmarks.compile --config=configs/resnet50.py:a3 --target=h100:8 --json

Compiles the step of each config for each target, in bfloat16, and prints its temporary memory, its
memory traffic and, for TPUs, the compiler's estimate of the cycles. "plain" is the same step with a
network that is defined below with nnx.Conv and nnx.BatchNorm; there is none for BiT. A ratio is
ours / plain; lower is better. The TPU compiler takes minutes for each network. --eval compiles
evaluation on one device instead, with and without folding batch norm into the convolutions.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks.common import make_parser, print_result
from imagenet_jax import cli, models
from imagenet_jax import config as config_io
from imagenet_jax.debug.compiled import read_cost
from imagenet_jax.debug.cost import TargetCost, abstract_batch, target_cost, temporary_bytes
from imagenet_jax.debug.targets import Target, make_target
from imagenet_jax.errors import UserError
from imagenet_jax.models import folding, resnet, vgg
from imagenet_jax.models.base import Model
from imagenet_jax.training import evaluate
from imagenet_jax.training.sharding import make_mesh
from imagenet_jax.training.state import inference_graph

CONFIGS = "configs/resnet50.py,configs/resnet.py:resnet101,configs/vgg.py:vgg16,configs/bit.py"
TARGETS = "v5e:1x1,h100:1"
TPU_IMAGES, GPU_IMAGES = 128, 256  # per device
Stages = Iterator[tuple[str, jax.Array]]


class Norm(nnx.Module):
    """A convolution without bias, followed by nnx.BatchNorm."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int, **options: Any):
        self.conv = nnx.Conv(
            inputs, outputs, (size, size), strides=stride, padding=size // 2, use_bias=False,
            **options,
        )  # fmt: skip
        self.norm = nnx.BatchNorm(outputs, momentum=0.9, epsilon=1e-5, **options)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return self.norm(self.conv(x), use_running_average=not train)


class PlainBottleneck(nnx.Module):
    """A bottleneck: 1x1, 3x3 and 1x1 convolutions, and a shortcut."""

    def __init__(self, inputs: int, features: int, stride: int, **options: Any):
        self.first = Norm(inputs, features, 1, 1, **options)
        self.second = Norm(features, features, 3, stride, **options)
        self.third = Norm(features, 4 * features, 1, 1, **options)
        changes = stride > 1 or inputs != 4 * features
        self.shortcut = Norm(inputs, 4 * features, 1, stride, **options) if changes else None

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = nnx.relu(self.second(nnx.relu(self.first(x, train)), train))
        y = self.third(y, train)
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x, train)))


class PlainResNet(Model):
    """A ResNet with bottlenecks."""

    def __init__(
        self, name: str, *, num_classes: int, dtype: Any, rngs: nnx.Rngs, width: float, **_: Any
    ):
        self.name = name
        options = {"dtype": dtype, "rngs": rngs}
        features = round(64 * width)
        self.stem = Norm(3, features, 7, 2, **options)
        blocks, inputs = [], features
        for stage, depth in enumerate(resnet.VARIANTS[name].depths):
            for i in range(depth):
                stride = 2 if stage and not i else 1
                blocks.append(PlainBottleneck(inputs, features * 2**stage, stride, **options))
                inputs = 4 * features * 2**stage
        self.blocks: nnx.List[Any] = nnx.List(blocks)
        self.head = nnx.Linear(inputs, num_classes, rngs=rngs)

    def activations(self, images: jax.Array, *, train: bool, rngs: Any = None) -> Stages:
        x = nnx.relu(self.stem(images, train))
        x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))  # pyright: ignore
        for block in self.blocks:
            x = block(x, train)
        yield "logits", self.head(jnp.mean(x, (1, 2), dtype=jnp.float32))


class PlainVGG(Model):
    """A VGG without batch norm."""

    def __init__(
        self, name: str, *, num_classes: int, dtype: Any, rngs: nnx.Rngs, dropout: float, **_: Any
    ):
        self.name, self.depths = name, vgg.VARIANTS[name][0]
        convolutions, inputs = [], 3
        for depth, channels in zip(self.depths, vgg.CHANNELS, strict=True):
            for _i in range(depth):
                convolutions.append(nnx.Conv(inputs, channels, (3, 3), dtype=dtype, rngs=rngs))
                inputs = channels
        self.convolutions: nnx.List[Any] = nnx.List(convolutions)
        self.hidden = nnx.Linear(inputs * vgg.POOLED**2, vgg.HIDDEN, dtype=dtype, rngs=rngs)
        self.hidden2 = nnx.Linear(vgg.HIDDEN, vgg.HIDDEN, dtype=dtype, rngs=rngs)
        self.head = nnx.Linear(vgg.HIDDEN, num_classes, rngs=rngs)
        self.dropout = nnx.Dropout(dropout)

    def activations(self, images: jax.Array, *, train: bool, rngs: Any = None) -> Stages:
        x, convolutions = images, iter(self.convolutions)
        for depth in self.depths:
            for _ in range(depth):
                x = nnx.relu(next(convolutions)(x))
            x = nnx.max_pool(x, (2, 2), strides=(2, 2))
        x = x.reshape(len(x), -1)
        for layer in (self.hidden, self.hidden2):
            x = self.dropout(nnx.relu(layer(x)), deterministic=not train, rngs=rngs)
        yield "logits", self.head(x)


def find_plain(name: str) -> type[Model] | None:
    """Return the plain network with the layers of a model, or None if there is none."""
    variant = resnet.VARIANTS.get(name)
    if variant and variant == resnet.Variant(variant.depths):
        return PlainResNet
    return PlainVGG if name in vgg.VARIANTS and not vgg.VARIANTS[name][1] else None


@contextlib.contextmanager
def replaced(name: str, network: type[Model]) -> Iterator[None]:
    """Build `network` in place of the model `name` in this block."""
    module = resnet if name in resnet.VARIANTS else vgg
    family = dataclasses.replace(module.FAMILY, model=network)
    models._outline.cache_clear()
    with contextlib.ExitStack() as stack:
        stack.callback(models._outline.cache_clear)
        stack.enter_context(mock.patch.object(module, "FAMILY", family))
        yield


def figures(cost: TargetCost) -> dict[str, float]:
    """Return the figures to compare, for one device."""
    images = cost.batch_size / len(cost.target.devices)
    found = {
        "temporary MB": cost.memory["activations"] / 1e6,
        "MB per image": cost.program.bytes / images / 1e6,
        "collectives": float(cost.program.collectives.total()),
        "img/s, bound": images / cost.step_seconds,
    }
    if cost.program.cycles:
        found["Mcycles"] = cost.program.cycles / 1e6
    return found


def compare(config: Any, target: Target) -> dict[str, float]:
    """Return the figures of our network and the plain one on a target, and their ratios."""
    name, network = config.model.name, find_plain(config.model.name)
    found = {"ours": figures(target_cost(config, target))}
    if network is not None:
        with replaced(name, network):
            found["plain"] = figures(target_cost(config, target))
        found["ours / plain"] = {
            what: found["ours"][what] / value for what, value in found["plain"].items() if value
        }
    return _name(f"{name}, {target.name}", found)


def compare_eval(config: Any, target: Target) -> dict[str, float]:
    """Return figures of evaluation on one device, with and without folding batch norm."""
    graph, (_, params, stats) = inference_graph(config.model), models.outline(config.model)
    mesh = make_mesh(1, target.devices[:1])
    sharding, batch = NamedSharding(mesh, PartitionSpec()), abstract_batch(config, mesh)
    batch["mask"] = jax.ShapeDtypeStruct(batch["label"].shape, jnp.float32)
    found: dict[str, dict[str, float]] = {}
    for form, fold in (("folded", folding.fold_batch_norm), ("not folded", lambda model: model)):
        with mock.patch.object(evaluate, "fold_batch_norm", fold):
            step = partial(evaluate.eval_step, graph=graph, config=config)
            lowered = jax.jit(step, in_shardings=sharding).lower(
                {"params": params, "batch_stats": stats}, batch
            )
        compiled = lowered.compile(compiler_options=target.compiler_options)
        program = read_cost(compiled.as_text() or "")
        found[form] = {
            "temporary MB": temporary_bytes(compiled) / 1e6,
            "MB per image": program.bytes / config.batch_size / 1e6,
            "kernels": float(program.kernels),
        }
        if program.cycles:
            found[form]["Mcycles"] = program.cycles / 1e6
    found["folded / not"] = {
        what: found["folded"][what] / value for what, value in found["not folded"].items()
    }
    return _name(f"{config.model.name}, {target.name}, evaluation", found)


def _name(prefix: str, found: dict[str, dict[str, float]]) -> dict[str, float]:
    return {
        f"{prefix}, {which}: {what}": value
        for which, values in found.items()
        for what, value in values.items()
    }


def main(argv: Sequence[str]) -> None:
    argv, overrides = cli.split_overrides(argv)
    parser = make_parser(__doc__, CONFIGS)
    parser.add_argument("--target", default=TARGETS, help="targets, separated by commas")
    parser.add_argument(
        "--images", type=int, help="images per device and step (default: 128 on TPUs, 256 on GPUs)"
    )
    parser.add_argument("--eval", action="store_true", help="compile evaluation on one device")
    args = parser.parse_args(argv)
    result: dict[str, float] = {}
    for target_name in args.target.split(","):
        target = make_target(target_name)
        usual = GPU_IMAGES if target.accelerator.gpu else TPU_IMAGES
        for spec in args.config.split(","):
            config = config_io.load(spec, overrides)
            config.model.dtype = "bfloat16"
            devices = 1 if args.eval else len(target.devices)
            config.batch_size = (args.images or usual) * devices
            print(f"compiling {spec} for {target.name} ...", file=sys.stderr, flush=True)
            try:
                rows = (compare_eval if args.eval else compare)(config, target)
            except UserError as e:
                print(f"{spec}, {target.name}: {e}", file=sys.stderr)
                continue
            result |= rows
            if not args.json:
                print_result(rows, as_json=False)
    if args.json:
        print_result(result, as_json=True)


if __name__ == "__main__":
    cli.run(main)
