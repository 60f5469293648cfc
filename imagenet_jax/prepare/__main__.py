# PYTHON_ARGCOMPLETE_OK
"""Turn the official ImageNet archives, or an image folder, into what training reads fastest.

  python -m imagenet_jax.prepare --tars=/downloads --out=/data
  python -m imagenet_jax.prepare --folder=/images --name=flowers --out=/data

--tars has ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz (the
validation labels). Writes /data/imagenet2012/5.1.0, a tfds directory of ArrayRecord files in which
record i is the same image as in the one that tfds prepares; tfds opens it too. Nothing is unpacked;
the room needed is that of the archives, which are best on an SSD: shards mix the classes. Images
are stored byte for byte, except that CMYK JPEGs and files of another format become RGB JPEGs (PNGs,
without loss, for a folder that has no JPEG). A run that was killed continues where it ended.

--resize=256 shrinks larger images to a shorter side of 256 pixels and stores them as JPEGs of
quality --quality, in imagenet2012_256q90/5.1.0; smaller images are stored as without it. They take
less room and less time to decode. The price: random crops come from fewer pixels and a second JPEG
compression, and evaluation sees different pixels, so accuracies are not comparable with published
ones, whose recipes trained on full-size files.
"""

import os
from collections.abc import Sequence

from imagenet_jax import cli
from imagenet_jax.errors import UserError, expand_user


def main(argv: Sequence[str]) -> int:
    parser = cli.parser("imagenet_jax.prepare", __doc__)
    parser.add_argument("--tars", metavar="DIR", help="with the official archives")
    parser.add_argument(
        "--val_labels", metavar="FILE",
        help="instead of the kit's: a WordNet id per line in file order, or 'FILE_NAME ID' lines",
    )  # fmt: skip
    parser.add_argument("--folder", metavar="DIR", help="in a layout of docs/data.md")
    parser.add_argument("--name", help="of the data set that --folder makes")
    parser.add_argument("--out", metavar="DIR", required=True, help="where NAME/VERSION goes")
    parser.add_argument(
        "--workers", type=int, metavar="N", default=os.cpu_count(), help="processes (default: all)"
    )
    parser.add_argument("--resize", type=int, metavar="N", help="pixels of the shorter side")
    parser.add_argument("--quality", type=int, metavar="Q", help="with --resize (default: 90)")
    parser.add_argument(
        "--shard_mb", type=float, default=140, metavar="MB",
        help="input per shard; a worker takes memory for one (default: 140; 1024 shards at most)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    if bool(args.tars) == bool(args.folder):
        raise UserError("give either --tars=DIR or --folder=DIR")
    if args.folder and (args.val_labels or not args.name):
        raise UserError("--folder=DIR goes with --name=NAME and without --val_labels")
    if args.tars and args.name:
        raise UserError("--name goes with --folder; what --tars makes is called imagenet2012")
    if args.quality is not None and not args.resize:
        raise UserError("--quality goes with --resize: images are stored as they are without it")
    quality = 90 if args.quality is None else args.quality
    for flag, value, low, high in (
        ("workers", args.workers, 1, 4096), ("resize", args.resize, 1, 65_500),
        ("quality", quality, 1, 100), ("shard_mb", args.shard_mb, 0.001, 1_000_000),
    ):  # fmt: skip
        if value is not None and not low <= value <= high:
            raise UserError(f"--{flag}={value}: give a number from {low} to {high}")

    from imagenet_jax.prepare import folder, imagenet
    from imagenet_jax.prepare.images import Storage
    from imagenet_jax.prepare.prepare import prepare

    out = expand_user(args.out).absolute()
    if args.tars:
        tars = expand_user(args.tars).absolute()
        labels = expand_user(args.val_labels) if args.val_labels else None
        dataset = imagenet.dataset(tars, labels)
    else:
        dataset = folder.dataset(expand_user(args.folder).absolute(), args.name)
    storage = Storage(dataset.encoding, args.resize, quality)
    prepare(dataset, out, storage, workers=args.workers, shard_bytes=args.shard_mb * 1e6)
    return 0


if __name__ == "__main__":
    cli.run(main)
