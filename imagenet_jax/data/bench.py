# PYTHON_ARGCOMPLETE_OK
"""Measure the speed of the input pipeline, stage by stage, and suggest settings.

  python -m imagenet_jax.data.bench --config=configs/resnet50.py
  python -m imagenet_jax.data.bench --config=configs/resnet50.py --need=3000

Records are read in the order of training. --need is the images per second that the accelerators can
process: `images_per_second` in metrics.jsonl when `input_wait` is 0, or the result of
benchmarks/train_step.py.
"""

import dataclasses
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from imagenet_jax import cli
from imagenet_jax.errors import UserError
from imagenet_jax.files import dump_json
from imagenet_jax.progress import announce

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from imagenet_jax.data import Source
    from imagenet_jax.data.sampler import Sampler

_SAMPLE = 256  # maximum number of records for the stages on one core
_STORED = 256  # shorter side in pixels of images stored by `prepare --resize=256`


@dataclasses.dataclass(frozen=True)
class Rate:
    """Images per second of a stage, and the number of cores that it could use."""

    stage: str
    images_per_second: float
    cores: int = 1


def main(argv: Sequence[str]) -> int:
    argv, overrides = cli.split_overrides(argv)
    parser = cli.parser("imagenet_jax.data.bench", __doc__)
    cli.add_config(parser, what="as for training", required=True)
    parser.add_argument(
        "--seconds", type=float, default=3.0, metavar="S", help="for each stage (default: 3)"
    )
    parser.add_argument("--need", type=float, metavar="N", help="images per second to reach")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    args = parser.parse_args(argv)
    for flag, value in (("seconds", args.seconds), ("need", args.need)):
        if value is not None and value <= 0:
            raise UserError(f"--{flag}={value}: give a number above 0")

    from imagenet_jax import config as config_io  # imported late, so that --help is fast

    config = config_io.load(args.config, overrides)
    rates = measure(config, args.seconds)
    lines = advise(config, rates, args.need)
    if args.json:
        stages = {rate.stage: rate.images_per_second for rate in rates}
        print(dump_json({"images_per_second": stages, "advice": lines}))
        return 0
    data = "synthetic data" if config.data.source == "synthetic" else config.data.path
    table = Table("stage", title=f"{config.data.train_split} of {data}")
    for column in ("img/s", "ms per image", "cores"):
        table.add_column(column, justify="right")
    for rate in rates:
        speed = rate.images_per_second
        table.add_row(rate.stage, f"{speed:,.0f}", f"{1000 / speed:.2f}", str(rate.cores))
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(table, *(f"- {line}" for line in lines), sep="\n")
    return 0


def measure(config: "ConfigDict", seconds: float) -> list[Rate]:
    """Measure every stage of the input pipeline of `config`, each for about `seconds`.

    The stages on one core process the same records in whole passes, so that rates are comparable.
    The name of the current stage is printed to standard error.
    """
    with announce("loading JAX"):
        import numpy as np

        from imagenet_jax.config import copy_config
        from imagenet_jax.data import decode, pipeline, sources
        from imagenet_jax.data.sampler import record_uniforms

    data = config.data
    _announce("opening the data")
    source = sources.open_source(data, data.train_split)
    sampler = pipeline.make_sampler(source, data, seed=config.seed, batch_size=config.batch_size)
    epochs, indices, copies = sampler.records(0, _SAMPLE)
    uniforms = record_uniforms(config.seed, epochs, indices, copies, decode.CROP_DRAWS)
    _announce("read")
    encoded, read = _read(source, indices.tolist(), seconds, skip=data.undecodable == "skip")
    out = np.empty((config.augment.image_size, config.augment.image_size, 3), np.uint8)
    scale, ratio = tuple(config.augment.crop_scale), tuple(config.augment.crop_ratio)
    rates = [read]

    def crop(encoded: bytes, row: int, resampling: str = data.resampling) -> None:
        decode.train_image(
            encoded, out, uniforms[row], scale=scale, ratio=ratio,
            interpolation=data.interpolation, resampling=resampling,
        )  # fmt: skip

    def add(stage: str, work: Callable[[int], Any]) -> None:
        _announce(stage)
        rates.append(Rate(stage, _measure_rate(work, len(encoded), seconds)))

    add("decode, whole image", lambda i: decode.decode(encoded[i]))
    add("decode and crop", lambda i: crop(encoded[i], i))
    if data.resampling != "fast":
        add("same, resampling=fast", lambda i: crop(encoded[i], i, "fast"))
    stored = _shrink(encoded)
    if stored != encoded:
        add("same, stored at 256", lambda i: crop(stored[i], i))
    cores = os.cpu_count() or 1
    configured = (0, data.workers) if data.workers else (data.threads or cores, 0)
    for threads, workers in dict.fromkeys([configured, (1, 0), (cores, 0), (0, cores)]):
        stage = f"pipeline, workers={workers}" if workers else f"pipeline, threads={threads}"
        _announce(stage)
        changed = copy_config(config, {"data.threads": threads, "data.workers": workers})
        speed = _measure_pipeline(source, sampler, changed, seconds)
        rates.append(Rate(stage, speed, workers or threads))
    return rates


