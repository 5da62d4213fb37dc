"""Stopping a run cleanly on SIGTERM or Ctrl-C."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], str | None]]:
    """Catches SIGTERM and SIGINT, so that the loop can save before it stops.

    A second Ctrl-C interrupts at once. Off the main thread (a notebook's worker) signals keep their handlers.

    Yields:
      A function that returns the name of the signal received so far, or None.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return

    def remember(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    previous = {number: signal.signal(number, remember) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: signal.Signals(received[0]).name if received else None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
