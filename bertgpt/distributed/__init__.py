"""Several processes that train one model together: how they meet, agree, wait for each other, and notice a failure.

JAX's own distributed runtime connects them; this module is the only one that talks to it. It adds names: whoever is
missing, different, late or gone is named by number and host. With one process nothing here does or costs anything.

Every process calls these functions in the same order. Inside the function of `on_main`, and inside the block of
`main_first`, processes do not wait for each other.
"""

import contextlib
import ctypes
import itertools
import json
import os
import signal
import socket
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from bertgpt.distributed.meeting import JOINING, Distributed, Missing, detect, meet
from bertgpt.io.retry import Unfinished, may_resume
from bertgpt.types import JsonObject, UserError

HEARTBEAT = 30
"""seconds without a sign of life after which a process counts as dead"""
GONE = 3
"""exit code of a process that ends for a reason other than its input, such as another one that is gone"""
_BROKEN = ("Gloo ", "UNAVAILABLE: ", "INTERNAL: ", "DEADLINE_EXCEEDED: ", "ABORTED: ", "CANCELLED: ")
"""what errors of a connection to another process say"""
_KEPT = 1000  # values of one name that process 0 leaves for slower processes; a step of training keeps them closer


class _Group:
    """The processes that this one trains with, from `initialize` to `shutdown`."""

    def __init__(self, number: int, hosts: Sequence[str], address: tuple[str, int], timeout: float):
        self.number, self.hosts, self.address, self.timeout = number, tuple(hosts), address, timeout
        self.counts: dict[str, Iterator[int]] = defaultdict(itertools.count)  # uses of each name
        self.ticks = itertools.count()
        self.failing = threading.Event()  # this process reports an error itself
        self.ended = threading.Event()

    def name(self, process: int) -> str:
        return f"process {process} of {len(self.hosts)} ({self.hosts[process]})"

    def names(self, processes: Sequence[int]) -> str:
        return ", ".join(map(self.name, processes))

    def key(self, kind: str, name: str) -> tuple[str, int]:
        """A key for this use of the name, and how often the name was used before."""
        number = next(self.counts[f"{kind}/{name}"])
        return f"bertgpt/{kind}/{name}/{number}", number


# As JAX's own state, which is process-wide too.
_group: _Group | None = None
_number: int | None = None  # of this process; it stays when the group is gone, as JAX's own count of processes does
_alone = threading.local()  # .depth > 0: inside `on_main` or `main_first`


def _waiting() -> _Group | None:
    """The group, where its processes are to wait for each other."""
    return None if vars(_alone).get("depth", 0) else _group


def _client() -> Any:
    from jax._src.distributed import global_state  # jax has no public name for the key-value store

    return global_state.client


# -- who and how many -------------------------------------------------------------------------------------------------


def is_main() -> bool:
    """Whether this is process 0, which alone writes files, logs and prints."""
    return _group is None or _group.number == 0


def acts_alone() -> int | None:
    """Number of this process if others exist but do not do now what it does; None otherwise."""
    return _number if _waiting() is None else None


def process_count() -> int:
    """Number of processes that train together."""
    return 1 if _group is None else len(_group.hosts)


# -- start and end ----------------------------------------------------------------------------------------------------


def initialize(options: Distributed) -> None:
    """Connects the processes of a run, before JAX is used. A single process is left as it is.

    Args:
      options: the processes; what they leave open is taken from the environment or the cluster.

    Raises:
      UserError: the options are incomplete, a process does not start in time, or one has another version of the code.
    """
    global _group, _number
    found = detect(options)
    if found is None:
        return
    address, count, number, device_ids = found
    timeout = min(JOINING, options.timeout)
    host, _, port = address.rpartition(":")
    meeting = host.strip("[]"), int(port)
    hosts = meet(meeting, count, number, timeout)
    import jax

    jax.config.update("jax_enable_recoverability", True)  # the death of a process does not abort the others
    _group, _number = _Group(number, hosts, meeting, options.timeout), number
    _explain_abort(_group)
    jax.distributed.initialize(
        address, count, number, device_ids,
        initialization_timeout=int(timeout) + 1, heartbeat_timeout_seconds=HEARTBEAT,
        cluster_detection_method="deactivate",
    )  # fmt: skip
    threading.Thread(target=_watch, args=(_group,), name="distributed", daemon=True).start()


