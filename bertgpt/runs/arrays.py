"""Arrays on disk, written and read by orbax: its errors in one line each, and nothing else printed.

orbax and tensorstore raise errors of many types.
"""

import concurrent.futures
import contextlib
import functools
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from orbax.checkpoint import v1 as ocp

from bertgpt.distributed import acts_alone, process_count
from bertgpt.io.files import CannotWrite, CannotWriteNow, one_line
from bertgpt.io.retry import PATIENCE, may_pass, with_retries
from bertgpt.types import Params, UserError

Read = TypeVar("Read")


def start_saving(partial: Path, items: dict[str, Params]) -> Callable[[], None]:
    """Starts to write a directory, and returns the function that waits until it is complete.

    Errors of both are for `write_errors`.
    """
    _quieten_orbax()
    context = _context(acts_alone())
    # Up to this size one device writes all of a replicated array; beyond, each device writes a part.
    context.array.saving.min_slice_bytes_for_replica_parallel = 1 << 20
    with context:
        return ocp.save_checkpointables_async(partial.absolute(), items, overwrite=True).result


def load_arrays(path: Path, like: dict[str, Params]) -> dict[str, Params]:
    """Reads items into the shapes, types and shardings of `like`, whose leaves are jax or numpy arrays.

    Raises:
      UserError: they cannot be read.
    """
    with _read_errors(path):
        return _uninterrupted(path, lambda: ocp.load_checkpointables(path.absolute(), like))


def saved_shapes(path: Path) -> dict[str, Params]:
    """Item → shapes and types of its arrays.

    Raises:
      UserError: they cannot be read.
    """
    with _read_errors(path):
        return _uninterrupted(path, lambda: ocp.checkpointables_metadata(path.absolute()).metadata)


@contextlib.contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turns all errors of a save into one that names what was to be written.

    Raises:
      CannotWrite: the block raised an error; CannotWriteNow if its reason may pass.
    """
    try:
        yield
    except CannotWrite:
        raise
    except Exception as error:
        found = _system_error(error)
        reason = None if found is None else os.strerror(found.errno) if found.errno else found.strerror
        kind = CannotWriteNow if may_pass(found or error) else CannotWrite
        raise kind(f"{path}: cannot be saved: {reason or one_line(error)[:300]}") from None


def _system_error(error: Exception) -> OSError | None:
    """The error of the operating system in one of orbax or tensorstore, which name its number in their text."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    if code:
        return OSError(int(code[1]), str(error))
    return error if isinstance(error, OSError) else None


def _uninterrupted(path: Path, read: Callable[[], Read]) -> Read:
    """The result of a function, which is repeated while it fails for a reason that may pass.

    It runs in a thread, so that Ctrl-C takes effect when it is done: orbax takes a KeyboardInterrupt inside of it for a
    damaged item, and leaves that item out.
    """
    alone = acts_alone()

    def run() -> Read:
        with _context(alone):  # a thread has its own
            return read()

    with concurrent.futures.ThreadPoolExecutor(1, "checkpoints") as thread:
        # Where several processes read together, none of them can repeat its part alone.
        patience = 0 if alone is None and process_count() > 1 else PATIENCE
        return with_retries(
            lambda: thread.submit(run).result(), str(path), lambda e: may_pass(_system_error(e) or e), patience
        )


def _context(alone: int | None) -> ocp.Context:
    """How orbax works: all processes together, or the process of this number alone."""
    context = ocp.Context()
    if alone is not None:
        context.multiprocessing.active_processes = {alone}
        context.multiprocessing.primary_host = alone
    return context


@contextlib.contextmanager
def _read_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise UserError(f"{path}: cannot be read: {one_line(error)[:300]}") from None


@functools.cache
def _quieten_orbax() -> None:
    """Drops the tracebacks that threads of a failed save print: its error is raised as well."""
    logging.getLogger("absl").addFilter(lambda record: "_SignalingThread.run() raised" not in str(record.msg))
    # orbax raises the first error and closes its event loop, which writes that end later do not find.
    report = sys.unraisablehook

    def hook(caught: "sys.UnraisableHookArgs") -> None:
        if caught.object is not None or str(caught.exc_value) != "Event loop is closed":
            report(caught)

    sys.unraisablehook = hook
