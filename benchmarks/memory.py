"""Measure the host memory of the input pipeline: growth over a million records, and peaks.

  python -m benchmarks.memory

Each figure is measured in a separate process. Growth compares the resident memory after a tenth of
a million records of scikit-learn's digits, in batches of 256, with that at the end. Peaks, by batch
size, are for 500x375 JPEGs, crops of 224x224 and the default prefetch, minus the memory before the
first batch.
"""

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BATCH_SIZES = (64, 256, 1024)
MIB = 2**20


def resident() -> float:
    """Return the resident memory of this process in MiB (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / MIB


def growth(records: int, directory: str) -> dict[str, float]:
    """Return the resident MiB after a tenth of `records` and at the end, and their maximum."""
    from imagenet_jax.config.fields import defaults
    from imagenet_jax.data import builtin, pipeline, sources

    path = Path(directory) / "digits" / "1.0.0"
    builtin.write_digits(path)
    config = defaults()
    config.augment.image_size = 16
    source = sources.open_tfds(path, "train")
    sampler = pipeline.make_sampler(source, config.data, seed=0, batch_size=256)
    steps = records // 256
    batches = pipeline.train_batches(source, sampler, config, total_steps=steps)
    began = time.perf_counter()
    marks = []
    for step, _ in enumerate(batches, 1):
        if step % (steps // 10) == 0:
            marks.append(resident())
    return {
        "records": steps * 256,
        "MiB after a tenth": marks[0],
        "MiB at the end": marks[-1],
        "largest MiB between": max(marks),
        "seconds": time.perf_counter() - began,
    }


def peak(batch_size: int) -> dict[str, float]:
    """Return the MiB before the first batch, and the additional peak over 12 batches."""
    from benchmarks.input import photographs
    from imagenet_jax.config.fields import defaults
    from imagenet_jax.data import decode, pipeline
    from imagenet_jax.data.builtin import SyntheticSource

    class Photographs(SyntheticSource):
        def __init__(self) -> None:
            super().__init__("train", 10**6, 10, 8, 8)
            self._encoded = photographs(len(self._encoded))

    config = defaults()
    source = Photographs()
    decode.decode(source[0]["image"])
    sampler = pipeline.make_sampler(source, config.data, seed=0, batch_size=batch_size)
    sampler.records(0, 1)  # the first epoch's permutation
    before = resident()
    batches = pipeline.train_batches(source, sampler, config, total_steps=12)
    for _ in batches:
        pass
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"MiB before": before, "peak MiB above": most - before}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--records", type=int, default=1_000_000, help="number of records for the growth"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    args = parser.parse_args(argv)
    result: dict[str, Any] = {}
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as directory:
        with context.Pool(1) as pool:
            result["growth"] = pool.apply(growth, (args.records, directory))
        for batch_size in BATCH_SIZES:
            with context.Pool(1) as pool:
                result[f"batch {batch_size}"] = pool.apply(peak, (batch_size,))
    if args.json:
        print(json.dumps(result))
        return
    for name, values in result.items():
        print(name)
        for label, value in values.items():
            print(f"  {label:25} {value:12,.1f}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
