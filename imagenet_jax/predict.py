# PYTHON_ARGCOMPLETE_OK
"""Predict the classes of images.

  python -m imagenet_jax.predict cat.jpg photos/ --workdir=runs/resnet50
  python -m imagenet_jax.predict photos/ --weights=resnet50.safetensors --config=configs/resnet50.py
  python -m imagenet_jax.predict photos/ --weights=torchvision/resnet50.v2

IMAGE is a file, a folder (with its subfolders) or - for an image on standard input. Images are
resized and cropped as in evaluation. A workdir has everything that is needed: the EMA weights (or
the raw weights if the run keeps no EMA weights) and the class names. For --weights, the config sets
the model, and a model with 1000 classes gets ImageNet's class names. An image that cannot be read
is reported and skipped, and the exit code is 1.

--json prints one object per line:

  {"image": "cat.jpg", "predictions": [{"label": 281, "class": "tabby", "probability": 0.93}, ...]}
"""

from collections.abc import Sequence

from imagenet_jax import cli
from imagenet_jax.errors import UserError, expand_user
from imagenet_jax.progress import announce, track


def main(argv: Sequence[str]) -> int:
    argv, overrides = cli.split_overrides(argv)
    parser = cli.parser("imagenet_jax.predict", __doc__)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="a file, a folder or -")
    cli.add_weights(parser)
    parser.add_argument(
        "--top", type=int, default=5, metavar="N",
        help="number of classes for each image (default: 5)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON lines instead of a table")
    parser.add_argument("--html", metavar="FILE", help="also write a page with pictures and bars")
    args = parser.parse_args(argv)
    cli.check_weights(args)
    if args.top < 1:
        raise UserError(f"--top={args.top}: give at least 1")
    page = expand_user(args.html) if args.html else None
    if page and not page.parent.is_dir():
        raise UserError(f"--html={page}: the folder {page.parent} does not exist")

    with announce("loading JAX"):
        from imagenet_jax.classify.images import predict_images, show_predictions
        from imagenet_jax.data.image_files import find_images

    with announce("reading the weights"):
        weights = cli.open_weights(args, overrides)
    images, problems = find_images(args.images)
    results = predict_images(weights, images, args.top)
    if not args.json:  # otherwise the lines show the progress
        results = track(results, "predicting", len(images))
    title = f"{weights.config.model.name}, {weights.origin}"
    return show_predictions(results, problems, title=title, json_lines=args.json, page=page)


if __name__ == "__main__":
    cli.run(main, lost_output="ends")
