# PYTHON_ARGCOMPLETE_OK
"""Show what a model's predictions depend on.

  python -m imagenet_jax.explain cat.jpg photos/ --workdir=runs/resnet50 --out=explained/
  python -m imagenet_jax.explain cat.jpg --weights=resnet50.safetensors \\
    --config=configs/resnet50.py --class=tabby --layer=layer3.5.conv3 --out=cat_explained.png
  python -m imagenet_jax.explain --workdir=runs/resnet50 '--layer=?'

gradcam    regions where a layer supports the class (Selvaraju et al. 2017)
occlusion  regions whose occlusion lowers (red) or raises (blue) the probability (Zeiler & Fergus
           2014)
guided     guided backpropagation: pixels that raise the score (Springenberg et al. 2015)
features   the 64 strongest channels of a layer's output
filters    weights of the first convolution; needs no image

IMAGE is a file, a folder (with its subfolders) or - for an image on standard input, resized and
cropped as in evaluation. --out=FILE.png puts all pictures on one sheet; any other name is a
folder of PNG files. An image that cannot be read is reported and skipped, and the exit code is 1.
"""

import argparse
from collections.abc import Sequence

from imagenet_jax import cli
from imagenet_jax.errors import UserError, expand_user
from imagenet_jax.progress import announce

METHODS = ("gradcam", "occlusion", "guided", "features", "filters")


def main(argv: Sequence[str]) -> int:
    argv, overrides = cli.split_overrides(argv)
    parser = cli.parser("imagenet_jax.explain", __doc__)
    add = parser.add_argument
    add("images", nargs="*", metavar="IMAGE", help="a file, a folder or -")
    cli.add_weights(parser)
    add("--methods", metavar="A,B", help="methods (default: all)")
    add("--class", dest="class_name", metavar="NAME|INDEX",
        help="class to explain (default: the most likely)")  # fmt: skip
    add("--layer", metavar="NAME",
        help="layer for gradcam and features (default: the last); ? lists the layers")  # fmt: skip
    add("--square", type=int, metavar="PIXELS",
        help="side of the occluding square (default: a fifth of the image)")  # fmt: skip
    add("--out", metavar="DIR|FILE.png", help="a folder of pictures, or one sheet")
    args = parser.parse_args(argv)
    cli.check_weights(args)
    methods = METHODS if args.methods is None else tuple(dict.fromkeys(args.methods.split(",")))
    if args.layer != "?":
        _check(args, methods)
    with announce("importing JAX"):
        from imagenet_jax.explain.explain import Request, explain_files, print_layers
    with announce("loading the weights"):
        weights = cli.open_weights(args, overrides)
    if args.layer == "?":
        print_layers(weights)
        return 0
    request = Request(methods, args.layer or "", args.class_name or "", args.square or 0)
    return explain_files(weights, args.images, request, expand_user(args.out))


def _check(args: argparse.Namespace, methods: Sequence[str]) -> None:
    """Raise UserError for flags that contradict each other or have no effect."""
    if unknown := [method for method in methods if method not in METHODS]:
        raise UserError(f"--methods: {unknown[0]!r} is not one of {', '.join(METHODS)}")
    if not args.out:
        raise UserError("give --out=DIR, or --out=FILE.png for one sheet")
    if bool(args.images) == (methods == ("filters",)):
        raise UserError("--methods=filters takes no IMAGE; all other methods need an IMAGE")
    for flag, value, users in (
        ("--layer", args.layer, {"gradcam", "features"}),
        ("--square", args.square, {"occlusion"}),
        ("--class", args.class_name, {"gradcam", "occlusion", "guided"}),
    ):
        if value is not None and not users & set(methods):
            raise UserError(f"{flag} does nothing with --methods={args.methods}")
    if args.square is not None and args.square < 1:
        raise UserError(f"--square={args.square}: give at least 1")


if __name__ == "__main__":
    cli.run(main)
