"""A lock in an object store, which has no locks: an object that names its holder and is renewed while it lives.

Guaranteed: of several processes that start at once, one gets the lock (S3 and GCS create an object only if it does not
exist). A holder that died is replaced at once on its own machine, and elsewhere after it was not renewed for EXPIRY
seconds by the clock of whoever waits: clocks of machines are not compared.
Not guaranteed: a holder that was suspended for longer than EXPIRY may be replaced while it still lives. It notices at
`check`, before it makes its next checkpoint visible.
"""

import contextlib
import json
import logging
import os
import platform
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from bertgpt.io.locks import describe_holder, is_alive, parse_holder
from bertgpt.io.remote import RemoteDirectory, RemoteError
from bertgpt.io.retry import Unfinished
from bertgpt.types import JsonObject

log = logging.getLogger(__name__)

RENEWED = 15.0  # seconds between two renewals
EXPIRY = 60.0  # seconds
SETTLED = 2.0  # seconds after which whoever replaced a dead holder looks whether another one did too
POLL = 5.0  # seconds


class Lease:
    """A lock that is held. `check` says whether it still is."""

    def __init__(self, directory: RemoteDirectory, name: str, busy: str):
        self._directory, self._name, self._busy = directory, name, busy
        self._mine = {"owner": secrets.token_hex(8), "pid": os.getpid(), "host": platform.node(), "machine": _machine()}
        self._renewals = 0

    def take(self) -> None:
        """Waits until the holder has gone or is known to live.

        Raises:
          Unfinished: it lives.
        """
        while not self._directory.create(self._name, self._content()):
            found = self._directory.read(self._name)
            if found is None:
                continue
            if _alive(facts := parse_holder(found)):
                log.info("%s; waiting up to %.0f s for a sign of life", self._busy + describe_holder(facts), EXPIRY)
                start, now = time.monotonic(), found
                while now == found and time.monotonic() - start < EXPIRY:
                    time.sleep(POLL)
                    now = self._directory.read(self._name)
                if now is None:
                    continue
                if now != found:
                    raise Unfinished(self._busy + describe_holder(parse_holder(now)))
            self._directory.write(self._name, self._content())
            time.sleep(SETTLED)
            self.check()
            return

    def renew(self) -> None:
        """Shows that the holder lives. Errors: as `check`."""
        self.check()
        self._renewals += 1
        self._directory.write(self._name, self._content())

    def check(self) -> None:
        """Checks that nobody else has taken the lock.

        Raises:
          Unfinished: somebody has, who is named, or (RemoteError) the store cannot be read.
        """
        facts = parse_holder(self._directory.read(self._name) or b"{}")
        if facts.get("owner") != self._mine["owner"]:
            raise Unfinished(self._busy + describe_holder(facts))

    def release(self) -> None:
        with contextlib.suppress(Unfinished):
            self.check()
            self._directory.remove([self._name])

    def _content(self) -> bytes:
        return (json.dumps(self._mine | {"renewals": self._renewals}) + "\n").encode()


@contextlib.contextmanager
def lease(directory: RemoteDirectory, name: str, busy: str) -> Iterator[Lease]:
    """Holds a lock during the block, renewed by a thread.

    Args:
      directory: where the object lies.
      name: of the object.
      busy: the error message if another process holds the lock; the holder is appended.

    Raises:
      Unfinished: another process holds it, or (RemoteError) the store cannot be reached.
    """
    held, ended = Lease(directory, name, busy), threading.Event()
    held.take()

    def keep() -> None:
        while not ended.wait(RENEWED):
            try:
                held.renew()
            except RemoteError as error:
                log.warning("%s", error)
            except Unfinished:
                return  # whoever calls `check` hears of it

    keeper = threading.Thread(target=keep, name="lease", daemon=True)
    keeper.start()
    try:
        yield held
    finally:
        ended.set()
        keeper.join(RENEWED)
        held.release()


def _machine() -> str | None:
    """Identifies the space of process numbers that this process lives in: the start of the system and its namespace."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return None


def _alive(facts: JsonObject) -> bool:
    """Whether a holder may live. That a process of this machine does not is known."""
    if facts.get("machine") is None or facts["machine"] != _machine() or type(facts.get("pid")) is not int:
        return True
    return is_alive(facts["pid"])
