"""Worker processes that end with their parent, and a bounded number of tasks under way."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Self

from imagenet_jax.errors import UserError


class Pool:
    """A context manager around `workers` fresh processes."""

    def __init__(self, workers: int):
        self._workers = workers
        self._executor = ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), initializer=_start_worker
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)

    def run(
        self, function: Callable[..., Any], calls: Iterable[tuple[Any, tuple[Any, ...]]]
    ) -> Iterator[tuple[Any, Any]]:
        """(key, function(*arguments)) for each (key, arguments) of `calls`, as they end.

        `calls` is drawn as workers come free. An error of `function` ends it; results that were
        ready come first. Raises UserError where a worker dies.
        """
        waiting: dict[Future[Any], Any] = {}
        source = iter(calls)
        try:
            while True:
                # A few more than workers, so that none waits for its next task.
                while len(waiting) < self._workers + 2:
                    call = next(source, None)
                    if call is None:
                        break
                    waiting[self._executor.submit(function, *call[1])] = call[0]
                if not waiting:
                    return
                ready, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in sorted(ready, key=lambda f: f.exception() is not None):
                    yield waiting.pop(future), future.result()
        except BrokenProcessPool as e:
            raise UserError(
                "a worker process died, most likely for want of memory: run again with fewer "
                "--workers; what is finished is kept"
            ) from e


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a worker without a traceback
    end_with_parent()


def end_with_parent() -> None:
    """End this process, which multiprocessing started, when its parent ends, however that ends."""
    threading.Thread(target=_exit_after_parent, daemon=True).start()


def _exit_after_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent  # only ever called in a worker
    parent.join()
    # A worker left behind would wait for tasks for ever.
    os._exit(1)
