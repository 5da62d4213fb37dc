"""The process around the application: a socket, uvicorn, and an end that finishes what was accepted."""

import contextlib
import errno
import logging
import os
import signal
import socket
import time
from collections.abc import Iterator
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from bertgpt.serving.limits import Limits
from bertgpt.serving.protocol import protocol_of
from bertgpt.types import UserError

log = logging.getLogger(__name__)

LARGEST_HEAD = 32 * 1024
"""bytes of a request's line and headers"""


class Server(uvicorn.Server):
    """A server that SIGTERM stops: new requests get 503, accepted ones are answered, then the process ends with 0."""

    def __init__(self, config: uvicorn.Config, app: Starlette, drain: float):
        super().__init__(config)
        self.state, self.drain = app.state.server, drain
        self.stop_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, the second one ends at once."""
        del frame
        if self.state.stopping:
            self.end_at_once(sig)
        else:
            log.info("stopping; requests to finish: %d", self.state.accepted)
        self.state.stopping = True
        self.stop_at = time.monotonic() + self.drain

    def end_at_once(self, sig: int) -> None:
        """Ends the process: what computes or compiles in a thread cannot be interrupted."""
        log.info("ended by a second signal; requests not finished: %d", self.state.accepted)
        os._exit(128 + sig)

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second: whether to leave the main loop."""
        if self.stop_at is not None and self.state.accepted == 0 and time.monotonic() >= self.stop_at:
            self.should_exit = True
        if self.state.failed is not None:
            self.should_exit = True
        return await super().on_tick(counter)


def open_socket(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
      UserError: the host has no such address, or the port is taken.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            text = f"port {port} of {host} is taken by another process; --port picks another one, --port 0 a free one"
            raise UserError(text) from None
        reason = str(error.strerror or error).partition(" (while")[0]
        raise UserError(f"cannot listen on {host} port {port}: {reason}") from None


def make_server(app: Starlette, limits: Limits, drain: float = 0.0) -> Server:
    """The server, which `run` starts.

    Args:
      app: from `build_app`.
      limits: bounds on requests.
      drain: seconds that the server keeps answering 503 after a signal, so that balancers notice.
    """
    config = uvicorn.Config(
        app,
        http=protocol_of(limits),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        h11_max_incomplete_event_size=LARGEST_HEAD,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=int(limits.timeout) + 1,
    )
    return Server(config, app, drain)


@contextlib.contextmanager
def quieter(name: str, level: int) -> Iterator[None]:
    """Bad requests, clients that go away and texts that requests ask to be truncated are no news of a server."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


def run_server(app: Starlette, listener: socket.socket, limits: Limits, drain: float = 0.0) -> None:
    """Serves on a socket until a signal.

    Raises:
      UserError: a model cannot be started.
    """
    server = make_server(app, limits, drain)
    try:
        with quieter("uvicorn", logging.CRITICAL), quieter("bertgpt.tasks.source", logging.ERROR):
            server.run(sockets=[listener])
    except KeyboardInterrupt:  # uvicorn has let go of the signals and waits for threads
        server.end_at_once(signal.SIGINT)
    if app.state.server.failed is not None:
        raise app.state.server.failed
