"""Locks between processes, on one machine or on several that share a file system."""

import contextlib
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from bertgpt.io.files import CannotWrite, one_line
from bertgpt.io.retry import Unfinished
from bertgpt.types import JsonObject, UserError


@contextlib.contextmanager
def lock(path: Path, busy: str, wait: bool) -> Iterator[None]:
    """Holds a lock file during the block. The system releases it however this process ends.

    Args:
      path: the lock file, which is removed afterwards. While the lock is held it names the host and process.
      busy: the error message if another process holds the lock; the holder is appended.
      wait: wait for the lock instead of raising an error.

    Raises:
      Unfinished: another process holds it and `wait` is not set, or (CannotWrite) the file cannot be written.
      UserError: the file is somebody else's.
    """
    from filelock import FileLock, Timeout

    _check_own(path)
    held = FileLock(path, timeout=-1 if wait else 0)
    try:
        held.acquire()
        _write_holder(path)
    except Timeout:
        raise Unfinished(busy + describe_holder(_read_holder(path))) from None
    except OSError as error:
        held.release()
        raise CannotWrite(f"{path}: cannot be locked: {error.strerror or one_line(error)}") from None
    try:
        yield
    finally:
        # filelock leaves the file. Whoever waits for it notices that it was removed, and makes a new one.
        with contextlib.suppress(OSError):
            os.unlink(path)
        held.release()


def _check_own(path: Path) -> None:
    """Raises UserError if there is a file that is no lock: it would be overwritten and removed."""
    try:
        content = path.read_bytes() if path.is_file() else b""
    except OSError:
        content = b""  # acquiring the lock tells why
    # A holder is JSON, or where there is no flock, the number of its process on the first line.
    if path.is_symlink() or not (content[:1] in (b"", b"{") or content.partition(b"\n")[0].strip().isdigit()):
        raise UserError(f"{path}: is needed as a lock, but is a file of another program; move it, or give another name")


def is_locked(path: Path) -> bool:
    """Whether a process of this machine that is alive holds a lock."""
    holder = _read_holder(path)
    return holder.get("host") == platform.node() and is_alive(holder.get("pid"))


def is_alive(pid: object) -> bool:
    """Whether a process of this machine has this number."""
    try:
        os.kill(pid, 0)
    except PermissionError:  # a process of another user
        return True
    except (OSError, OverflowError, TypeError):
        return False
    return True


def _write_holder(path: Path) -> None:
    # On file systems without flock, filelock keeps a record of its own in the file, which must stay.
    if path.read_bytes()[:1] in (b"", b"{"):
        path.write_text(json.dumps({"pid": os.getpid(), "host": platform.node()}) + "\n", encoding="utf-8")


def _read_holder(path: Path) -> JsonObject:
    try:
        return parse_holder(path.read_bytes())
    except OSError:
        return {}


def parse_holder(content: bytes) -> JsonObject:
    """What a lock says of its holder; {} if nothing."""
    try:
        holder = json.loads(content)
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def describe_holder(holder: JsonObject) -> str:
    """“ (process PID on HOST)” of the holder of a lock; empty if it is not known."""
    return f" (process {holder['pid']} on {holder['host']})" if {"pid", "host"} <= holder.keys() else ""
