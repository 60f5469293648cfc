"""Seconds from starting a run to its first step: cold, and with what the first start compiled.

  python -m benchmarks.restart --config=configs/quickstart.py

The workdir keeps the compiled programs. Both starts are whole processes; the second continues from
the checkpoint that SIGTERM made the first one save.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from imagenet_jax import cli


def seconds_to_first_step(command: list[str]) -> float:
    """Start `command`, time it until it reports a step, and stop it."""
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
    raise SystemExit(f"{' '.join(command)} ended with {process.wait()} before a step")


def main(argv: Any) -> None:
    argv, overrides = cli.split_overrides(argv)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/quickstart.py", metavar="FILE[:ARG]")
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as directory:
        command = [
            sys.executable, "-u", "-m", "imagenet_jax.main", f"--config={args.config}",
            f"--workdir={directory}/run", "--config.log.every_steps=1",
            *(f"--config.{field}={text}" for field, text in overrides),
        ]  # fmt: skip
        cold, warm = (seconds_to_first_step(command) for _ in range(2))
    result = {"cold_seconds": cold, "warm_seconds": warm, "ratio": cold / warm}
    if args.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:14} {value:8.2f}")


if __name__ == "__main__":
    cli.run(main)
