"""The profiler: a trace of the steps of config.profile.steps on host and devices."""

from pathlib import Path

import jax

from imagenet_jax.config.rules import step_window
from imagenet_jax.debug.hooks import Hook
from imagenet_jax.logs.recorder import Recorder
from imagenet_jax.training.experiment import Experiment


class Profiler(Hook):
    """Traces the steps of config.profile.steps in this process; used only in process 0.

    workdir/profile gets plugins/profile/TIME/HOST.xplane.pb, for TensorBoard's profile plugin and
    xprof with workdir/profile as their logdir, and HOST.trace.json.gz, for https://ui.perfetto.dev.
    Each step is an annotation "train" with its step_num. It covers everything from reading the
    batch to logging and saving.
    """

    def __init__(self, run: Experiment, recorder: Recorder, workdir: Path, first: int):
        """Continue after step `first`; in the middle of the window, the rest of it is traced."""
        self._recorder, self._directory = recorder, workdir / "profile"
        text = run.config.profile.steps
        window = step_window(text)
        assert window, "the hook is made only if config.profile.steps is set"
        self._window, self._last = range(window[0], window[1] + 1), window[1]
        self._traced: list[int] = []  # steps in the running trace
        self._annotation: jax.profiler.StepTraceAnnotation | None = None
        if first >= self._last and first < run.total_steps:
            recorder.say(
                f"no trace: steps {text} lie before step {first + 1}, where this run continues"
            )

    def begin_step(self, step: int) -> None:
        if step not in self._window:
            return
        if not self._traced:
            self._start()
        self._traced.append(step)
        self._annotation = jax.profiler.StepTraceAnnotation("train", step_num=step)
        self._annotation.__enter__()

    def end_step(self, step: int) -> None:
        self._end_annotation()
        if step == self._last:
            self._stop()

    def close(self) -> None:
        self._end_annotation()
        self._stop()

    def _end_annotation(self) -> None:
        if self._annotation:
            self._annotation.__exit__(None, None, None)
            self._annotation = None

    def _start(self) -> None:
        self._recorder.throughput.drain()
        options = jax.profiler.ProfileOptions()
        # Tracing every Python call gives a million events, more than the viewers can show.
        options.python_tracer_level = 0
        jax.profiler.start_trace(self._directory, profiler_options=options)

    def _stop(self) -> None:
        """Write the running trace, if there is one; a failure does not stop training."""
        if not self._traced:
            return
        steps, self._traced = f"{self._traced[0]} to {self._traced[-1]}", []
        try:
            self._recorder.throughput.drain()
            jax.profiler.stop_trace()
            (newest,) = sorted(self._directory.glob("plugins/profile/*/*.trace.json.gz"))[-1:]
            self._recorder.say(
                f"trace of steps {steps}: open it with tensorboard --logdir={self._directory} "
                f"(profile plugin), or open this file on https://ui.perfetto.dev: {newest}"
            )
        except (OSError, RuntimeError, ValueError) as e:
            self._recorder.say(f"the trace of steps {steps} could not be written: {e}")
