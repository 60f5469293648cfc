"""The stages of an input pipeline, measured one by one, and what their rates advise."""

import dataclasses
import itertools
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from imagenet_jax.data import decode, pipeline, sources
from imagenet_jax.data.order import Order, record_uniforms
from imagenet_jax.data.preparation.images import Storage, to_store

_SAMPLE = 256  # records that the one-core stages go around


@dataclasses.dataclass(frozen=True)
class Rate:
    """Images per second of a stage; `cores` that it could use."""

    stage: str
    images_per_second: float
    cores: int = 1


def measure(config: ConfigDict, seconds: float) -> list[Rate]:
    """Every stage of the pipeline of `config.train_split`, each for about `seconds`."""
    data = config.data
    source = sources.open_source(data, data.train_split)
    order = pipeline.order_of(source, data, seed=config.seed, batch_size=config.batch_size)
    _, indices, _ = where = order.records(0, _SAMPLE)
    uniforms = record_uniforms(config.seed, *where, decode.CROP_DRAWS)
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

    encoded = [source[int(index)]["image"] for index in indices]
    small = [to_store(image, Storage(resize=256))[0] for image in encoded[:64]]
    # Of records that were not read just before, where there are so many.
    fresh = itertools.cycle(order.records(_SAMPLE, _SAMPLE + 20_000)[1].tolist())

    rates = [
        Rate("read", _rate(lambda _: source[next(fresh)], seconds)),
        Rate("decode, whole image", _rate(lambda i: decode.decode(encoded[i]), seconds)),
        Rate("decode and crop", _rate(lambda i: crop(encoded[i], i), seconds)),
        Rate("same, resampling=fast", _rate(lambda i: crop(encoded[i], i, "fast"), seconds)),
        Rate("same, stored at 256", _rate(lambda i: crop(small[i % 64], i), seconds)),
    ]
    cores = os.cpu_count() or 1
    settings = dict.fromkeys(
        [(data.threads or cores, data.workers), (1, 0), (cores, 0), (0, cores)]
    )
    for threads, workers in settings:
        label = f"pipeline, workers={workers}" if workers else f"pipeline, threads={threads}"
        speed = _pipeline_rate(source, order, config, threads, workers, seconds)
        rates.append(Rate(label, speed, workers or threads))
    return rates


def _rate(stage: Callable[[int], Any], seconds: float) -> float:
    """Calls of `stage` per second after a few to warm up, indices going around the sample."""
    for i in range(8):
        stage(i)
    began, done = time.perf_counter(), 0
    while (spent := time.perf_counter() - began) < seconds:
        stage(done % _SAMPLE)
        done += 1
    return done / spent


def _pipeline_rate(
    source: sources.Source,
    order: Order,
    config: ConfigDict,
    threads: int,
    workers: int,
    seconds: float,
) -> float:
    data = ConfigDict(config.data.to_dict())
    data.threads, data.workers = threads, workers
    batches: Iterator[Any] = pipeline.train_batches(
        source, order, data, config.augment, total_steps=10**9
    )
    for _ in range(2 * (threads or workers)):  # what was made ahead does not count as speed
        next(batches)
    began, done = time.perf_counter(), 0
    while (spent := time.perf_counter() - began) < seconds or not done:
        next(batches)
        done += order.batch_size
    return done / spent


def advice(config: ConfigDict, rates: list[Rate], need: float | None) -> list[str]:
    """What the rates say, a line each; the most useful first."""
    by_name = {rate.stage: rate for rate in rates}
    pipelines = [rate for rate in rates if rate.stage.startswith("pipeline")]
    now, best = pipelines[0], max(pipelines, key=lambda rate: rate.images_per_second)
    one, cores = by_name["decode and crop"].images_per_second, os.cpu_count() or 1
    lines = []
    if best.images_per_second > 1.1 * now.images_per_second:
        lines.append(
            f"{best.stage.removeprefix('pipeline, ')} is {_times(best, now)} as fast as what the "
            f"config has: set --config.data.{best.stage.removeprefix('pipeline, ')}"
        )
    if by_name["read"].images_per_second < 5 * one:
        lines.append(
            f"reading takes {one / by_name['read'].images_per_second:.0%} of the time that "
            "decoding does: put the data on a local SSD, or enough of it into memory"
        )
    if (
        config.data.resampling != "fast"
        and one < 0.9 * by_name["same, resampling=fast"].images_per_second
    ):
        lines.append(
            f"--config.data.resampling=fast decodes and crops "
            f"{_times(by_name['same, resampling=fast'], by_name['decode and crop'])} as fast; "
            "pixels alias, so accuracy may differ from the recipe's"
        )
    if one < 0.9 * by_name["same, stored at 256"].images_per_second:
        lines.append(
            f"images stored by `prepare --resize=256` decode and crop "
            f"{_times(by_name['same, stored at 256'], by_name['decode and crop'])} as fast; see "
            "its --help for the price"
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
    return lines or [
        "nothing to change: threads are as good as workers, and decoding is what it is"
    ]


def _times(a: Rate, b: Rate) -> str:
    return f"{a.images_per_second / b.images_per_second:.1f} times"
