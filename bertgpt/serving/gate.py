"""What every request passes: the token, back-pressure, errors in one shape, headers, and metrics."""

import dataclasses
import hmac
import logging
import time
from collections.abc import Collection

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bertgpt.serving import page
from bertgpt.serving.errors import Refusal, as_refusal, error_body
from bertgpt.serving.limits import Limits
from bertgpt.serving.metrics import Metrics

log = logging.getLogger(__name__)

OPEN = ("/health", "/ready", "/docs")
"""paths that need no token, beside those of the page"""
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; object-src 'none'",
}
"""of every answer: only our own files are loaded, in no frame"""
ENCODED_HEADERS = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]

ADMITTED = "bertgpt.admitted"
"""mark of a request that was accepted"""


@dataclasses.dataclass
class State:
    """What changes while the server runs."""

    ready: bool = False
    """models are warmed up"""
    stopping: bool = False
    """accepted requests are finished, and no further ones accepted"""
    accepted: int = 0
    """requests that are not answered yet"""
    failed: Exception | None = None
    """what ended the warm-up"""

    def admit(self, scope: Scope, limits: Limits) -> None:
        """Accepts a request, whose body has arrived; `leave` must follow.

        Raises:
          Refusal: 429 if too many wait.
        """
        if self.accepted >= limits.max_requests:
            raise Refusal(429, "too many requests are waiting; try again later", {"Retry-After": "1"})
        self.accepted += 1
        scope[ADMITTED] = True

    def leave(self, scope: Scope) -> None:
        """A request is answered, if it was accepted."""
        self.accepted -= bool(scope.pop(ADMITTED, False))


async def on_http_error(request: Request, error: Exception) -> Response:
    """Unknown paths and methods."""
    assert isinstance(error, HTTPException)
    path = request.url.path[:100]
    texts = {404: f"there is nothing at {path!r}", 405: f"{path!r} does not take {request.method}"}
    return refuse(Refusal(error.status_code, texts.get(error.status_code, error.detail), dict(error.headers or {})))


def refuse(refusal: Refusal) -> Response:
    """The answer to a request that is refused."""
    return Response(error_body(refusal), refusal.status, refusal.headers, media_type="application/json")


class Gate:
    """What every request passes."""

    def __init__(
        self, app: ASGIApp, state: State, limits: Limits, api_key: str | None, metrics: Metrics, paths: Collection[str]
    ):
        """Around an application.

        Args:
          app: answers the requests.
          state: what changes while the server runs.
          limits: bounds on requests.
          api_key: token that requests must carry, unless their path is open.
          metrics: counts the answers.
          paths: paths that are counted by name.
        """
        self.app, self.state, self.limits, self.metrics, self.paths = app, state, limits, metrics, frozenset(paths)
        self.key = None if api_key is None else api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, begun = 0, time.monotonic()

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *ENCODED_HEADERS]
            await send(message)

        try:
            self.check(scope)
            await self.app(scope, receive, send_with_headers)
        except ClientDisconnect:
            status = status or 499
        except Exception as error:
            refusal = as_refusal(error)
            if refusal.status == 500:
                log.exception("%s %s failed", scope["method"], scope["path"])
            if status:  # the answer has begun: only an end that is too early can tell
                raise
            await refuse(refusal)(scope, receive, send_with_headers)
        finally:
            self.state.leave(scope)
            self.metrics.observe(self.name_of(scope["path"]), status, time.monotonic() - begun)

    def name_of(self, path: str) -> str:
        """The name of an endpoint in metrics; all unknown paths have one name."""
        if path in self.paths:
            return path
        return next((f"{prefix}…" for prefix in ("/static/", "/v1/models/") if path.startswith(prefix)), "other")

    def check(self, scope: Scope) -> None:
        """Raises Refusal if the request may not pass."""
        if self.key is not None and scope["path"] not in OPEN and not page.is_open(scope["path"]):
            given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
            scheme, _, token = given.partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(token.strip(), self.key):
                raise Refusal(401, "the bearer token is missing or wrong", {"WWW-Authenticate": "Bearer"})
        if scope["method"] != "POST" or scope["path"] not in self.paths:
            return
        if self.state.stopping:
            raise Refusal(503, "the server is stopping", {"Connection": "close", "Retry-After": "1"})
        if not self.state.ready:
            raise Refusal(503, "the models are not warmed up yet", {"Retry-After": "1"})
