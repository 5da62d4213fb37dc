"""Embeddings as OpenAI's clients ask for them."""

import base64
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from bertgpt.serving.endpoints import Endpoint, ModelRequest
from bertgpt.serving.limits import Limits
from bertgpt.serving.served import Served
from bertgpt.serving.tei import Id, shortened, texts_or_ids


class EmbeddingsRequest(ModelRequest, kw_only=True):
    """A request to /v1/embeddings."""

    input: str | list[str | Id | list[Id]]
    """a text, texts, token ids, or lists of token ids"""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    """keep the first so many components, and normalise again"""
    truncate: bool = False
    """drop the end of a text that is too long; otherwise such a request is refused"""
    user: str | None = None
    """ignored"""


class Embedding(msgspec.Struct):
    """One vector."""

    index: int
    embedding: list[float] | str
    """numbers, or little-endian float32 in base64"""
    object: str = "embedding"


class Usage(msgspec.Struct):
    """Numbers of tokens."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(msgspec.Struct):
    """Vectors in the order of the inputs."""

    data: list[Embedding]
    model: str
    usage: Usage
    object: str = "list"


async def embeddings(request: EmbeddingsRequest, served: Served, limits: Limits) -> EmbeddingsAnswer:
    """Vectors of texts or token ids."""
    inputs = texts_or_ids(request.input, served, limits, "input")
    vectors, counts = await served.embed(inputs, truncate="end" if request.truncate else "no")
    vectors = shortened(vectors, request.dimensions, normalize=True)
    if request.encoding_format == "base64":
        rows = [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in vectors]
    else:
        rows = list(vectors)
    total = sum(counts)
    return EmbeddingsAnswer([Embedding(i, row) for i, row in enumerate(rows)], served.name, Usage(total, total))


ENDPOINTS = (Endpoint("/v1/embeddings", EmbeddingsRequest, EmbeddingsAnswer, embeddings, "embed"),)