def shutdown() -> None:
    """Waits for all processes and disconnects them. What follows is of this process alone."""
    global _group
    group = _group
    if group is None:
        return
    barrier("the end of the run")
    group.ended.set()
    import jax

    if group.number == 0:  # it serves the others until they have disconnected
        deadline = time.monotonic() + HEARTBEAT
        while time.monotonic() < deadline and len(_client().get_live_nodes(list(range(len(group.hosts))))) > 1:
            time.sleep(0.05)
    jax.distributed.shutdown()
    _group = None


# -- agreeing ---------------------------------------------------------------------------------------------------------


def barrier(name: str, timeout: float | None = None) -> None:
    """Waits until all processes are here.

    Args:
      name: what for; the same in all processes.
      timeout: seconds; None: that of `Distributed`.

    Raises:
      UserError: not all arrive in time; the message names those that are missing.
    """
    group = _waiting()
    if group is None:
        return
    timeout = group.timeout if timeout is None else timeout
    key, _ = group.key("barrier", name)
    _client().key_value_set(f"{key}/{group.number}", "")
    try:
        _client().wait_at_barrier(key, int(1000 * timeout))
    except Exception as error:  # jax raises JaxRuntimeError for everything
        here = {int(found.rpartition("/")[2]) for found, _ in _client().key_value_dir_get(key)}
        missing = [number for number in range(len(group.hosts)) if number not in here]
        if not missing:
            raise UserError(f"waiting for {name}: {error}") from None
        raise Missing(f"waited {timeout:,.0f} s for {name}, but {group.names(missing)} did not arrive") from None


def on_main(name: str, function: Callable[[], Any]) -> Any:
    """Calls a function in process 0 only, and returns its result in all processes.

    Args:
      name: what it does; the same in all processes.
      function: returns a JSON value, or None.

    Raises:
      UserError: the function raised one in process 0, or process 0 does not call it in time.
    """
    group = _waiting()
    if group is None:
        return function() if is_main() else None
    if group.number:
        return _receive(group, name)
    with _published(group, name) as result, _without_waiting():
        result["value"] = function()
    return result["value"]


@contextlib.contextmanager
def main_first(name: str) -> Iterator[None]:
    """Process 0 runs the block before all others run it, for work whose result they find on disk. Errors: `on_main`."""
    group = _waiting()
    if group is None:
        yield
    elif group.number:
        _receive(group, name)
        with _without_waiting():
            yield
    else:
        with _published(group, name), _without_waiting():
            yield


def check_same(name: str, facts: JsonObject) -> None:
    """Compares JSON values of all processes with those of process 0.

    Args:
      name: what they are about; the same in all processes.
      facts: name → value.

    Raises:
      UserError: a process has other values, or does not send any in time. All processes raise it; it names both values.
    """
    group = _waiting()
    if group is None:
        return
    key, _ = group.key("facts", name)
    text = json.dumps(facts, default=str)
    _client().key_value_set(f"{key}/{group.number}", text)

    def compare() -> None:
        own, deadline = json.loads(text), time.monotonic() + group.timeout
        for number in range(1, len(group.hosts)):
            left = max(deadline - time.monotonic(), 0.001)
            try:
                other = json.loads(_client().blocking_key_value_get(f"{key}/{number}", int(1000 * left)))
            except Exception:  # jax raises JaxRuntimeError for everything
                raise Missing(f"{group.name(number)} has not sent {name} within {group.timeout:,.0f} s") from None
            for fact in dict.fromkeys((*own, *other)):
                here, there = own.get(fact), other.get(fact)
                if here != there:
                    raise UserError(f"{group.name(number)} has {fact} {there!r}, but {group.name(0)} has {here!r}")

    on_main(name, compare)


def should_stop() -> bool:
    """Whether a process was asked to stop (SIGTERM): True in all processes at the same call, some calls later.

    To be called by all processes in the same order, for example after each step.
    """
    group = _waiting()
    if group is None:
        return False
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(next(group.ticks))


@contextlib.contextmanager
def _without_waiting() -> Iterator[None]:
    _alone.depth = vars(_alone).get("depth", 0) + 1
    try:
        yield
    finally:
        _alone.depth -= 1


