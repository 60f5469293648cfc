"""Kill a training run repeatedly and compare the result with an uninterrupted run.

  python -m tests.torture.killing --kills=100 --seed=0

The same seed draws the same kinds of kills; the moment that each hits depends on the machine too.
"""

import argparse
import collections
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from imagenet_jax.logs.throughput import MEASURED

REPOSITORY = Path(__file__).parents[2]
CONFIG = Path(__file__).with_name("config.py")
_STOPS = {signal.SIGTERM: 143, signal.SIGINT: 130}


@dataclasses.dataclass(frozen=True)
class Kill:
    """How one start is killed.

    Attributes:
      signals: sent one after the other, `pause` seconds apart.
      moment: "start": seconds after the process starts; "compile": seconds after it locked the
        workdir, with an empty compilation cache; "step": after `count` more logged intervals;
        "write": when the `count`-th checkpoint of this start has begun to be written.
      count: see `moment`.
      delay: seconds after that.
    """

    signals: tuple[signal.Signals, ...]
    moment: str
    count: int
    delay: float
    pause: float = 0.0

    def __str__(self) -> str:
        names = ", then ".join(s.name for s in self.signals)
        return f"{names} at {self.moment} {self.count} + {self.delay:.3f} s"


def draw(rng: random.Random, number: int) -> Kill:
    """Return kill `number`: of each five, one is during compilation and two during a write."""
    moment = ("compile", "write", "step", "write", "start")[number % 5]
    ways: list[tuple[signal.Signals, ...]] = [
        (signal.SIGKILL,), (signal.SIGTERM,), (signal.SIGINT,), (signal.SIGTERM, signal.SIGKILL),
    ]  # fmt: skip
    # Before the handlers are installed, every signal kills the process.
    signals = (signal.SIGKILL,) if moment == "start" else ways[rng.choice((0, 0, 1, 2, 3))]
    longest = {"start": 3.0, "compile": 3.0, "step": 0.1, "write": 0.15}[moment]
    return Kill(signals, moment, rng.randint(1, 3), rng.uniform(0, longest), rng.uniform(0, 0.2))


