"""Trying again: file systems and servers that fail for a while."""

import errno
import logging
import time
from collections.abc import Callable
from typing import TypeVar

from bertgpt.types import UserError

log = logging.getLogger(__name__)
Result = TypeVar("Result")

PATIENCE = 120.0
"""seconds for which something that fails is tried again"""
FIRST, LONGEST = 0.25, 15.0  # seconds between two attempts: doubled each time
TRANSIENT = {
    *(errno.EIO, errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ESTALE, errno.ETIMEDOUT, errno.ENETDOWN),
    *(errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ECONNREFUSED, errno.ECONNRESET),
    *(errno.ECONNABORTED, errno.EPIPE, errno.ENOTCONN, errno.ENOLCK),
}
"""errors of file systems that may pass. Missing files, permissions and full disks do not."""


class Unfinished(UserError):
    """Work stopped for a reason other than its input: finished parts are kept, and the same command resumes."""


class CannotWrite(Unfinished):
    """A file or directory cannot be written: no space, no permission, no such folder."""


class CannotWriteNow(CannotWrite):
    """The reason may pass: a file server does not answer."""


def may_resume(error: BaseException) -> bool:
    """Whether it is worth starting the same command again after an error.

    No permission, no space or a file in the way will be there the next time.
    """
    lasting = isinstance(error, CannotWrite) and not isinstance(error, CannotWriteNow)
    return isinstance(error, Unfinished) and not lasting


def may_pass(error: BaseException) -> bool:
    """Whether an error of a file system or connection may be gone the next time."""
    return isinstance(error, TimeoutError | ConnectionError) or (
        isinstance(error, OSError) and error.errno in TRANSIENT
    )


def with_retries(
    call: Callable[[], Result],
    what: str,
    transient: Callable[[BaseException], bool] = may_pass,
    patience: float | None = None,
) -> Result:
    """The result of a call, which is repeated while it fails for a reason that may pass.

    Waits 0.25, 0.5, 1 … 15 seconds between attempts, and warns before the first repetition.

    Args:
      call: what to do. It is repeated as a whole, so it must undo or overwrite what an attempt has begun.
      what: name of the file or server, for the warning.
      transient: whether an error may pass. Others are raised at once.
      patience: seconds after which the last error is raised; None: PATIENCE.

    Raises:
      Exception: the error of the last attempt.
    """
    start, wait = time.monotonic(), FIRST
    patience = PATIENCE if patience is None else patience
    while True:
        try:
            return call()
        except Exception as error:
            left = start + patience - time.monotonic()
            if not transient(error) or left <= 0:
                raise
            if wait == FIRST:
                log.warning("%s: %s; trying again for %.0f s", what, " ".join(str(error).split())[:200], patience)
        time.sleep(min(wait, left))
        wait = min(2 * wait, LONGEST)
