"""How the processes of a run find each other, and what they say when one is missing or different."""

import contextlib
import dataclasses
import errno
import hashlib
import importlib.metadata
import json
import os
import platform
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from bertgpt.io.retry import Unfinished, with_retries
from bertgpt.ranges import Count, Natural, Positive, check_fields
from bertgpt.types import JsonObject, UserError

JOINING = 300
"""seconds at most until all processes have started"""
PORT_BUSY = 30.0
"""seconds that process 0 waits for a port that another program uses"""


class Missing(Unfinished):
    """Another process is missing, late or gone."""


@dataclasses.dataclass(frozen=True)
class Distributed:
    """Which processes train together. Cloud TPU, SLURM, Kubernetes (JobSet) and MPI are detected."""

    coordinator: str | None = None
    """HOST:PORT of process 0, where all processes meet (JAX_COORDINATOR_ADDRESS)"""
    num_processes: Count | None = None
    """number of processes (JAX_NUM_PROCESSES)"""
    process_id: Natural | None = None
    """number of this process, from 0 (JAX_PROCESS_ID)"""
    timeout: Positive = 3600.0
    """seconds that processes wait for each other, e.g. for process 0 to prepare the data"""

    def __post_init__(self):
        check_fields(self)


def detect(options: Distributed) -> tuple[str, int, int, Sequence[int] | None] | None:
    """(coordinator, number of processes, number of this one, its local devices or None for all); None if it is alone.

    Raises:
      UserError: only some of them are known.
    """
    names = {"coordinator": "COORDINATOR_ADDRESS", "num_processes": "NUM_PROCESSES", "process_id": "PROCESS_ID"}
    given = {name: vars(options)[name] for name in names}
    try:
        for name, variable in names.items():
            if given[name] is None and (text := os.environ.get(f"JAX_{variable}")):
                given[name] = text if name == "coordinator" else int(text)
    except ValueError:
        raise UserError(f"JAX_{variable}={text} must be a whole number") from None
    device_ids = None
    if None in given.values():
        from jax._src.clusters import ClusterEnv  # jax has no public name for its detection

        try:
            *values, device_ids = ClusterEnv.auto_detect_unset_distributed_params(*given.values(), None, None, JOINING)
        except Exception as error:
            raise UserError(
                f"the cluster's processes cannot be detected: {error}; name them by --distributed.*"
            ) from None
        given = dict(zip(names, values, strict=True))
    coordinator, count, number = given.values()
    if count == 1 or given == dict.fromkeys(names):
        return None
    if missing := [f"--distributed.{name}" for name, value in given.items() if value is None]:
        raise UserError(f"{', '.join(missing)} is missing: no cluster was detected that tells it")
    if number >= count:
        raise UserError(f"--distributed.process_id {number} must be less than --distributed.num_processes {count}")
    host, _, port = coordinator.rpartition(":")
    if not (host and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise UserError(f"--distributed.coordinator {coordinator} must be HOST:PORT, with a port from 1 to 65535")
    return coordinator, count, number, device_ids


def meet(address: tuple[str, int], count: int, number: int, timeout: float) -> list[str]:
    """Host names of all processes, once all have started. JAX itself would abort without saying who is missing.

    Process 0 listens where its coordination service will, then answers all at once.

    Raises:
      UserError: a process has another version of the code, or (Missing) does not start in time.
    """
    hello = {"id": number, "count": count, "host": platform.node(), "facts": _versions()}
    reply = _join(address, hello, timeout) if number else _host_meeting(address[1], hello, timeout)
    if "error" in reply:
        raise (Missing if reply.get("missing") else UserError)(reply["error"])
    return reply["hosts"]


def _versions() -> dict[str, str]:
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.parent.rglob("*.py"))))
    return {"the version of bertgpt": f"{importlib.metadata.version('bertgpt')}+{code.hexdigest()[:12]}"} | {
        f"the version of {name}": importlib.metadata.version(name) for name in ("jax", "jaxlib")
    }