class Training:
    """A training run in one workdir, restarted until it finishes."""

    def __init__(self, directory: Path, data: Path, steps: int):
        self.workdir = directory / "run"
        self._log = directory / "log.txt"
        self._command = [
            sys.executable, "-m", "imagenet_jax.main", f"--config={CONFIG}:{steps}",
            f"--workdir={self.workdir}", f"--config.data.path={data}",
        ]  # fmt: skip
        self._env = os.environ | {
            "XLA_FLAGS": "",
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(data.parent / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }

    def start(self, cached: bool = True) -> subprocess.Popen:
        env = self._env | ({} if cached else {"JAX_ENABLE_COMPILATION_CACHE": "false"})
        with self._log.open("ab") as log:
            return subprocess.Popen(
                self._command, cwd=REPOSITORY, env=env, stdout=log, stderr=subprocess.STDOUT
            )

    def finish(self) -> None:
        """Undisturbed, to the end."""
        process = self.start()
        try:
            code = process.wait(timeout=3600)  # ends a hang, but allows for a busy machine
        finally:
            process.kill()
            process.wait()
        assert code == 0, self.log()

    def log(self) -> str:
        return self._log.read_text(errors="replace")[-4000:]

    def kill_once(self, kill: Kill) -> str:
        """Start, kill; "killed", "stopped" (saved and said so) or "finished" before the kill."""
        process = self.start(cached=kill.moment != "compile")
        try:
            self._wait_for(kill, process)
            time.sleep(kill.delay)
            for number in kill.signals:
                process.send_signal(number)
                if number != kill.signals[-1]:
                    time.sleep(kill.pause)
            code = process.wait(timeout=300)
        finally:
            process.kill()
            process.wait()
        if code == 0:
            return "finished"
        if code == -signal.SIGKILL and signal.SIGKILL in kill.signals:
            return "killed"
        assert code == _STOPS.get(kill.signals[0]), f"{kill}: exit code {code}\n{self.log()}"
        return "stopped"

    def _wait_for(self, kill: Kill, process: subprocess.Popen) -> None:
        if kill.moment == "start":
            return
        # The lock file of the previous process may still exist.
        self._until(process, lambda: str(process.pid) in _text(self.workdir / "running.json"))
        if kill.moment == "compile":
            return
        if kill.moment == "write":
            seen: set[str] = self._parts()
            for _ in range(kill.count):
                self._until(process, lambda seen=seen: bool(self._parts() - seen))  # type: ignore[misc]
                seen = seen | self._parts()
        else:
            lines = self._lines()
            self._until(process, lambda: self._lines() >= lines + kill.count)

    def _until(self, process: subprocess.Popen, there: Callable[[], bool]) -> None:
        end = time.monotonic() + 300
        while process.poll() is None and not there():
            assert time.monotonic() < end, self.log()
            time.sleep(0.001)

    def _parts(self) -> set[str]:
        return {p.name for p in (self.workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*")}

    def _lines(self) -> int:
        return _text(self.workdir / "metrics.jsonl").count("\n")


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def contents(workdir: Path, data: Path, steps: int) -> dict[str, Any]:
    """Return, by name, everything that must be equal in two runs of a config."""
    import jax

    from imagenet_jax import config as config_io
    from imagenet_jax.runtime.integrity import find_problems
    from imagenet_jax.training.checkpoint import Checkpoints
    from imagenet_jax.training.experiment import make_experiment

    config = config_io.load(f"{CONFIG}:{steps}", [("data.path", str(data))])
    checkpoints = Checkpoints(workdir / "checkpoints", write=False)
    found: dict[str, Any] = {"checkpoints": checkpoints.steps()}
    for step in checkpoints.steps():
        found[f"damage of {step}"] = find_problems(workdir / "checkpoints" / str(step))
    state, position = checkpoints.restore(
        make_experiment(config).abstract, found["checkpoints"][-1]
    )
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(state)):
        found[f"state{jax.tree_util.keystr(path)}"] = (str(leaf.dtype), leaf.shape, leaf.tobytes())
    found["position"] = dataclasses.asdict(position)
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    found["metrics.jsonl"] = [_without_times(json.loads(line)) for line in lines]
    found["first_steps.jsonl"] = (workdir / "first_steps.jsonl").read_text()
    found["tensorboard"] = sorted(_points(workdir / "tensorboard"))
    found["files"] = sorted(p.name for p in workdir.iterdir())
    return found


def _without_times(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name not in MEASURED}


def _points(directory: Path) -> Iterator[tuple[int, str, float]]:
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    for path in directory.glob("events.*"):
        for event in LegacyEventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if not value.tag.endswith(MEASURED):
                    yield event.step, value.tag, value.simple_value


def torture(directory: Path, data: Path, kills: int, seed: int) -> dict[str, int]:
    """Train twice, once with kills; return counts of how starts ended and of "mismatches".

    Args:
      directory: an empty directory.
      data: the digits, prepared.
    """
    steps = 6 * kills + 15  # so that it does not finish before the last kill
    whole = Training(directory / "undisturbed", data, steps)
    killed = Training(directory / "killed", data, steps)
    for training in (whole, killed):
        training.workdir.parent.mkdir()
    whole.finish()
    rng = random.Random(seed)
    counts = collections.Counter(killed=0, stopped=0, finished=0)
    for number in range(kills):
        kill = draw(rng, number)
        end = killed.kill_once(kill)
        counts[end] += 1
        print(f"seed {seed}, kill {number + 1} of {kills}: {kill}: {end}", flush=True)
    killed.finish()
    a, b = (contents(training.workdir, data, steps) for training in (whole, killed))
    different = [name for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)]
    for name in different:
        print(f"seed {seed}: differs: {name}: {str(a.get(name))[:300]} | {str(b.get(name))[:300]}")
    return dict(counts) | {"restarts": kills, "mismatches": len(different)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    from imagenet_jax.data import builtin

    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary) / "digits" / "1.0.0"
        builtin.write_digits(data)
        result = torture(Path(temporary), data, args.kills, args.seed)
    print(", ".join(f"{name}: {value}" for name, value in result.items()))
    sys.exit(1 if result["mismatches"] or result["finished"] else 0)


if __name__ == "__main__":
    main()
