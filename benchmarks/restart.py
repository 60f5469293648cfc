"""Measure the seconds to the first step of a run, without and with a compilation cache.

  python -m benchmarks.restart --config=configs/quickstart.py

Both starts are separate processes. The first is stopped by SIGTERM and saves a checkpoint; the
second continues from it and finds the compiled programs in the workdir.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks.common import make_parser, print_result
from imagenet_jax import cli


def seconds_to_first_step(command: list[str]) -> float:
    """Start `command`, stop it when it reports a step, and return the seconds until then."""
    env = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    assert process.stdout
    for line in process.stdout:
        if line.startswith("step "):
            seconds = time.perf_counter() - start
            process.send_signal(signal.SIGTERM)
            process.communicate()
            return seconds
    raise SystemExit(f"{' '.join(command)} exited with {process.wait()} before its first step")


def main(argv: Any) -> None:
    argv, overrides = cli.split_overrides(argv)
    parser = make_parser(__doc__, "configs/quickstart.py")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as directory:
        command = [
            sys.executable, "-u", "-m", "imagenet_jax.main", f"--config={args.config}",
            f"--workdir={directory}/run", "--config.log.every_steps=1",
            *(f"--config.{field}={text}" for field, text in overrides),
        ]  # fmt: skip
        cold, warm = (seconds_to_first_step(command) for _ in range(2))
    result = {"cold_seconds": cold, "warm_seconds": warm, "ratio": cold / warm}
    print_result(result, args.json)


if __name__ == "__main__":
    cli.run(main)
