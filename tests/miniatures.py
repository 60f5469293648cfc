"""The official archives, and a folder, in miniature."""

import hashlib
import io
import tarfile

import numpy as np
from conftest import tiny_config
from PIL import Image

from imagenet_jax.data import sources
from imagenet_jax.prepare import __main__ as command

WNIDS = ("n01440764", "n01443537", "n02012849", "n15075141")
LABELS = (0, 1, 134, 999)  # of torchvision's list


TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"


def jpeg(seed, size=(60, 45), mode="RGB", kind="JPEG"):
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (size[1] // 4 + 1, size[0] // 4 + 1, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).convert(mode)
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def tar(files, mode="w"):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def devkit(labels):
    """The kit's own layout; its ids are not in the order of the WordNet ids."""
    from scipy.io import savemat

    ids = {wnid: i for i, wnid in enumerate(reversed(WNIDS), 1)}
    synsets = np.zeros((len(ids), 1), [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")])
    for row, (wnid, number) in enumerate(ids.items()):
        synsets[row, 0] = (number, wnid, "some words, more words")
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets})
    truth = "".join(f"{ids[wnid]}\n" for wnid in labels)
    root = "ILSVRC2012_devkit_t12/data"
    return tar(
        {
            f"{root}/ILSVRC2012_validation_ground_truth.txt": truth.encode(),
            f"{root}/meta.mat": meta.getvalue(),
        },
        "w:gz",
    )


def write_tars(directory, train, val, val_wnids):
    directory.mkdir(exist_ok=True)
    (directory / TRAIN).write_bytes(tar({f"{w}.tar": tar(files) for w, files in train.items()}))
    (directory / VAL).write_bytes(tar(val))
    (directory / DEVKIT).write_bytes(devkit(val_wnids))


def content(per_class=6, val=10):
    train = {
        wnid: {f"{wnid}_{i}.JPEG": jpeg(100 * c + i) for i in range(per_class)}
        for c, wnid in enumerate(WNIDS)
    }
    images = {f"ILSVRC2012_val_{i:08d}.JPEG": jpeg(-i % 997) for i in range(val, 0, -1)}
    val_wnids = [WNIDS[i * i % 4 if i % 3 else 3] for i in range(1, val + 1)]
    return train, images, val_wnids


def prepare(tars, out, *more):
    command.main([f"--tars={tars}", f"--out={out}", "--workers=1", "--shard_mb=0.01", *more])
    return next(path for path in out.glob("imagenet2012*/5.1.0"))


def read_records(path, split):
    data = tiny_config(path).data
    data.source = "tfds"
    source = sources.open_source(data, split)
    return [source[i] for i in range(len(source))]


def hashes(path):
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(path.iterdir())
        if p.name != "prepared.json"
    }


def make_folder(path, kind="JPEG", suffix="jpg"):
    for split, count in (("train", 4), ("val", 2)):
        for c, name in enumerate(("bee", "ant")):
            (path / split / name).mkdir(parents=True)
            for i in range(count):
                data = jpeg(10 * c + i, kind=kind)
                (path / split / name / f"{i}.{suffix}").write_bytes(data)
    return path
