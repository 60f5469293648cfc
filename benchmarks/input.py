"""Compare input pipelines: ours, tf.data and torchvision's reference loader.

  make bench      # install TensorFlow and torch, then run every benchmark
  python -m benchmarks.input --cores=1

Every pipeline turns the same JPEGs (scikit-learn's two photographs, cropped and resized to 500x375,
about 84 KB each) into uint8 batches of 224x224 random resized crops with the same distribution.
They take turns in one process on the same cores. A ratio is the median over rounds of the ratios
within a round. "antialias" resizes with a low-pass filter, and "fast" without; torchvision has only
the former. Pipelines that are not installed are left out. `--width=2000` uses photographs of
2000x1500 pixels, which "fast" decodes at a reduced size.
"""

import argparse
import io
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

BATCH, SIDE = 64, 224
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def photographs(count: int = 128, width: int = 500) -> list[bytes]:
    """Return JPEGs with aspect ratio 4:3. By default, they have ImageNet's average size, 84 KB.

    Larger images get grain and about 0.25 bytes per pixel, like photographs from a camera.
    """
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_image

    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(load_sample_image(f)) for f in ("china.jpg", "flower.jpg")]
    encoded = []
    for i in range(count):
        w = int(rng.integers(480, 561))
        h = w * 3 // 4
        x, y = int(rng.integers(0, 641 - w)), int(rng.integers(0, 428 - h))
        crop = pictures[i % 2].crop((x, y, x + w, y + h)).resize((width, width * 3 // 4))
        if width > 500:
            grain = rng.normal(0, 4, (crop.height, crop.width, 1))
            crop = Image.fromarray(np.clip(np.asarray(crop) + grain, 0, 255).astype(np.uint8))
        most = 86_000 if width <= 500 else crop.width * crop.height // 4
        for quality in range(99, 60, -1):
            file = io.BytesIO()
            crop.save(file, "JPEG", quality=quality)
            if file.tell() <= most:
                break
        encoded.append(file.getvalue())
    return encoded


def ours(
    encoded: list[bytes], cores: int, resampling: str, directory: Path, resize: int = 0
) -> Callable[[], Iterator[Any]]:
    """Return our pipeline, from ArrayRecord. `resize` is the shorter side of stored images."""
    import numpy as np
    from PIL import Image

    from imagenet_jax.config.fields import defaults
    from imagenet_jax.data import pipeline, sources
    from imagenet_jax.data.tfds_format import write_dataset

    path = directory / f"ours{resize}" / "1.0.0"
    if not path.exists():
        if resize:
            smaller = []
            for e in encoded:
                image = Image.open(io.BytesIO(e))
                file = io.BytesIO()
                size = (round(image.width * resize / image.height), resize)
                image.resize(size, Image.Resampling.LANCZOS).save(file, "JPEG", quality=90)
                smaller.append(file.getvalue())
            encoded = smaller
        write_dataset(
            path,
            {"train": ({"image": e, "label": 0, "id": str(i)} for i, e in enumerate(encoded))},
            class_names=["photograph"],
            description="benchmark",
        )
    config = defaults()
    config.data.resampling, config.data.threads = resampling, cores
    source = sources.open_tfds(path, "train")
    seeds = itertools.count()

    def start() -> Iterator[Any]:
        sampler = pipeline.make_sampler(source, config.data, seed=next(seeds), batch_size=BATCH)
        batches = pipeline.train_batches(source, sampler, config, total_steps=10**6)
        return (np.asarray(b["image"]) for b in batches)

    return start


def tf_data(encoded: list[bytes], cores: int, antialias: bool) -> Callable[[], Iterator[Any]]:
    """Return tf.data with fused decode and crop, JPEGs in memory, and a private thread pool."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import tensorflow as tf

    def crop(jpeg: Any) -> Any:
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(jpeg),
            tf.zeros([0, 0, 4]),
            min_object_covered=0.0,
            aspect_ratio_range=RATIO,
            area_range=SCALE,
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.stack([begin[0], begin[1], size[0], size[1]])
        image = tf.image.decode_and_crop_jpeg(jpeg, window, channels=3)
        image = tf.image.resize(image, [SIDE, SIDE], antialias=antialias)
        return tf.cast(image + 0.5, tf.uint8)

    options = tf.data.Options()
    options.threading.private_threadpool_size = cores
    options.threading.max_intra_op_parallelism = 1
    options.deterministic = False
    dataset = (
        tf.data.Dataset.from_tensor_slices(encoded)
        .repeat()
        .map(crop, num_parallel_calls=cores if cores == 1 else tf.data.AUTOTUNE)
        .batch(BATCH, drop_remainder=True)
        .prefetch(2)
        .with_options(options)
    )
    return lambda: dataset.as_numpy_iterator()


def torchvision_loader(encoded: list[bytes], workers: int) -> Callable[[], Iterator[Any]]:
    """Return torch's DataLoader with the transforms of torchvision's references on PIL images."""
    import torch

    try:
        from torchvision.transforms import v2
    except RuntimeError:  # a torchvision without its compiled operators still has the transforms
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        for name in [m for m in sys.modules if m.startswith("torchvision")]:
            del sys.modules[name]
        from torchvision.transforms import v2
    from PIL import Image

    transform = v2.Compose(
        [
            v2.RandomResizedCrop(SIDE, scale=SCALE, ratio=RATIO, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
        ]
    )

    class Jpegs(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 10**7

        def __getitem__(self, index: int) -> Any:
            image = Image.open(io.BytesIO(encoded[index % len(encoded)])).convert("RGB")
            return transform(image)

    torch.set_num_threads(1)
    loader = torch.utils.data.DataLoader(Jpegs(), batch_size=BATCH, num_workers=workers)
    return lambda: (batch.numpy() for batch in loader)


def measure(contenders: dict[str, Callable], rounds: int, batches: int) -> dict[str, list[float]]:
    """Return the images per second of each contender in each round, after a warm-up round."""
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for i in range(rounds + 1):
        for name, start in contenders.items():
            iterator = start()
            for _ in range(4):  # fill the prefetch buffers, which would count as speed
                next(iterator)
            began = time.perf_counter()
            for _ in range(batches):
                batch = next(iterator)
            seconds = time.perf_counter() - began
            assert batch.shape[0] == BATCH and batch.dtype == "uint8"
            del iterator
            if i:
                rates[name].append(batches * BATCH / seconds)
    return rates


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cores", type=int, default=1, help="number of cores to use")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=16, help="batches of 64 per measurement")
    parser.add_argument("--width", type=int, default=500, help="width of the photographs in pixels")
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    args = parser.parse_args(argv)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
    encoded = photographs(128 if args.width <= 500 else 16, args.width)
    with tempfile.TemporaryDirectory() as directory:
        where = Path(directory)
        contenders: dict[str, Callable] = {}
        for resampling in ("fast", "antialias"):
            contenders[f"ours {resampling}"] = ours(encoded, args.cores, resampling, where)
        contenders["ours antialias, stored at 256"] = ours(
            encoded, args.cores, "antialias", where, 256
        )
        try:
            contenders["tf.data fast"] = tf_data(encoded, args.cores, antialias=False)
            contenders["tf.data antialias"] = tf_data(encoded, args.cores, antialias=True)
        except ImportError:
            print("TensorFlow is not installed: tf.data is left out", file=sys.stderr)
        try:
            contenders["torchvision antialias"] = torchvision_loader(
                encoded, 0 if args.cores == 1 else args.cores
            )
        except ImportError:
            print("torchvision is not installed: its loader is left out", file=sys.stderr)
        rates = measure(contenders, args.rounds, args.batches)
    result: dict[str, float] = {"cores": args.cores, "width": args.width}
    for name, values in rates.items():
        result[f"{name}, img/s"] = statistics.median(values)
    for name, base in (
        ("ours fast", "tf.data fast"),
        ("ours antialias", "tf.data antialias"),
        ("ours antialias", "torchvision antialias"),
        ("ours antialias, stored at 256", "ours antialias"),
        ("ours fast", "ours antialias"),
    ):
        if base in rates:
            pairs = zip(rates[name], rates[base], strict=True)
            result[f"{name} / {base}"] = statistics.median(a / b for a, b in pairs)
    if args.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:55} {value:10,.2f}")


if __name__ == "__main__":
    main()
