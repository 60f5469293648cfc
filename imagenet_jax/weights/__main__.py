# PYTHON_ARGCOMPLETE_OK
"""List published weights that --weights takes by name.

  python -m imagenet_jax.weights
  python -m imagenet_jax.weights --model=resnet50 --source=timm
  python -m imagenet_jax.eval --weights=torchvision/resnet50.v2 --config.data.path=/data/imagenet

Sizes are the shorter side after resizing and the center crop, in pixels. Accuracies are published
values on ImageNet's validation images, in percent. Files are downloaded on first use to
$IMAGENET_JAX_CACHE (default: imagenet_jax/ in the user's cache folder).
"""

import dataclasses
from collections.abc import Sequence

from imagenet_jax import cli
from imagenet_jax.errors import UserError, check_choice
from imagenet_jax.files import dump_json
from imagenet_jax.weights.catalog import entries


def main(argv: Sequence[str]) -> int:
    parser = cli.parser("imagenet_jax.weights", __doc__)
    parser.add_argument("--model", metavar="NAME", help="only weights of this model")
    parser.add_argument("--source", metavar="NAME", help="only names that begin with NAME/")
    parser.add_argument("--json", action="store_true", help="print JSON lines with all fields")
    args = parser.parse_args(argv)
    chosen = list(entries().values())
    if args.model is not None:
        if args.model not in {e.model for e in chosen}:
            from imagenet_jax import models  # takes seconds

            check_choice("--model", args.model, models.names())
            raise UserError(f"--model = {args.model!r}: no published weights of it have a name")
        chosen = [e for e in chosen if e.model == args.model]
    if args.source is not None:
        check_choice("--source", args.source, sorted({_source(e.name) for e in entries().values()}))
        chosen = [e for e in chosen if _source(e.name) == args.source]
    if args.json:
        for entry in chosen:
            print(dump_json(dataclasses.asdict(entry)))
        return 0
    row = "{:<50} {:<20} {:>9} {:>7} {:>7}".format
    print(row("name", "model", "size", "top-1", "top-5"))
    for e in chosen:
        accuracies = ("–" if a is None else f"{a:.2f}" for a in (e.top1, e.top5))
        print(row(e.name, e.model, f"{e.resize}/{e.image_size}", *accuracies))
    return 0


def _source(name: str) -> str:
    return name.partition("/")[0]


if __name__ == "__main__":
    cli.run(main, lost_output="ends")
