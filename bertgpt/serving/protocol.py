"""Connections of clients that are slow, send no HTTP, or do not read: uvicorn's HTTP/1.1 with bounds on their time."""

from typing import ClassVar, Protocol, runtime_checkable

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from bertgpt.serving.errors import Refusal, error_body
from bertgpt.serving.limits import Limits


@runtime_checkable
class Handle(Protocol):
    """A call that waits for its time, of asyncio or uvloop."""

    def cancel(self) -> None: ...


class BoundedProtocol(H11Protocol):
    """A connection. Heads must arrive in `read_timeout` seconds, and answers must be read in `timeout`."""

    limits: ClassVar[Limits] = Limits()
    late: Handle | None = None
    """runs while a head, or a body that nobody reads any more, is on its way"""
    unread: Handle | None = None
    """runs while the client does not read"""

    def connection_made(self, transport: object) -> None:  # uvloop has transports of its own
        """A client connects."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self.watch()

    def data_received(self, data: bytes) -> None:
        """Bytes arrive."""
        super().data_received(data)
        self.watch()

    def on_response_complete(self) -> None:
        """A request is answered; further ones may follow."""
        super().on_response_complete()
        self.watch()

    def watch(self) -> None:
        """Starts or stops the clock of what is on its way."""
        answered = self.cycle is None or self.cycle.response_complete
        # Between two requests uvicorn's own clock of idle connections runs.
        idle = self.cycle is not None and self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]
        if not answered or idle:
            self.late = _stop(self.late)
        elif self.late is None:
            self.late = self.loop.call_later(self.limits.read_timeout, self.too_late)

    def too_late(self) -> None:
        """The client was too slow."""
        if not self.transport.is_closing() and self.conn.our_state is h11.IDLE and self.conn.trailing_data[0]:
            self.reject(Refusal(408, f"the request did not arrive within {self.limits.read_timeout:g} seconds"))
        self.transport.abort() if self.transport.get_write_buffer_size() else self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Something other than HTTP arrived, or a head that is too long."""
        del msg
        self.reject(Refusal(400, "this is no HTTP request, or its head is too long"))

    def reject(self, refusal: Refusal) -> None:
        """Answers without the application, and closes."""
        body = error_body(refusal)
        headers = {"content-type": "application/json", "connection": "close", "content-length": str(len(body))}
        for event in (
            h11.Response(status_code=refusal.status, headers=list(headers.items()), reason=b""),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def timeout_keep_alive_handler(self) -> None:
        """An idle connection is closed, also one whose last answer was not read."""
        super().timeout_keep_alive_handler()
        if self.transport.get_write_buffer_size():
            self.transport.abort()

    def pause_writing(self) -> None:
        """The client does not read."""
        super().pause_writing()
        self.unread = self.loop.call_later(self.limits.timeout, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        self.unread = _stop(self.unread)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        super().connection_lost(exc)
        self.late, self.unread = _stop(self.late), _stop(self.unread)


def _stop(timer: Handle | None) -> None:
    if timer is not None:
        timer.cancel()


def protocol_of(limits: Limits) -> type[BoundedProtocol]:
    """The class of connections within these limits."""
    return type("LimitedProtocol", (BoundedProtocol,), {"limits": limits})
