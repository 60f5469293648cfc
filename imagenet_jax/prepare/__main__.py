# PYTHON_ARGCOMPLETE_OK
"""Convert the official ImageNet archives, or a folder of images, to the fastest training format.

  python -m imagenet_jax.prepare --tars=/downloads --out=/data
  python -m imagenet_jax.prepare --folder=/images --name=flowers --out=/data

The folder of --tars has ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and
ILSVRC2012_devkit_t12.tar.gz (the validation labels). The command writes /data/imagenet2012/5.1.0, a
tfds directory of ArrayRecord files that tfds can also open; record i is the same image as in the
directory that tfds prepares. The archives are not unpacked, and the result needs as much space as
they do. Put them on an SSD, because shards mix the classes. Images are stored byte for byte, except
that CMYK JPEGs and files of another format become RGB JPEGs (or lossless PNGs, for a folder without
JPEGs). A run that was killed continues where it stopped.

--resize=256 shrinks larger images to a shorter side of 256 pixels and stores them as JPEGs of
quality --quality, in imagenet2012_256q90/5.1.0. Smaller images are stored unchanged. The result
takes less space and is decoded faster. However, random crops come from fewer pixels and from a
second JPEG compression, and evaluation sees different pixels, so accuracies are not comparable with
published ones, whose recipes trained on full-size files.
"""

import os
from collections.abc import Sequence

from imagenet_jax import cli
from imagenet_jax.errors import UserError, expand_user


def main(argv: Sequence[str]) -> int:
    parser = cli.parser("imagenet_jax.prepare", __doc__)
    parser.add_argument("--tars", metavar="DIR", help="folder of the official archives")
    parser.add_argument(
        "--val_labels", metavar="FILE",
        help="replaces the labels of the development kit; lines are 'WORDNET_ID', in the order of "
        "the files, or 'FILE_NAME WORDNET_ID'",
    )  # fmt: skip
    parser.add_argument("--folder", metavar="DIR", help="data set in a layout of docs/data.md")
    parser.add_argument("--name", help="name of the data set that is made from --folder")
    parser.add_argument("--out", metavar="DIR", required=True, help="where to write NAME/VERSION")
    parser.add_argument(
        "--workers", type=int, metavar="N", default=os.cpu_count(), help="processes (default: all)"
    )
    parser.add_argument(
        "--resize", type=int, metavar="N", help="shorter side of larger images in pixels"
    )
    parser.add_argument(
        "--quality", type=int, metavar="Q", help="JPEG quality of resized images (default: 90)"
    )
    parser.add_argument(
        "--shard_mb", type=float, default=140, metavar="MB",
        help="input per shard, which a worker keeps in memory (default: 140; at most 1024 shards)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    if bool(args.tars) == bool(args.folder):
        raise UserError("give either --tars=DIR or --folder=DIR")
    if args.folder and (args.val_labels or not args.name):
        raise UserError("--folder=DIR goes with --name=NAME and without --val_labels")
    if args.tars and args.name:
        raise UserError("--name goes with --folder; the result of --tars is called imagenet2012")
    if args.quality is not None and not args.resize:
        raise UserError("--quality goes with --resize: without it images are stored unchanged")
    quality = 90 if args.quality is None else args.quality
    for flag, value, low, high in (
        ("workers", args.workers, 1, 4096), ("resize", args.resize, 1, 65_500),
        ("quality", quality, 1, 100), ("shard_mb", args.shard_mb, 0.001, 1_000_000),
    ):  # fmt: skip
        if value is not None and not low <= value <= high:
            raise UserError(f"--{flag}={value}: give a number from {low} to {high}")

    from imagenet_jax.prepare.folder import open_folder
    from imagenet_jax.prepare.imagenet import open_archives
    from imagenet_jax.prepare.prepare import prepare
    from imagenet_jax.prepare.shards import Storage

    out = expand_user(args.out).absolute()
    if args.tars:
        tars = expand_user(args.tars).absolute()
        labels = expand_user(args.val_labels) if args.val_labels else None
        dataset = open_archives(tars, labels)
    else:
        dataset = open_folder(expand_user(args.folder).absolute(), args.name)
    storage = Storage(dataset.encoding, args.resize, quality)
    prepare(dataset, out, storage, workers=args.workers, shard_bytes=args.shard_mb * 1e6)
    return 0


if __name__ == "__main__":
    cli.run(main)
