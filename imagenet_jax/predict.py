"""Name the classes of images.

  python -m imagenet_jax.predict cat.jpg photos/ --workdir=runs/resnet50
  python -m imagenet_jax.predict photos/ --weights=resnet50.safetensors --config=configs/resnet50.py

IMAGE is a file, a folder (with all below it) or - for an image on standard input. Images are
resized and cropped as evaluation does it, and run in batches. A workdir is all that it needs: the
EMA weights, where the run keeps them, and the class names are in it. With --weights, the config
names the model; ImageNet's names are known where there are 1000 classes. A bad file is reported and
the others are done; the exit code is then 1.

--json prints one object a line:

  {"image": "cat.jpg", "predictions": [{"label": 281, "class": "tabby", "probability": 0.93}, ...]}
"""

from collections.abc import Sequence

from imagenet_jax import cli
from imagenet_jax.errors import UserError, expand_user


def main(argv: Sequence[str]) -> int:
    argv, overrides = cli.split_overrides(argv)
    parser = cli.parser("imagenet_jax.predict", __doc__)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="a file, a folder or -")
    parser.add_argument("--workdir", metavar="DIR", help="of a training run")
    parser.add_argument(
        "--checkpoint", metavar="latest|best|STEP", help="of the workdir (default: latest)"
    )
    parser.add_argument("--weights", metavar="FILE", help="a state dict in torchvision's layout")
    cli.add_weights_key(parser)
    cli.add_config(parser, what="the config of the model in --weights")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="classes to name")
    parser.add_argument("--json", action="store_true", help="print JSON lines, not a table")
    parser.add_argument("--html", metavar="FILE", help="write a page with pictures and bars too")
    args = parser.parse_args(argv)
    cli.check_weights(args)
    if args.top < 1:
        raise UserError(f"--top={args.top}: give at least 1")
    page = expand_user(args.html) if args.html else None
    if page and not page.parent.is_dir():
        raise UserError(f"--html={page}: the folder {page.parent} does not exist")

    from imagenet_jax.classify.images import predict_images
    from imagenet_jax.classify.page import report
    from imagenet_jax.data.loose_images import find_images

    weights = cli.open_weights(args, overrides)
    images, problems = find_images(args.images)
    results = predict_images(weights, images, args.top)
    title = f"{weights.config.model.name}, {weights.origin}"
    return report(results, problems, title=title, json_lines=args.json, page=page)


if __name__ == "__main__":
    cli.run(main, lost_output="ends")
