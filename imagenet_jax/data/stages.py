"""The stages of an input pipeline, measured one by one, and what their rates advise."""

import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from imagenet_jax.data import decode, pipeline, sources
from imagenet_jax.data.sampler import Sampler, record_uniforms
from imagenet_jax.errors import UserError
from imagenet_jax.prepare.images import Storage, to_store

_SAMPLE = 256  # records that the one-core stages go around, at most
_STORED = 256  # pixels of the shorter side, as `prepare --resize=256` stores images


@dataclasses.dataclass(frozen=True)
class Rate:
    """Images per second of a stage; `cores` that it could use."""

    stage: str
    images_per_second: float
    cores: int = 1


def measure(config: ConfigDict, seconds: float) -> list[Rate]:
    """Measure every stage of the input pipeline of `config`, each for about `seconds`.

    The stages on one core all take the same records, in whole passes, so that their rates compare.
    """
    data = config.data
    source = sources.open_source(data, data.train_split)
    sampler = pipeline.make_sampler(source, data, seed=config.seed, batch_size=config.batch_size)
    where = sampler.records(0, _SAMPLE)
    uniforms = record_uniforms(config.seed, *where, decode.CROP_DRAWS)
    encoded, read = _read(source, where[1], seconds, skip=data.undecodable == "skip")
    side = config.augment.image_size
    out = np.empty((side, side, 3), np.uint8)

    def crop(encoded: bytes, row: int, resampling: str = data.resampling) -> None:
        decode.train_image(
            encoded,
            out,
            uniforms[row],
            scale=tuple(config.augment.crop_scale),
            ratio=tuple(config.augment.crop_ratio),
            interpolation=data.interpolation,
            resampling=resampling,
        )

    def rate(stage: str, work: Callable[[int], Any]) -> Rate:
        return Rate(stage, _rate(work, len(encoded), seconds))

    rates = [
        read,
        rate("decode, whole image", lambda i: decode.decode(encoded[i])),
        rate("decode and crop", lambda i: crop(encoded[i], i)),
    ]
    if data.resampling != "fast":
        rates.append(rate("same, resampling=fast", lambda i: crop(encoded[i], i, "fast")))
    stored = _shrunk(encoded)
    if stored != encoded:
        rates.append(rate("same, stored at 256", lambda i: crop(stored[i], i)))
    cores = os.cpu_count() or 1
    now = (0, data.workers) if data.workers else (data.threads or cores, 0)
    settings = dict.fromkeys([now, (1, 0), (cores, 0), (0, cores)])
    for threads, workers in settings:
        label = f"pipeline, workers={workers}" if workers else f"pipeline, threads={threads}"
        speed = _pipeline_rate(source, sampler, config, threads, workers, seconds)
        rates.append(Rate(label, speed, workers or threads))
    return rates


def _read(
    source: sources.Source, indices: np.ndarray, seconds: float, *, skip: bool
) -> tuple[list[bytes], Rate]:
    """Return the first images, as many as decode within `seconds`, and how fast they were read."""
    source[len(source) - 1]  # opens the files
    encoded: list[bytes] = []
    reading = decoding = 0.0
    for index in indices.tolist():
        began = time.perf_counter()
        record = source[index]
        read = time.perf_counter()
        try:
            decode.decode(record["image"])
        except decode.UndecodableImage as e:
            if skip:
                continue
            raise UserError(f"image {record['id']} cannot be decoded: {e}") from e
        encoded.append(record["image"])
        reading, decoding = reading + read - began, decoding + time.perf_counter() - read
        if decoding > seconds:
            break
    if not encoded:
        raise UserError(f"{source.name}: no image of a sample of {_SAMPLE} can be decoded")
    return encoded, Rate("read", len(encoded) / reading)


def _shrunk(encoded: list[bytes]) -> list[bytes]:
    """Return the images as `prepare --resize=256` stores them if it shrinks them."""
    stored = (to_store(image, Storage(resize=_STORED)) for image in encoded)
    return [new.encoded if new.resized else old for old, new in zip(encoded, stored, strict=True)]


def _rate(stage: Callable[[int], Any], count: int, seconds: float) -> float:
    """Return calls of `stage` per second over whole passes through indices 0 to count - 1."""
    for i in range(min(8, count)):
        stage(i)
    began, passes = time.perf_counter(), 0
    while (spent := time.perf_counter() - began) < seconds or not passes:
        for i in range(count):
            stage(i)
        passes += 1
    return passes * count / spent


def _pipeline_rate(
    source: sources.Source,
    sampler: Sampler,
    config: ConfigDict,
    threads: int,
    workers: int,
    seconds: float,
) -> float:
    data = ConfigDict(config.data.to_dict())
    data.threads, data.workers = threads, workers
    batches: Iterator[Any] = pipeline.train_batches(
        source, sampler, data, config.augment, total_steps=10**9
    )
    for _ in range(2 * (threads or workers)):  # what was made ahead does not count as speed
        next(batches)
    began, done = time.perf_counter(), 0
    while (spent := time.perf_counter() - began) < seconds or not done:
        next(batches)
        done += sampler.batch_size
    return done / spent


def advice(config: ConfigDict, rates: list[Rate], need: float | None) -> list[str]:
    """What the rates say, a line each; the most useful first."""
    by_name = {rate.stage: rate for rate in rates}
    fast, small = by_name.get("same, resampling=fast"), by_name.get("same, stored at 256")
    pipelines = [rate for rate in rates if rate.stage.startswith("pipeline")]
    now, best = pipelines[0], max(pipelines, key=lambda rate: rate.images_per_second)
    one, cores = by_name["decode and crop"].images_per_second, os.cpu_count() or 1
    lines = []
    if best.images_per_second > 1.1 * now.images_per_second:
        setting = best.stage.removeprefix("pipeline, ")
        alone = "--config.data.workers=0 " if "threads" in setting and config.data.workers else ""
        lines.append(
            f"{setting} is {_times(best, now)} as fast as what the config has: set "
            f"{alone}--config.data.{setting}"
        )
    if by_name["read"].images_per_second < 5 * one:
        lines.append(
            f"reading takes {one / by_name['read'].images_per_second:.0%} of the time that "
            "decoding does: put the data on a local SSD, or enough of it into memory"
        )
    if fast and one < 0.9 * fast.images_per_second:
        lines.append(
            f"--config.data.resampling=fast decodes and crops "
            f"{_times(fast, by_name['decode and crop'])} as fast; pixels alias, so accuracy may "
            "differ from the recipe's"
        )
    if small and one < 0.9 * small.images_per_second:
        lines.append(
            f"images stored by `prepare --resize=256` decode and crop "
            f"{_times(small, by_name['decode and crop'])} as fast; see its --help for the price"
        )
    if need:
        share = best.images_per_second / need
        if share >= 1:
            lines.insert(
                0, f"enough: {share:.1f} times what is needed; input wait should be near 0"
            )
        else:
            per_core = best.images_per_second / min(best.cores, cores)
            lines.insert(
                0,
                f"not enough: {share:.0%} of what is needed, input wait will be near "
                f"{1 - share:.0%}; as it is that takes {need / per_core:.0f} cores, this machine "
                f"has {cores}",
            )
    return lines or ["nothing to change: no other setting is more than 10 % faster"]


def _times(a: Rate, b: Rate) -> str:
    return f"{a.images_per_second / b.images_per_second:.1f} times"
