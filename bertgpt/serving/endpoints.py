"""Endpoints as values: a path, the struct that is read, the function that answers, the struct that is answered.

    async def classify(request: ClassifyRequest, served: Served) -> ClassifyAnswer: ...

    ENDPOINTS = (Endpoint("/classify", ClassifyRequest, ClassifyAnswer, classify, "classify"),)

`app.ENDPOINTS` lists those of all modules. The handler reads within limits, finds the model, watches whether the client
is still there, and writes the answer; the OpenAPI document is made from the same values.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Scope

from bertgpt.serving.body import answer_json, parse, read_body
from bertgpt.serving.errors import Refusal
from bertgpt.serving.limits import Limits
from bertgpt.serving.served import Served
from bertgpt.types import UserError


class ModelRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What all requests may name."""

    model: str | None = None
    """name of a loaded model; null: the first that can do what is asked for"""

    @property
    def needs(self) -> str | None:
        """What the model must be able to do, where that depends on the request; None: what the endpoint says."""
        return None


class Endpoint(NamedTuple):
    """A POST endpoint."""

    path: str
    request: type[ModelRequest]
    """struct of the body"""
    response: Any
    """type of the answer, for the OpenAPI document"""
    answer: Callable[..., Awaitable[object]]
    """(request, served, limits) → a struct, dict or list of them, numpy arrays within; or a Response, such as a stream.
    The first line of its docstring is its summary"""
    can: str | tuple[str, ...]
    """what the model must be able to do: one of these words"""
    status: Mapping[int, str] = {}
    """further statuses than those that all endpoints have → what they mean"""


class Models(NamedTuple):
    """The loaded models by name, in order."""

    by_name: Mapping[str, Served]

    def find(self, name: str | None, can: str | tuple[str, ...]) -> Served:
        """The model of this name, or the first that can do one of these.

        Raises:
          Refusal: 404 if there is none of this name, 400 if it cannot do that.
        """
        words = (can,) if isinstance(can, str) else can
        if name is not None:
            served = self.by_name.get(name)
            if served is None:
                loaded = ", ".join(self.by_name)
                raise Refusal(404, f"there is no model {name[:100]!r}; there are: {loaded}", param="model")
            if not served.can & {*words}:
                able = ", ".join(sorted(served.can)) or "nothing"
                raise Refusal(400, f"the model {name!r} cannot {' or '.join(words)}; it can: {able}", param="model")
            return served
        served = next((item for word in words for item in self.by_name.values() if word in item.can), None)
        if served is None:
            raise Refusal(400, f"no loaded model can {' or '.join(words)}", param="model")
        return served


def handler(
    endpoint: Endpoint, models: Models, limits: Limits, admit: Callable[[Scope, Limits], None]
) -> Callable[[Request], Awaitable[Response]]:
    """The function that answers requests to an endpoint; `admit` refuses those that are too many."""

    async def handle(request: Request) -> Response:
        body = await read_body(request, limits)
        parsed = parse(body, endpoint.request, limits)
        served = models.find(parsed.model, parsed.needs or endpoint.can)
        admit(request.scope, limits)
        try:
            async with asyncio.timeout(limits.timeout):
                answer = await until_disconnect(request, endpoint.answer(parsed, served, limits))
        except (UserError, Refusal) as error:
            raise served.explain(error) from None
        return answer if isinstance(answer, Response) else answer_json(answer)

    return handle


async def until_disconnect(request: Request, answer: Awaitable[object]) -> object:
    """The answer; it is cancelled when the client closes its connection.

    Raises:
      ClientDisconnect: the client has gone.
    """
    work = asyncio.ensure_future(answer)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        raise ClientDisconnect
    finally:
        gone.cancel()
        if not work.done():
            work.cancel()
            await asyncio.wait((work,))


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
