"""Worker processes that exit with their parent, for the input pipeline and for pools of tasks."""

import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from typing import Any, Self

import grain
from absl import flags

from imagenet_jax.errors import UserError

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def iterate_in_workers(dataset: grain.MapDataset, workers: int, ahead: int) -> Iterator[Any]:
    """Yield the elements of `dataset`, in order, computed by `workers` processes.

    About `ahead` elements are prefetched. Stop signals do not end the workers, because the trainer
    stops them after saving. Raises UserError if a worker dies.
    """
    if not flags.FLAGS.is_parsed():  # grain's workers read absl flags, which we do not use
        flags.FLAGS.mark_as_parsed()
    # A worker computes one element at a time and holds one more.
    per_worker = max(1, min(ahead // workers - 1, 4))
    options = grain.MultiprocessingOptions(workers, per_worker_buffer_size=per_worker)
    one_by_one = dataset.to_iter_dataset(grain.ReadOptions(num_threads=0))
    return _yield_from_workers(iter(one_by_one.mp_prefetch(options, _init_grain_worker)))


def _yield_from_workers(elements: Iterator[Any]) -> Iterator[Any]:
    """Yield `elements`, whose worker processes start at the first."""
    starter = _make_starter()
    try:
        first = starter.submit(next, elements, None).result()
        if first is not None:
            yield first
            yield from elements
    except RuntimeError as e:
        if "terminated unexpectedly" not in str(e):
            raise
        raise UserError(
            f"a worker process of config.data.workers died, probably because memory ran out: {e} "
            "Use fewer workers, or a smaller config.data.prefetch_mb"
        ) from e
    finally:
        starter.shutdown(wait=False)


def _make_starter() -> ThreadPoolExecutor:
    """Return a thread with blocked stop signals, in which to start workers.

    Processes inherit the signal mask of the thread that starts them. A signal to the process group
    must not reach a worker before the worker has chosen what to do with it.
    """
    resource_tracker.ensure_running()  # starting it unblocks the signals
    return ThreadPoolExecutor(
        1, initializer=signal.pthread_sigmask, initargs=(signal.SIG_BLOCK, _STOP_SIGNALS)
    )


def _init_grain_worker(index: int, count: int) -> None:
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    _end_with_parent()


class Pool:
    """A pool of `workers` new processes, with few waiting tasks at a time; a context manager."""

    def __init__(self, workers: int):
        self._workers = workers
        self._starter = _make_starter()
        self._executor = ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), initializer=_init_pool_worker
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._starter.shutdown(wait=True)
        self._executor.shutdown(wait=True, cancel_futures=True)

    def run(
        self, function: Callable[..., Any], calls: Iterable[tuple[Any, tuple[Any, ...]]]
    ) -> Iterator[tuple[Any, Any]]:
        """Yield (key, function(*arguments)) for each (key, arguments) of `calls`, as they finish.

        `calls` is consumed as workers become free. An exception of `function` is raised after the
        results that are ready. Raises UserError if a worker dies.
        """
        waiting: dict[Future[Any], Any] = {}
        source = iter(calls)
        try:
            while True:
                # A few more tasks than workers, so that no worker waits for its next task.
                for key, arguments in itertools.islice(source, self._workers + 2 - len(waiting)):
                    # Submitting may start a worker.
                    started = self._starter.submit(self._executor.submit, function, *arguments)
                    waiting[started.result()] = key
                if not waiting:
                    return
                ready, _ = wait_for(waiting, return_when=FIRST_COMPLETED)
                for future in sorted(ready, key=lambda f: f.exception() is not None):
                    yield waiting.pop(future), future.result()
        except BrokenProcessPool as e:
            raise UserError(
                "a worker process died, probably because memory ran out: run again with fewer "
                "--workers; finished work is kept"
            ) from e


def _init_pool_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a worker without a traceback
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
    _end_with_parent()


def _end_with_parent() -> None:
    """Exit this worker process when its parent exits for any reason."""

    def exit_after_parent() -> None:
        parent = multiprocessing.parent_process()
        assert parent  # this is a worker
        parent.join()
        os._exit(1)  # an orphaned worker would wait for tasks forever

    threading.Thread(target=exit_after_parent, daemon=True).start()