def _announce(stage: str) -> None:
    print(f"measuring: {stage}", file=sys.stderr, flush=True)


def _read(
    source: "Source", indices: list[int], seconds: float, *, skip: bool
) -> tuple[list[bytes], Rate]:
    """Return the first images, as many as can be decoded in `seconds`, and the reading rate."""
    from imagenet_jax.data import decode

    source[len(source) - 1]  # opens the files
    encoded: list[bytes] = []
    reading = decoding = 0.0
    for index in indices:
        start = time.perf_counter()
        record = source[index]
        read = time.perf_counter()
        try:
            decode.decode(record["image"])
        except decode.UndecodableImage as e:
            if skip:
                continue
            raise UserError(
                f"image {record['id']} cannot be decoded: {e}; --config.data.undecodable=skip "
                "leaves it out"
            ) from e
        encoded.append(record["image"])
        reading, decoding = reading + read - start, decoding + time.perf_counter() - read
        if decoding > seconds:
            break
    if not encoded:
        raise UserError(f"{source.name}: no image of a sample of {_SAMPLE} can be decoded")
    return encoded, Rate("read", len(encoded) / reading)


def _shrink(encoded: list[bytes]) -> list[bytes]:
    """Return the images as `prepare --resize=256` stores them, unchanged if it keeps their size."""
    from imagenet_jax.prepare.shards import Storage, to_store

    stored = (to_store(image, Storage(resize=_STORED)) for image in encoded)
    return [new.encoded if new.resized else old for old, new in zip(encoded, stored, strict=True)]


def _measure_rate(work: Callable[[int], Any], count: int, seconds: float) -> float:
    """Return calls of `work` per second, in whole passes over the indices 0 to count - 1."""
    for i in range(min(8, count)):
        work(i)
    start, passes = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < seconds or not passes:
        for i in range(count):
            work(i)
        passes += 1
    return passes * count / spent


def _measure_pipeline(
    source: "Source", sampler: "Sampler", config: "ConfigDict", seconds: float
) -> float:
    """Return images per second of the whole pipeline."""
    from imagenet_jax.data import pipeline

    batches = pipeline.train_batches(source, sampler, config, total_steps=10**9)
    for _ in range(2 * (config.data.threads or config.data.workers)):
        next(batches)  # batches that were prefetched do not count
    start, done = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < seconds or not done:
        next(batches)
        done += sampler.batch_size
    return done / spent


def advise(config: "ConfigDict", rates: list[Rate], need: float | None) -> list[str]:
    """Return suggestions, one per line, the most useful first.

    Args:
      need: images per second to reach, if known.
    """
    speeds = {rate.stage: rate.images_per_second for rate in rates}
    pipelines = [rate for rate in rates if rate.stage.startswith("pipeline")]
    now, best = pipelines[0], max(pipelines, key=lambda rate: rate.images_per_second)
    crop, fastest, cores = speeds["decode and crop"], best.images_per_second, os.cpu_count() or 1
    lines = []
    if need and fastest >= need:
        lines.append(
            f"enough: {fastest / need:.1f} times what is needed; input wait should be near 0"
        )
    elif need:
        lines.append(
            f"not enough: {fastest / need:.0%} of what is needed, input wait will be near "
            f"{1 - fastest / need:.0%}; this needs "
            f"{need / fastest * min(best.cores, cores):.0f} cores, and the machine has {cores}"
        )
    if fastest > 1.1 * now.images_per_second:
        setting = best.stage.removeprefix("pipeline, ")
        only = "--config.data.workers=0 " if "threads" in setting and config.data.workers else ""
        lines.append(
            f"{setting} is {fastest / now.images_per_second:.1f} times as fast as the config's "
            f"setting: set {only}--config.data.{setting}"
        )
    if speeds["read"] < 5 * crop:
        lines.append(
            f"reading takes {crop / speeds['read']:.0%} of the time of decoding: put the data on a "
            "local SSD, or enough of it into memory"
        )
    for stage, subject, drawback in (
        (
            "same, resampling=fast",
            "--config.data.resampling=fast decodes and crops",
            "pixels alias, so accuracy may differ from the recipe's",
        ),
        (
            "same, stored at 256",
            "images stored by `prepare --resize=256` decode and crop",
            "see its --help for the drawbacks",
        ),
    ):
        if crop < 0.9 * speeds.get(stage, 0):
            lines.append(f"{subject} {speeds[stage] / crop:.1f} times as fast; {drawback}")
    return lines or ["nothing to change: no other setting is more than 10 % faster"]


if __name__ == "__main__":
    cli.run(main, lost_output="ends")
