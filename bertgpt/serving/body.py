"""From bytes to a request and from an answer to bytes: reading within limits, msgspec in, orjson out."""

import asyncio
import re
import time
from typing import Any, TypeVar

import msgspec
import numpy as np
import orjson
from starlette.requests import Request
from starlette.responses import Response

from bertgpt.serving.errors import Refusal
from bertgpt.serving.limits import Limits

Parsed = TypeVar("Parsed")

# A string of JSON, closed or not. Possessive quantifiers make its time linear in any bytes.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


async def read_body(request: Request, limits: Limits) -> bytes:
    """The whole body.

    Raises:
      Refusal: 413 if it is too long, 408 if it does not arrive, 400 if its length is no number.
      ClientDisconnect: the client has gone.
    """
    declared = request.headers.get("content-length")
    if declared is not None and not declared.isdecimal():
        raise Refusal(400, "Content-Length is not a number")
    too_long = Refusal(413, f"the body is longer than {limits.max_bytes:,} bytes")
    if declared is not None and int(declared) > limits.max_bytes:
        raise too_long
    stream, parts, size, end = request.stream(), [], 0, time.monotonic() + limits.timeout
    while True:
        try:
            patience = min(limits.read_timeout, max(end - time.monotonic(), 0.0))
            part = await asyncio.wait_for(anext(stream, None), patience)
        except TimeoutError:
            message = f"the body did not arrive: {patience:g} seconds without any more of it"
            raise Refusal(408, message) from None
        if part is None:
            return b"".join(parts)
        size += len(part)
        if size > limits.max_bytes:
            raise too_long
        parts.append(part)


def depth_of(body: bytes) -> int:
    """How deep lists and objects are nested, at most; of bytes that are no JSON some number."""
    brackets = np.frombuffer(_STRING.sub(b"", body).translate(None, _NOT_BRACKETS), np.uint8)
    steps = np.where((brackets == ord("[")) | (brackets == ord("{")), 1, -1)
    return int(np.cumsum(steps).max(initial=0))


def parse(body: bytes, kind: type[Parsed], limits: Limits) -> Parsed:
    """The body as a struct of this type.

    Raises:
      Refusal: 400 if it is no JSON or nested too deep, 422 if it does not fit the type.
    """
    if body.count(b"[") + body.count(b"{") > limits.max_depth and depth_of(body) > limits.max_depth:
        raise Refusal(400, f"the JSON is nested deeper than {limits.max_depth} levels")
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        text = str(error)
        path = re.search(r" - at `\$\.?([^`]*)`$", text)
        raise Refusal(422, text.replace("`$.", "`").replace(" - at", " at"), param=path and path[1] or None) from None
    except UnicodeDecodeError:
        raise Refusal(400, "the body is not valid UTF-8") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise Refusal(400, f"the body is not valid JSON: {error}") from None


def answer_json(answer: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An answer of structs, dicts, lists and numpy arrays as JSON. Numbers that are not finite become null."""
    content = orjson.dumps(answer, default=plain, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(content, status, headers, media_type="application/json")


def plain(value: Any) -> Any:
    """What orjson does not know, as what it does."""
    if isinstance(value, msgspec.Struct):
        return {k: v for k, v in msgspec.structs.asdict(value).items() if v is not msgspec.UNSET}
    if isinstance(value, np.ndarray):  # not contiguous
        return value.tolist()
    if isinstance(value, frozenset | set):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} is no JSON")
