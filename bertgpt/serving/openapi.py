"""The OpenAPI 3.1 document: made from the structs that requests are parsed into and answers are written from."""

import ast
import functools
import inspect
import re
import textwrap
from collections.abc import Sequence
from typing import Any

import msgspec

import bertgpt
from bertgpt.serving.endpoints import Endpoint
from bertgpt.types import JsonObject

REFERENCE = "#/components/schemas/{name}"
REFUSALS = {
    400: "The body is no JSON, or the model cannot do what is asked for",
    401: "The bearer token is missing or wrong",
    404: "There is no such model",
    408: "The body did not arrive in time",
    413: "The body or a text is too long, or there are too many texts",
    422: "The body does not fit the schema",
    429: "Too many requests are waiting; Retry-After says when to try again",
    503: "The models are not warmed up yet, or the server is stopping",
    504: "The request took too long",
}
"""status of each refusal → what it means"""


class ErrorDetail(msgspec.Struct):
    """What went wrong."""

    message: str
    """one sentence"""
    type: str
    code: int
    """the HTTP status"""
    param: str | None
    """the field of the request that is to blame"""


class ErrorBody(msgspec.Struct):
    """The body of every answer that is no success."""

    error: ErrorDetail


class Get(msgspec.Struct):
    """A GET endpoint of the document."""

    path: str
    summary: str
    response: Any
    """type of the answer; a string is its media type"""
    statuses: tuple[int, ...] = ()
    """refusals"""


def build_document(endpoints: Sequence[Endpoint], gets: Sequence[Get], needs_token: bool) -> JsonObject:
    """The document.

    Args:
      endpoints: POST endpoints.
      gets: GET endpoints.
      needs_token: whether requests must carry a bearer token.
    """
    types = [item.request for item in endpoints] + [item.response for item in endpoints]
    types += [item.response for item in gets if not isinstance(item.response, str)] + [ErrorBody]
    found, components = msgspec.json.schema_components(types, ref_template=REFERENCE)
    for kind in structs_in(types):
        describe(components.get(kind.__name__, {}), kind)
    schemas = dict(zip(map(repr, types), found, strict=True))
    refused = {
        str(status): {"description": text, "content": _json({"$ref": REFERENCE.format(name="ErrorBody")})}
        for status, text in REFUSALS.items()
        if needs_token or status != 401
    }
    paths: JsonObject = {}
    for item in gets:
        media = item.response if isinstance(item.response, str) else "application/json"
        schema = {"type": "string"} if isinstance(item.response, str) else schemas[repr(item.response)]
        answer = {"description": "The answer", "content": {media: {"schema": schema}}}
        refusals = {key: value for key, value in refused.items() if int(key) in (401, *item.statuses)}
        operation = {"summary": item.summary, "operationId": _name("get", item.path)}
        names = re.findall(r"\{(\w+)\}", item.path)
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
        paths[item.path] = {"get": operation | {"responses": {"200": answer} | refusals}}
    for item in endpoints:
        content = _json(schemas[repr(item.response)])
        if "stream" in {field.name for field in msgspec.structs.fields(item.request)}:
            content["text/event-stream"] = {}
        paths[item.path] = {
            "post": {
                "summary": (inspect.getdoc(item.answer) or "").splitlines()[0],
                "operationId": _name("post", item.path),
                "requestBody": {"required": True, "content": _json(schemas[repr(item.request)])},
                "responses": {"200": {"description": "The answer", "content": content}}
                | refused
                | {str(status): refused["400"] | {"description": text} for status, text in item.status.items()},
            }
        }
    document: JsonObject = {
        "openapi": "3.1.0",
        "info": {
            "title": "bertgpt",
            "version": bertgpt.__version__,
            "description": "Language models behind the interfaces that clients already speak, and some of our own.",
        },
        "paths": paths,
        "components": {"schemas": components},
    }
    if needs_token:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
    return document


def _json(schema: JsonObject) -> JsonObject:
    return {"application/json": {"schema": schema}}


def _name(method: str, path: str) -> str:
    return re.sub(r"\W+", "_", f"{method}{path}").strip("_")


def structs_in(types: Sequence[Any]) -> list[type[msgspec.Struct]]:
    """All structs that types are made of."""
    found: dict[type, None] = {}

    def visit(info: msgspec.inspect.Type) -> None:
        if isinstance(info, msgspec.inspect.StructType):
            if info.cls in found:
                return
            found[info.cls] = None
            for field in info.fields:
                visit(field.type)
        elif isinstance(info, msgspec.inspect.UnionType):
            for part in info.types:
                visit(part)
        elif isinstance(info, msgspec.inspect.DictType):
            visit(info.value_type)
        elif isinstance(info, msgspec.inspect.ListType | msgspec.inspect.VarTupleType):
            visit(info.item_type)

    for info in msgspec.inspect.multi_type_info(types):
        visit(info)
    return list(found)


def describe(schema: JsonObject, kind: type[msgspec.Struct]) -> None:
    """Adds the docstrings of a struct's fields to its schema."""
    for name, text in field_texts(kind).items():
        field = schema.get("properties", {}).get(name)
        if field is not None:
            field["description"] = text


@functools.cache
def field_texts(kind: type) -> dict[str, str]:
    """Field → the string below it, for a class and its bases."""
    found: dict[str, str] = {}
    for base in reversed([base for base in kind.__mro__ if base.__module__.startswith("bertgpt.")]):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for field, text in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
                if isinstance(text.value, ast.Constant) and isinstance(text.value.value, str):
                    found[field.target.id] = " ".join(text.value.value.split())
    return found
