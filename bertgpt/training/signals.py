"""Stopping a run cleanly on SIGTERM, Ctrl-C, or when its terminal is closed (SIGHUP)."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from bertgpt.distributed import process_count, should_stop

SIGNALS = [signal.Signals[name] for name in ("SIGTERM", "SIGINT", "SIGHUP") if name in signal.Signals.__members__]


class Stopped(BaseException):
    """A signal ends work that has nothing to save. No `except Exception` catches it, as with KeyboardInterrupt."""


class StopSignals:
    """Which signal asked the run to stop, and whether it interrupts work or waits until the loop looks."""

    def __init__(self) -> None:
        self.received: str | None = None
        """name of the first signal received; of several processes, only once all know of it"""
        self._own: str | None = None
        self._interrupts = False

    def asked(self) -> bool:
        """Whether the run is to stop. Several processes call it in the same order; it is True in all at once."""
        if process_count() > 1 and self.received is None and should_stop():
            self.received = self._own or "SIGTERM"
        return self.received is not None

    @contextlib.contextmanager
    def interrupts(self) -> Iterator[None]:
        """Any signal, also an earlier one, ends this block at once with `Stopped`: for work that can be repeated.

        Not in one of several processes, which would leave the others waiting.
        """
        self._interrupts = True
        try:
            if self.received is not None:
                raise Stopped
            yield
        finally:
            self._interrupts = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The handler: remembers the first signal. A second Ctrl-C interrupts whatever runs."""
        del frame
        if process_count() > 1:
            self._pass_on(number)
            return
        if self.received is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.received = signal.Signals(number).name
        if self._interrupts:
            raise Stopped

    def _pass_on(self, number: int) -> None:
        """Makes a signal to this process the notice of preemption on which JAX lets all processes agree: SIGTERM."""
        if self._own is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._own = signal.Signals(number).name
        os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Catches the signals that ask a run to stop, so that it can save before it does.

    A signal that is ignored stays so: `nohup` ignores SIGHUP. Off the main thread (a notebook's worker) all keep their
    handlers.
    """
    stop = StopSignals()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = {number: signal.getsignal(number) for number in SIGNALS}
    caught = [number for number, handler in previous.items() if handler not in (signal.SIG_IGN, None)]
    if process_count() > 1:
        caught = [number for number in caught if number != signal.SIGTERM]  # JAX handles it
    try:
        for number in caught:
            signal.signal(number, stop.handle)
        yield stop
    finally:
        for number in caught:
            signal.signal(number, previous[number])