@contextlib.contextmanager
def _published(group: _Group, name: str) -> Iterator[JsonObject]:
    """Sends what the block puts into the dict, or its error, to the other processes."""
    key, number = group.key("value", name)
    result: JsonObject = {"value": None}
    try:
        yield result
    except UserError as error:
        _client().key_value_set(key, json.dumps({"error": str(error), "unfinished": may_resume(error)}))
        raise
    _client().key_value_set(key, json.dumps(result))
    if number >= _KEPT:
        _client().key_value_delete(f"{key.rpartition('/')[0]}/{number - _KEPT}")


def _receive(group: _Group, name: str) -> Any:
    key, _ = group.key("value", name)
    try:
        result = json.loads(_client().blocking_key_value_get(key, int(1000 * group.timeout)))
    except Exception:  # jax raises JaxRuntimeError for everything
        raise Missing(f"waited {group.timeout:,.0f} s for {group.name(0)}: {name}; see --distributed.timeout") from None
    if "error" in result:
        kind = Unfinished if result["unfinished"] else UserError  # all processes end with the same exit code
        raise kind(f"{group.name(0)}: {result['error']}")
    return result["value"]


# -- failures ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Ends the processes of a run together: at the end of the block, or as soon as one of them fails in it."""
    try:
        yield
    except BaseException as error:
        if _group is not None:
            _report_failure(_group, error)
        raise
    shutdown()


def _report_failure(group: _Group, error: BaseException) -> None:
    """Tells the other processes why this one ends. They end as well."""
    if _is_broken_connection(error):
        time.sleep(2 * HEARTBEAT)  # most likely, a process is gone: `_watch` finds out which, and ends this one
    group.failing.set()
    message = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    code = 2 if isinstance(error, UserError) and not may_resume(error) else GONE
    with contextlib.suppress(Exception):  # the connection itself may be what has failed
        _client().key_value_set(f"bertgpt/failed/{group.number}", json.dumps([code, message]))
    if group.number == 0:
        time.sleep(3)  # the others read it here


def _is_broken_connection(error: BaseException | None) -> bool:
    """Whether this error, or one that it stands for, comes from the connection to another process."""
    while error is not None:
        if any(sign in str(error) for sign in _BROKEN):  # also where another library or a message quotes it
            return True
        error = error.__context__
    return False


def _watch(group: _Group) -> None:
    """Ends this process when another one has failed, or shows no sign of life. A thread of its own."""
    everyone = list(range(len(group.hosts)))
    while not group.ended.wait(1):
        try:
            failed = _client().key_value_dir_get("bertgpt/failed")
            live = everyone if failed else _client().get_live_nodes(everyone)  # waits for all that live
        except Exception:  # process 0 is gone, which `_explain_abort` reports, or the run has ended
            return
        if group.ended.is_set() or (not failed and len(live) == len(everyone)):
            continue
        if failed:
            time.sleep(2)  # for the same error of this process, which then speaks for itself
            key, text = failed[0]
            code, reason = json.loads(text)  # a user error ends all processes as such: whoever starts them gives up
            message = f"{group.name(int(key.rpartition('/')[2]))} has failed: {reason}"
        else:
            gone, code = [number for number in everyone if number not in live], GONE
            message = f"{group.names(gone)} is gone: no sign of life for {HEARTBEAT} s; the same command resumes"
        if not group.failing.is_set():
            _end(message, code, wait=3 if group.number == 0 else 0)  # process 0 serves the others until they know


def _end(message: str, code: int = GONE, wait: float = 0) -> None:
    with contextlib.suppress(OSError):
        os.write(sys.__stderr__.fileno(), f"bertgpt: {message}\n".encode())
    time.sleep(wait)
    os._exit(code)  # the main thread waits for a process that is gone


def _explain_abort(group: _Group) -> None:
    """Ends a process that has lost process 0 with one line, below the stack trace that JAX's C++ prints."""

    def aborted(number: int) -> None:
        del number
        try:
            socket.create_connection(group.address, timeout=5).close()
        except OSError:
            _end(f"{group.name(0)}, which connects all processes, is gone; the same command resumes")

    _explain_abort.handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(aborted)  # kept alive
    # Not by the module `signal`, whose handlers wait for the main thread, and abort() does not wait.
    ctypes.CDLL(None).signal(signal.SIGABRT, _explain_abort.handler)
