"""The same function over many tasks, in this process or in several, in the tasks' order."""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from bertgpt.types import UserError


class Unfinished(UserError):
    """What stopped the work is no fault of its input: what is done stays, and the same command goes on."""


def available_cpus() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_all(
    function: Callable[[Any, Any], Any], shared: Any, tasks: Iterable[Any], workers: int, done: Callable[[Any], None]
) -> None:
    """Calls `done(function(shared, task))` for each task, in order.

    With several workers `function` must be a module's own; `shared` is sent to each worker once. Tasks are taken from
    the iterator when there is room for them.

    Raises:
      Unfinished: a worker died.
      Whatever `function` or the iterator raises; tasks under way are finished first.
    """
    if workers == 1:
        for task in tasks:
            done(function(shared, task))
        return
    # Not forked from this process: its threads (tokenizers', perhaps jax's) would be torn.
    context = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
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
        raise Unfinished("a worker process died, perhaps for want of memory; the same command goes on") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_END = object()


def ahead(items: Iterable[Any]) -> Iterator[Any]:
    """The same items, the next one made in a second thread while the caller works on this one."""
    items = iter(items)
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, items, _END)
        while (item := following.result()) is not _END:
            following = pool.submit(next, items, _END)
            yield item


_task: list[Any] = []  # of a worker process: (function, shared), so that they travel once and not with each task


def _start_worker(function: Callable[[Any, Any], Any], shared: Any) -> None:
    _task[:] = (function, shared)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # processes share out the processors already
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent decides
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent.sentinel,), daemon=True).start()


def _follow(sentinel: int) -> None:
    """Ends this process when its parent does: a parent that was killed could not tell it to."""
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def _work(task: Any) -> Any:
    function, shared = _task
    return function(shared, task)


@contextlib.contextmanager
def lock(path: str | os.PathLike[str], busy: str, wait: bool) -> Iterator[None]:
    """Holds a lock file for the length of a block; the system lets go of it however this process ends.

    Args:
      busy: what to say if another process holds it and `wait` is not set.

    Raises:
      UserError: another process holds it.
    """
    import fcntl

    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            with contextlib.suppress(OSError) if wait else contextlib.nullcontext():
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(file)
            raise Unfinished(busy) from None
        except OSError:
            pass  # a file system that knows no locks: nothing guards there
        with contextlib.suppress(OSError):
            if os.fstat(file).st_ino == os.stat(path).st_ino:
                break
        os.close(file)  # its last holder has removed it meanwhile
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)
        os.close(file)
