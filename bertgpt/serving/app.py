"""The Starlette application: the routes of all modules, and around them what every request passes."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bertgpt.serving import chat, completions, embedding_api, image_api, inspecting, page, rerank, rewriting, tasks, tei
from bertgpt.serving.body import answer_json
from bertgpt.serving.endpoints import Endpoint, Models, handler
from bertgpt.serving.errors import Refusal
from bertgpt.serving.gate import Gate, State, on_http_error
from bertgpt.serving.limits import Limits
from bertgpt.serving.metrics import Metrics
from bertgpt.serving.openapi import Get, build_document
from bertgpt.serving.served import Served

log = logging.getLogger(__name__)

ENDPOINTS: tuple[Endpoint, ...] = (
    *embedding_api.ENDPOINTS,
    *completions.ENDPOINTS,
    *chat.ENDPOINTS,
    *tei.ENDPOINTS,
    *rerank.ENDPOINTS,
    *tasks.ENDPOINTS,
    *rewriting.ENDPOINTS,
    *inspecting.ENDPOINTS,
    *image_api.ENDPOINTS,
)
"""all POST endpoints; a module of endpoints adds its own here"""


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


class ModelList(msgspec.Struct):
    """The loaded models."""

    data: list[ModelCard]
    object: str = "list"


class Status(msgspec.Struct):
    """How the server is."""

    status: str


GETS = (
    Get("/health", "Whether the process answers", Status),
    Get("/ready", "Whether models are warmed up and the server is not stopping", Status, (503,)),
    Get("/info", "The first loaded model, in text-embeddings-inference's shape", tei.Info),
    Get("/v1/models", "The loaded models and what they can do", ModelList),
    Get("/v1/models/{name}", "One loaded model", ModelCard, (404,)),
    Get("/metrics", "Metrics for Prometheus", "text/plain"),
    Get("/openapi.json", "This document", dict[str, Any]),
)
"""GET endpoints of the API, in the order of their functions in `build_app`"""


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

    app = Starlette(lifespan=lifespan, exception_handlers={HTTPException: on_http_error})
    metrics = Metrics(models, lambda: state.accepted)
    document = build_document(ENDPOINTS, GETS, api_key is not None)

    async def health(request: Request) -> Response:
        return answer_json(Status("ok"))

    async def ready(request: Request) -> Response:
        if state.stopping or not state.ready:
            raise Refusal(503, "the server is stopping" if state.stopping else "the models are not warmed up yet")
        return answer_json(Status("ready"))

    async def info(request: Request) -> Response:
        return answer_json(tei.info(models[0], limits))

    async def list_models(request: Request) -> Response:
        return answer_json(ModelList([card(served) for served in models]))

    async def one_model(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in by_name.by_name:
            raise Refusal(404, f"there is no model {name[:100]!r}")
        return answer_json(card(by_name.by_name[name]))

    async def show_metrics(request: Request) -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def show_document(request: Request) -> Response:
        return answer_json(document)

    gets = (health, ready, info, list_models, one_model, show_metrics, show_document)
    app.router.routes += [
        *(Route(get.path.replace("}", ":path}"), function) for get, function in zip(GETS, gets, strict=True)),
        *page.ROUTES,
        *(Route(item.path, handler(item, by_name, limits, state.admit), methods=["POST"]) for item in ENDPOINTS),
    ]
    app.state.server = state
    app.router.redirect_slashes = False
    paths = {item.path for item in (*ENDPOINTS, *GETS)} | {"/", "/docs"}
    app.add_middleware(Gate, state=state, limits=limits, api_key=api_key, metrics=metrics, paths=paths)
    if cors_origins:
        allowed = {"allow_origins": cors_origins, "allow_methods": ["GET", "POST"], "allow_headers": ["*"]}
        app.add_middleware(CORSMiddleware, **allowed)
    return app


async def warm_up(models: Sequence[Served], state: State) -> None:
    """Starts the models one by one. What fails is kept in `state`."""
    try:
        for served in models:
            start = time.monotonic()
            await served.start()
            log.info("%s: ready after %.1f s", served.name, time.monotonic() - start)
        state.ready = True
    except Exception as error:
        state.failed = error
        raise
