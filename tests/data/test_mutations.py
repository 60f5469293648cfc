"""A thousand damaged images: none crashes or hangs the pipeline, each is used or named."""

import json
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

REPOSITORY = Path(__file__).parents[2]  # of conftest, whose import takes seconds
COUNT = 1000


def _originals():
    """Small files of the kinds that data sets have."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    rgb = Image.fromarray(noise).resize((64, 48), Image.Resampling.BICUBIC)
    deep = Image.fromarray(rng.integers(0, 65536, (48, 64)).astype(np.uint16))
    kinds = [
        (rgb, "JPEG", {"quality": 90}),
        (rgb, "JPEG", {"progressive": True}),
        (rgb, "JPEG", {"subsampling": 0, "restart_marker_blocks": 4}),
        (rgb.convert("L"), "JPEG", {}),
        (rgb.convert("CMYK"), "JPEG", {}),
        (rgb, "PNG", {}),
        (rgb.convert("P"), "PNG", {}),
        (rgb.convert("RGBA"), "PNG", {}),
        (deep, "PNG", {}),
    ]
    files = []
    for image, kind, options in kinds:
        file = BytesIO()
        image.save(file, kind, **options)
        files.append(file.getvalue())
    return files


def _mutate(data, rng):
    """A few flipped bits, an early end, a wrong header, or bytes lost, doubled or overwritten."""
    data = bytearray(data)
    way = rng.integers(6)
    if way == 0:
        for _ in range(rng.integers(1, 20)):
            data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    elif way == 1:
        del data[rng.integers(len(data)) :]
    elif way == 2:
        at = rng.integers(0, min(len(data), 200))
        data[at : at + 4] = rng.bytes(rng.integers(1, 5))
    elif way == 3:
        at = rng.integers(0, len(data))
        del data[at : at + rng.integers(1, 100)]
    elif way == 4:
        at, size = rng.integers(0, len(data)), rng.integers(1, 300)
        data[at:at] = data[at : at + size]
    else:  # sizes, counts and lengths are two or four bytes somewhere in the header
        at = rng.integers(0, min(len(data) - 4, 200))
        data[at : at + 2] = rng.choice([b"\0\0", b"\xff\xff", b"\x7f\xff", b"\0\1"])
    return bytes(data)


class Mutants:
    name, class_names, fingerprint = "mutants", ("a", "b"), "0"

    def __init__(self):
        rng = np.random.default_rng(1)
        originals = _originals()
        self.files = [_mutate(originals[i % len(originals)], rng) for i in range(COUNT)]

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        return {"image": self.files[index], "label": index % 2, "id": str(index)}


def _run():
    """In a process of its own, so that a crash or a hang is seen for what it is."""
    from imagenet_jax.config.fields import defaults
    from imagenet_jax.data import pipeline
    from imagenet_jax.data.decode import UndecodableImage, decode
    from imagenet_jax.doctor.survey import inspect

    source, config = Mutants(), defaults()
    config.data.undecodable, config.data.threads = "skip", 2
    config.augment.image_size, config.eval.resize, config.eval.image_size = 16, 18, 16
    refused, found = [], []
    for i, file in enumerate(source.files):
        try:
            image = decode(file)
            assert image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8
        except UndecodableImage as e:
            assert str(e) and "\n" not in str(e)
            refused.append(str(i))
        facts = inspect(file, f"{i}.jpg")
        if not facts.height:
            found.append(str(i))
    evaluated = list(pipeline.eval_batches(source, config))
    sampler = pipeline.make_sampler(source, config.data, seed=0, batch_size=50)
    trained = list(pipeline.train_batches(source, sampler, config, total_steps=COUNT // 50))
    print(
        json.dumps(
            {
                "refused": refused,
                "found": found,
                "evaluated": sum(float(b["mask"].sum()) for b in evaluated),
                "not evaluated": sorted((n for b in evaluated for n in b["skipped"]), key=int),
                "trained": sum(float(b["mask"].sum()) for b in trained),
                "not trained": sorted((n for b in trained for n in b["skipped"]), key=int),
            }
        )
    )


def test_each_mutant_is_used_or_named():
    done = subprocess.run(
        [sys.executable, "-P", __file__], cwd=REPOSITORY,
        capture_output=True, text=True, timeout=300,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    got = json.loads(done.stdout.splitlines()[-1])
    assert got["found"] == got["refused"]  # what training refuses the doctor finds
    assert got["not evaluated"] == got["refused"]
    assert got["evaluated"] + len(got["refused"]) == COUNT
    assert got["trained"] + len(got["not trained"]) == COUNT
    # Damage below a crop is not seen by it; nothing else is let through.
    assert set(got["not trained"]) <= set(got["refused"])
    assert 200 < len(got["refused"]) < 900  # both outcomes are common


if __name__ == "__main__":
    _run()
