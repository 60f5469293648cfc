"""Write docs/models.md: every model with its size, published weights and recipes.

  python -m docs.make_models
  python -m docs.make_models --compile=h100:1 [--config=configs/vit.py]   first compile for a target

--compile adds rows to docs/compiled.json: what the compiler says of the train step of a config in
bfloat16, with 256 images on a GPU and 128 on a TPU. By default it compiles one model of each
family. No accelerator is needed, but the compilers (pip install 'jax[tpu]' jax-cuda12-plugin
jax-cuda12-pjrt, of jax's version) and minutes for each model.
"""

import argparse
import datetime
import importlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from imagenet_jax import cli, models
from imagenet_jax import config as config_io
from imagenet_jax.config.fields import defaults
from imagenet_jax.files import read_json, write_atomically
from imagenet_jax.models.operations import count_multiply_adds
from imagenet_jax.weights import catalog

ROOT = Path(__file__).parents[1]
COMPILED = ROOT / "docs" / "compiled.json"
PAGE = ROOT / "docs" / "models.md"
BASIS = "resnet50"  # the model that the others are compared with
_NO_MODELS = ("quickstart", "transfer")  # configs that show a use, not a model's recipe
_GPU_IMAGES, _TPU_IMAGES = 256, 128
_TEXT = """\
# Models

`python -m docs.make_models` writes this page.

- Parameters: number of parameters, including auxiliary heads, with the default number of classes.
- GFLOPs: billions of multiply-adds in convolutions, linear layers and attention for one image in
  evaluation, as torchvision counts them; in parentheses, the side of the image.
- Weights: published top-1 accuracy in percent, from the [catalog](weights.md). Names are
  SOURCE/MODEL.TAG. Only the tag is shown, unless several weights have the same tag:
  `python -m imagenet_jax.weights --model=MODEL` lists the whole names, which `--weights` takes.
- Recipes: `--config=configs/FILE.py:VARIANT`, see [recipes](recipes.md).

| model | parameters | GFLOPs | published weights, top-1 | recipes |
| --- | --- | --- | --- | --- |
{models}

## Estimated speed

Images per second of a train step on one device in bfloat16, estimated from compiled programs that
were not run. H100: an upper bound, from the bytes that kernels read and write divided by the
bandwidth, or the operations divided by the peak rate, whichever takes longer. v5e: the cycles that
the compiler estimates. Ratios are relative to ResNet-50. Empty: not compiled yet.

| config | model | image | {targets} |
| --- | --- | --- | {rules} |
{bounds}

{commands}
"""


def recipes() -> dict[str, ConfigDict]:
    """Return every recipe by its text for --config."""
    found = {}
    for path in sorted((ROOT / "configs").glob("*.py")):
        if path.stem in _NO_MODELS:
            continue
        module = importlib.import_module(f"configs.{path.stem}")
        for variant in getattr(module, "VARIANTS", [""]):
            spec = f"configs/{path.name}" + (f":{variant}" if variant else "")
            found[spec] = config_io.load(spec)
    return found


def count_parameters(config: ConfigDict) -> int:
    """Return the trainable parameters of the model of `config.model`."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(models.outline(config)[1]))


def list_weights(entries: Sequence[catalog.Entry]) -> str:
    """Return "SOURCE: TAG TOP1, ...; ...", with MODEL.TAG if several have this source and tag."""
    sources: dict[str, list[tuple[str, str, str]]] = {}
    for entry in entries:
        source, _, name = entry.name.partition("/")
        top1 = "" if entry.top1 is None else f" {entry.top1:.2f}"
        sources.setdefault(source, []).append((name, name.rpartition(".")[2], top1))
    cells = []
    for source, weights in sources.items():
        tags = [tag for _, tag, _ in weights]
        shown = ((tag if tags.count(tag) == 1 else name) + top1 for name, tag, top1 in weights)
        cells.append(f"{source}: {', '.join(shown)}")
    return "; ".join(cells)


def _model_rows(configs: dict[str, ConfigDict]) -> Iterator[str]:
    for name in models.names():
        own = {spec: config for spec, config in configs.items() if config.model.name == name}
        config = next(iter(own.values()), defaults(name))
        entries = [entry for entry in catalog.entries().values() if entry.model == name]
        parameters, side = count_parameters(config.model), config.eval.image_size
        if entries and not own:  # the size of the first weights
            side = entries[0].image_size
            config.model.update(entries[0].fields)
        cells = (
            f"`{name}`",
            f"{parameters:,}",
            f"{count_multiply_adds(config.model, side) / 1e9:.2f} ({side})",
            list_weights(entries),
            ", ".join(f"`{Path(spec).name}`" for spec in own),
        )
        yield f"| {' | '.join(cells)} |"


def representatives(configs: dict[str, ConfigDict]) -> dict[str, ConfigDict]:
    """Return one recipe of each family, the first of its config file; of ResNet, ResNet-50's."""
    found: dict[type, tuple[str, ConfigDict]] = {}
    for spec, config in configs.items():
        kind = models.family(config.model.name).model
        if kind not in found or spec == "configs/resnet50.py:v1":
            found[kind] = (spec, config)
    return dict(found.values())


