"""Measure the cost of saving and restoring a checkpoint.

  python -m benchmarks.checkpoint --config=configs/resnet50.py

Alternates between steps with and without a save, on a batch that is already on the device. The
stall is the time that a save adds to the steps around it, including its asynchronous part.
`stall_share_at_500_steps` is its fraction of the training time if every 500th step saves.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from benchmarks.common import make_parser, print_result
from imagenet_jax import cli
from imagenet_jax import config as config_io
from imagenet_jax.debug.cost import make_bare_step, random_batch
from imagenet_jax.training.checkpoint import Checkpoints, Position

SAVE_EVERY = 500  # steps


def measure(config: Any, rounds: int, steps: int) -> dict[str, float]:
    """Return medians over `rounds`, each of `steps` steps without and with a save."""
    bare = make_bare_step(config)
    state, batch = bare.create_state(), random_batch(config, bare.mesh)
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    plain, saving, calls = [], [], []
    with tempfile.TemporaryDirectory() as directory:
        checkpoints = Checkpoints(Path(directory) / "checkpoints", keep=1)
        for i in range(rounds + 1):
            seconds: dict[bool, float] = {}
            for save in (False, True):
                jax.block_until_ready(state)
                start = time.perf_counter()
                for k in range(steps):
                    state, _ = bare.step(state, batch)
                    if save and k == steps // 2:
                        called = time.perf_counter()
                        checkpoints.save(
                            state,
                            Position(data={"next_record": 0}, interval={}),
                            config=config.to_dict(), provenance={}, metrics=None,
                        )  # fmt: skip
                        call = time.perf_counter() - called
                jax.block_until_ready(state)
                seconds[save] = time.perf_counter() - start
                checkpoints.wait()
            if i:  # the first round compiles
                plain.append(seconds[False])
                saving.append(seconds[True])
                calls.append(call)
        restores = []
        for _ in range(rounds):
            start = time.perf_counter()
            restored, _ = checkpoints.restore(bare.abstract, checkpoints.find("latest"))
            jax.block_until_ready(restored)
            restores.append(time.perf_counter() - start)
        checkpoints.close()
    step_seconds = statistics.median(plain) / steps
    stall = statistics.median(b - a for a, b in zip(plain, saving, strict=True))
    return {
        "state_mib": size / 2**20,
        "step_ms": 1e3 * step_seconds,
        "save_call_ms": 1e3 * statistics.median(calls),
        "stall_ms": 1e3 * stall,
        "stall_share_at_500_steps": stall / (SAVE_EVERY * step_seconds),
        "restore_ms": 1e3 * statistics.median(restores),
    }


def main(argv: Any) -> None:
    argv, overrides = cli.split_overrides(argv)
    parser = make_parser(__doc__, "configs/resnet50.py")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="steps per measurement")
    args = parser.parse_args(argv)
    result = measure(config_io.load(args.config, overrides), args.rounds, args.steps)
    print_result(result, args.json)


if __name__ == "__main__":
    cli.run(main)
