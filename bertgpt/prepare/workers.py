"""Applies a function to many tasks, in this process or in several, in the order of the tasks."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from bertgpt.io.retry import Unfinished


def available_cpus() -> int:
    """Processors that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # of macOS and Windows
        return os.cpu_count() or 1


Shared, Task, Result = TypeVar("Shared"), TypeVar("Task"), TypeVar("Result")


def run_all(
    function: Callable[[Shared, Task], Result],
    shared: Shared,
    tasks: Iterable[Task],
    workers: int,
    done: Callable[[Result], None],
) -> None:
    """Calls `done(function(shared, task))` for each task, in order.

    Args:
      function: with several workers, a function at the top level of a module.
      shared: its first argument, sent to each worker once.
      tasks: its second argument; tasks are taken from the iterator as workers become free.
      workers: number of processes; 1: this process.
      done: called in this process with each result.

    Raises:
      Unfinished: a worker died.
      Exception: whatever `function` or the iterator raises, after running tasks have finished.
    """
    if workers == 1:
        for task in tasks:
            done(function(shared, task))
        return
    # Workers are not forked from this process, because a fork breaks its threads (of tokenizers, perhaps of jax).
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    pool = ProcessPoolExecutor(workers, context, _start_worker, (function, shared))
    waiting: deque[Future] = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(_work, task))
            if len(waiting) >= 2 * workers:
                done(waiting.popleft().result())
        while waiting:
            done(waiting.popleft().result())
    except BrokenProcessPool:
        raise Unfinished(
            "a worker process died, perhaps for lack of memory; run the same command again to resume"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_END = object()


def ahead(items: Iterable[Task]) -> Iterator[Task]:
    """The same items; a second thread makes the next one while the caller uses this one."""
    items = iter(items)
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, items, _END)
        while (item := following.result()) is not _END:
            following = pool.submit(next, items, _END)
            yield item


_task: list = []  # in a worker process: (function, shared), sent once rather than with each task


def _start_worker(function: Callable[[Shared, Task], Result], shared: Shared) -> None:
    _task[:] = (function, shared)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes already use all processors
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent handles it
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent.sentinel,), daemon=True).start()


def _follow(sentinel: int) -> None:
    """Ends this process when its parent ends: a parent that is killed cannot stop its workers."""
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def _work(task: Task) -> Result:
    function, shared = _task
    return function(shared, task)