def _host_meeting(port: int, hello: JsonObject, timeout: float) -> JsonObject:
    deadline, count, found = time.monotonic() + timeout, hello["count"], {0: hello}
    error, late = "", False
    with contextlib.ExitStack() as stack:
        try:
            # Started again at once, process 0 may find the one before still ending.
            server = stack.enter_context(with_retries(lambda: _listen(port), f"port {port}", _is_in_use, PORT_BUSY))
        except OSError as failure:
            raise UserError(f"port {port} of the coordinator cannot be opened: {failure.strerror}") from None
        streams, joined = [], {}
        while not error:
            _forget_left(found, joined)
            if len(found) == count:
                break
            server.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                connection = stack.enter_context(server.accept()[0])
            except TimeoutError:
                missing = ", ".join(str(i) for i in range(count) if i not in found)
                error, late = f"process {missing} of {count} has not started within {timeout:,.0f} s", True
                break
            connection.settimeout(5)
            try:
                stream = stack.enter_context(connection.makefile("rw", encoding="utf-8"))
                other = json.loads(stream.readline())
                streams.append(stream)
                _forget_left(found, joined)
                error = _compare(hello, other, found)
                found[other["id"]], joined[other["id"]] = other, connection
            except (OSError, ValueError, KeyError, TypeError):
                continue  # a stranger
        reply = {"error": error, "missing": late} if error else {"hosts": [found[i]["host"] for i in range(count)]}
        for stream in streams:
            with contextlib.suppress(OSError):
                stream.write(json.dumps(reply) + "\n")
                stream.flush()
        for stream in streams:
            with contextlib.suppress(OSError):
                stream.read()  # until the other side has closed: the port is free for JAX at once
    return reply


def _listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, backlog=4096, dualstack_ipv6=True)
    return socket.create_server(("", port), backlog=4096)


def _is_in_use(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno == errno.EADDRINUSE


def _forget_left(found: dict[int, JsonObject], joined: dict[int, socket.socket]) -> None:
    """Processes that ended before all have met are waited for again: they may be started again."""
    for number in [number for number, connection in joined.items() if _has_left(connection)]:
        del found[number], joined[number]


def _has_left(connection: socket.socket) -> bool:
    """Whether the other side has closed a connection on which it sends nothing more."""
    connection.settimeout(0)
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        connection.settimeout(5)


def _compare(hello: JsonObject, other: JsonObject, found: dict[int, JsonObject]) -> str:
    """What is wrong with a process that joins; "" if nothing."""
    name = f"process {other['id']} ({other['host']})"
    if other["count"] != hello["count"]:
        return f"{name} is one of {other['count']} processes, but process 0 ({hello['host']}) one of {hello['count']}"
    if other["id"] in found:
        return f"two processes are number {other['id']}: on {found[other['id']]['host']} and on {other['host']}"
    for fact, value in hello["facts"].items():
        if other["facts"].get(fact) != value:
            there = other["facts"].get(fact)
            return f"{name} has {fact} {there}, but process 0 ({hello['host']}) has {value}"
    return ""


def _join(address: tuple[str, int], hello: JsonObject, timeout: float) -> JsonObject:
    deadline = time.monotonic() + timeout
    while (left := deadline - time.monotonic()) > 0:
        with contextlib.suppress(OSError, ValueError):  # process 0 has not started yet, or something else answers
            with socket.create_connection(address, timeout=min(left, 5)) as connection:
                connection.settimeout(left + 10)  # process 0 waits for the others as long as this one
                stream = connection.makefile("rw", encoding="utf-8")
                stream.write(json.dumps(hello) + "\n")
                stream.flush()
                if isinstance(reply := json.loads(stream.readline()), dict):
                    return reply
        time.sleep(0.2)
    return {"error": f"process 0 does not answer at {address[0]}:{address[1]} within {timeout:,.0f} s", "missing": True}