def compile_for(name: str, configs: dict[str, ConfigDict]) -> None:
    """Add what the compiler for the target `name` says of the train steps to docs/compiled.json."""
    from imagenet_jax.debug.cost import target_cost
    from imagenet_jax.debug.targets import make_target

    target = make_target(name)
    for spec, config in configs.items():
        config.model.dtype = "bfloat16"
        if "bn_group" in config.model:  # which need not divide the batch
            config.model.bn_group = 0
        config.batch_size = _GPU_IMAGES if target.accelerator.gpu else _TPU_IMAGES
        cost = target_cost(config, target)
        rows = read_json(COMPILED) if COMPILED.exists() else {}
        rows.setdefault(spec, {"model": config.model.name})[name] = {
            "images_per_second": round(config.batch_size / cost.step_seconds),
            "batch_size": config.batch_size,
            "image_size": config.augment.image_size,
            "jax": jax.__version__,
            "date": datetime.date.today().isoformat(),
        }
        # A line for each config; written at once, because the next one may take minutes.
        lines = (f"{json.dumps(key)}: {json.dumps(row)}" for key, row in sorted(rows.items()))
        write_atomically(COMPILED, "{\n" + ",\n".join(lines) + "\n}\n")
        print(spec, rows[spec][name])


def _bound_rows(targets: list[str]) -> Iterator[str]:
    rows = read_json(COMPILED)
    (basis,) = (row for row in rows.values() if row["model"] == BASIS)
    for spec, row in rows.items():
        sizes = {row[target]["image_size"] for target in targets if target in row}
        cells = [f"`{spec}`", f"`{row['model']}`", ", ".join(map(str, sizes))]
        for target in targets:
            if target in row:
                speed = row[target]["images_per_second"]
                cells += [f"{speed:,}", f"{speed / basis[target]['images_per_second']:.2f}"]
            else:
                cells += ["", ""]
        yield f"| {' | '.join(cells)} |"


def make() -> str:
    """Return the page."""
    rows = read_json(COMPILED).values()
    targets = sorted({target for row in rows for target in row if target != "model"})
    commands = []
    for target in targets:
        found = [row[target] for row in rows if target in row]
        dates, versions = ({row[key] for row in found} for key in ("date", "jax"))
        commands.append(
            f"`python -m docs.make_models --compile={target}`, {found[0]['batch_size']} images; "
            f"{' and '.join(sorted(dates))}, jax {' and '.join(sorted(versions))}."
        )
    return _TEXT.format(
        models="\n".join(_model_rows(recipes())),
        targets=" | ".join(f"{target}, img/s | ratio" for target in targets),
        rules=" | ".join(["---"] * 2 * len(targets)),
        bounds="\n".join(_bound_rows(targets)),
        commands="\n".join(commands),
    )


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--compile", metavar="TARGET", help="such as h100:1 or v5e:1x1")
    parser.add_argument("--config", help="compile only this config")
    args = parser.parse_args(argv)
    if args.compile:
        one = args.config and {args.config: config_io.load(args.config)}
        compile_for(args.compile, one or representatives(recipes()))
    write_atomically(PAGE, make())


if __name__ == "__main__":
    cli.run(main)
