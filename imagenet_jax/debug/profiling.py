"""A trace of some steps: what the host and the devices did, and when."""

import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path

import jax
from ml_collections import ConfigDict

from imagenet_jax.config.rules import step_window
from imagenet_jax.runtime.processes import is_first


@contextlib.contextmanager
def traced(
    steps: range,
    config: ConfigDict,
    workdir: Path,
    idle: Callable[[], None],
    say: Callable[[str], None],
) -> Iterator[Iterable[int]]:
    """`steps` to loop over, those of config.profile.steps under the profiler of process 0.

    workdir/profile gets plugins/profile/TIME/HOST.xplane.pb, which TensorBoard's profile plugin and
    xprof read with workdir/profile as their logdir, and HOST.trace.json.gz, which
    https://ui.perfetto.dev opens. A step is the annotation "train" with its step_num; it spans the
    whole turn of the loop, the wait for input included.

    Args:
      steps: where they begin in the middle of the window, as after a restart, the rest is traced.
      idle: waits until the devices have finished the steps under way.
      say: gets the line that tells where the trace is, or why it is not.
    """
    wanted = step_window(config.profile.steps)
    if not wanted or not is_first():
        yield steps
        return
    if steps and steps[0] > wanted[1]:
        say(
            f"no trace: steps {config.profile.steps} lie before step {steps[0]}, where this run "
            "continues"
        )
    trace = _Trace(*wanted, workdir / "profile", idle, say)
    turns = trace.over(steps)
    try:
        yield turns
    finally:
        turns.close()
        trace.stop()


class _Trace:
    def __init__(
        self,
        first: int,
        last: int,
        directory: Path,
        idle: Callable[[], None],
        say: Callable[[str], None],
    ):
        self._window, self._last = range(first, last + 1), last
        self._directory, self._idle, self._say = directory, idle, say
        self._done: list[int] = []  # steps in the trace that runs

    def over(self, steps: range) -> Generator[int, None, None]:
        for step in steps:
            if step not in self._window:
                yield step
                continue
            if not self._done:
                self._start()
            self._done.append(step)
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                yield step
            if step == self._last:
                self.stop()

    def _start(self) -> None:
        self._idle()
        options = jax.profiler.ProfileOptions()
        # Every Python call would be a million events, beyond what the viewers show.
        options.python_tracer_level = 0
        jax.profiler.start_trace(self._directory, profiler_options=options)

    def stop(self) -> None:
        """Write the trace if one runs, complete to the steps under way; training does not fail."""
        if not self._done:
            return
        steps, self._done = f"{self._done[0]} to {self._done[-1]}", []
        try:
            self._idle()
            jax.profiler.stop_trace()
            (newest,) = sorted(self._directory.glob("plugins/profile/*/*.trace.json.gz"))[-1:]
            self._say(
                f"trace of steps {steps}: tensorboard --logdir={self._directory} (its profile "
                f"plugin) shows it, and https://ui.perfetto.dev opens {newest}"
            )
        except (OSError, RuntimeError, ValueError) as e:
            self._say(f"the trace of steps {steps} could not be written: {e}")
