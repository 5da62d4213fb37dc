"""The Starlette application: the routes of all modules, and around them what every request passes."""

import asyncio
import contextlib
import dataclasses
import hmac
import logging
from collections.abc import AsyncIterator, Sequence

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bertgpt.serving import chat, completions, embedding_api, page, rerank, tei
from bertgpt.serving.body import answer_json
from bertgpt.serving.endpoints import Endpoint, Models, handler
from bertgpt.serving.errors import Refusal, as_refusal, error_body
from bertgpt.serving.limits import Limits
from bertgpt.serving.served import Served

log = logging.getLogger(__name__)

ENDPOINTS: tuple[Endpoint, ...] = (
    *embedding_api.ENDPOINTS,
    *completions.ENDPOINTS,
    *chat.ENDPOINTS,
    *tei.ENDPOINTS,
    *rerank.ENDPOINTS,
)
"""all POST endpoints; a module of endpoints adds its own here"""

OPEN = ("/health", "/ready")
"""paths that need no token"""
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; object-src 'none'",
}
"""of every answer: only our own files are loaded, in no frame"""


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


class ModelCard(msgspec.Struct):
    """A loaded model."""

    id: str
    created: int
    capabilities: list[str]
    architecture: str
    max_len: int
    labels: list[str]
    mask: str | None
    object: str = "model"
    owned_by: str = "bertgpt"


def card(served: Served) -> ModelCard:
    """What /v1/models says of a model."""
    model = served.model
    return ModelCard(
        id=served.name,
        created=served.created,
        capabilities=sorted(served.can),
        architecture=model.config.architecture,
        max_len=model.config.max_len,
        labels=list(model.labels.shown),
        mask=model.tokenizer.roles.get("mask") if "fill_mask" in served.can else None,
    )


def build_app(
    models: Sequence[Served],
    limits: Limits | None = None,
    api_key: str | None = None,
    cors_origins: Sequence[str] = (),
    warm_up_first: bool = True,
) -> Starlette:
    """The application.

    Args:
      models: the loaded models; of several that can do what a request asks for, the first answers.
      limits: bounds on requests.
      api_key: bearer token that requests must carry; None: none.
      cors_origins: origins whose pages may call the API; "*" for all.
      warm_up_first: whether no request is accepted before the models are warmed up; otherwise /ready and all requests
        to models answer 503 until then.
    """
    limits, state = limits or Limits(), State()
    by_name = Models({served.name: served for served in models})

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        warming = asyncio.ensure_future(warm_up(models, state))
        if warm_up_first:
            await warming
        yield
        state.stopping = True
        warming.cancel()
        for served in models:
            await served.stop()

    async def health(request: Request) -> Response:
        return answer_json({"status": "ok"})

    async def ready(request: Request) -> Response:
        if state.stopping or not state.ready:
            raise Refusal(503, "the server is stopping" if state.stopping else "the models are not warmed up yet")
        return answer_json({"status": "ready"})

    async def info(request: Request) -> Response:
        return tei.info(models[0], limits)

    async def list_models(request: Request) -> Response:
        return answer_json({"object": "list", "data": [card(served) for served in models]})

    async def one_model(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in by_name.by_name:
            raise Refusal(404, f"there is no model {name[:100]!r}")
        return answer_json(card(by_name.by_name[name]))

    app = Starlette(
        routes=[
            Route("/health", health),
            Route("/ready", ready),
            Route("/info", info),
            Route("/v1/models", list_models),
            Route("/v1/models/{name:path}", one_model),
            *page.ROUTES,
            *(Route(item.path, handler(item, by_name, limits), methods=["POST"]) for item in ENDPOINTS),
        ],
        lifespan=lifespan,
        exception_handlers={HTTPException: on_http_error, Exception: on_error},
    )
    app.state.server = state
    app.router.redirect_slashes = False
    app.add_middleware(Gate, state=state, limits=limits, api_key=api_key)
    if cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=cors_origins, allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    return app


async def warm_up(models: Sequence[Served], state: State) -> None:
    """Starts the models one by one. What fails is kept in `state`."""
    try:
        for served in models:
            await served.start()
        state.ready = True
    except Exception as error:
        state.failed = error
        raise


async def on_http_error(request: Request, error: Exception) -> Response:
    """Unknown paths and methods."""
    assert isinstance(error, HTTPException)
    path = request.url.path[:100]
    texts = {404: f"there is nothing at {path!r}", 405: f"{path!r} does not take {request.method}"}
    return refuse(Refusal(error.status_code, texts.get(error.status_code, error.detail), dict(error.headers or {})))


async def on_error(request: Request, error: Exception) -> Response:
    """What ended a handler, if nothing has been answered yet."""
    return refuse(as_refusal(error))


def refuse(refusal: Refusal) -> Response:
    """The answer to a request that is refused."""
    return Response(error_body(refusal), refusal.status, refusal.headers, media_type="application/json")


class Gate:
    """What every request passes: the token, back-pressure, errors and headers."""

    def __init__(self, app: ASGIApp, state: State, limits: Limits, api_key: str | None):
        self.app, self.state, self.limits = app, state, limits
        self.key = None if api_key is None else api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [
                    *message["headers"],
                    *((name.lower().encode(), value.encode()) for name, value in HEADERS.items()),
                ]
            await send(message)

        counted = scope["method"] == "POST"
        self.state.accepted += counted
        try:
            self.check(scope, counted)
            await self.app(scope, receive, send_with_headers)
        except ClientDisconnect:
            pass
        except Exception as error:
            refusal = as_refusal(error)
            if refusal.status == 500:
                log.exception("%s %s failed", scope["method"], scope["path"])
            if started:
                raise
            await refuse(refusal)(scope, receive, send_with_headers)
        finally:
            self.state.accepted -= counted

    def check(self, scope: Scope, counted: bool) -> None:
        """Raises Refusal if the request may not pass."""
        if self.key is not None and scope["path"] not in OPEN and not page.is_open(scope["path"]):
            given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
            scheme, _, token = given.partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(token.strip(), self.key):
                raise Refusal(401, "the bearer token is missing or wrong", {"WWW-Authenticate": "Bearer"})
        if not counted:
            return
        if self.state.stopping:
            raise Refusal(503, "the server is stopping", {"Connection": "close", "Retry-After": "1"})
        if not self.state.ready:
            raise Refusal(503, "the models are not warmed up yet", {"Retry-After": "1"})
        if self.state.accepted > self.limits.max_requests:
            raise Refusal(429, "too many requests are waiting; try again later", {"Retry-After": "1"})
