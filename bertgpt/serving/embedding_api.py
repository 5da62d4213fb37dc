"""Embeddings as OpenAI's clients ask for them."""

import base64
from typing import Literal

import msgspec
import numpy as np

from bertgpt.serving.endpoints import Endpoint, ModelRequest
from bertgpt.serving.errors import Refusal
from bertgpt.serving.limits import Limits
from bertgpt.serving.served import Served


class EmbeddingsRequest(ModelRequest, kw_only=True):
    """A request to /v1/embeddings."""

    input: str | list[str | int | list[int]]
    """a text, texts, token ids, or lists of token ids"""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    """keep the first so many components, and normalise again"""
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


def inputs_of(request: EmbeddingsRequest, served: Served, limits: Limits) -> list[str | list[int]]:
    """The inputs as a list of texts or lists of token ids.

    Raises:
      Refusal: they are mixed, empty or too many, or an id is none of the model's.
    """
    given = request.input
    items = [given] if isinstance(given, str) else given
    if items and all(isinstance(item, int) for item in items):
        items = [items]
    limits.check_texts(len(items), "input")
    size = served.model.tokenizer.vocab.size
    for item in items:
        if type(item) is not type(items[0]) or isinstance(item, int):
            raise Refusal(422, "input must hold texts only, token ids only, or lists of token ids only", param="input")
        if isinstance(item, list) and (not item or not all(0 <= i < size for i in item)):
            raise Refusal(422, f"token ids must lie in 0 … {size - 1}, at least one a list", param="input")
        if not item:
            raise Refusal(422, "input must not hold an empty text", param="input")
    return items


async def embeddings(request: EmbeddingsRequest, served: Served, limits: Limits) -> EmbeddingsAnswer:
    """Vectors of texts or token ids."""
    vectors, counts = await served.embed(inputs_of(request, served, limits))
    width = vectors.shape[1]
    if request.dimensions is not None:
        if not 1 <= request.dimensions <= width:
            raise Refusal(422, f"dimensions must lie in 1 … {width}", param="dimensions")
        vectors = vectors[:, : request.dimensions]
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    if request.encoding_format == "base64":
        rows = [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in vectors]
    else:
        rows = list(vectors)
    total = sum(counts)
    return EmbeddingsAnswer([Embedding(i, row) for i, row in enumerate(rows)], served.name, Usage(total, total))


ENDPOINTS = (Endpoint("/v1/embeddings", EmbeddingsRequest, EmbeddingsAnswer, embeddings, "embed"),)
