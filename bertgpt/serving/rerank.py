"""Ranking in three shapes: text-embeddings-inference's (`texts`), Cohere's and Jina's (`documents`)."""

import uuid
from typing import Annotated

import msgspec
import numpy as np
from msgspec import UNSET, Meta, UnsetType

from bertgpt.serving.endpoints import Endpoint
from bertgpt.serving.errors import Refusal
from bertgpt.serving.limits import Limits
from bertgpt.serving.served import Served
from bertgpt.serving.tei import TruncatingRequest


class Document(msgspec.Struct):
    """A document; fields beside its text are returned with it by none of these interfaces."""

    text: str


class RerankRequest(TruncatingRequest, kw_only=True):
    """A request to rank texts; give `documents` (Cohere, Jina) or `texts` (text-embeddings-inference)."""

    query: str
    """what the texts are compared to"""
    documents: list[str | Document] | None = None
    """texts, or objects with a field `text`"""
    texts: list[str] | None = None
    """texts; the answer is then a list of {index, score}"""
    top_n: Annotated[int, Meta(ge=1)] | None = None
    """how many to return, the best first; null: all"""
    return_documents: bool | None = None
    """whether results hold their documents"""
    return_text: bool = False
    """the same for `texts`"""
    raw_scores: bool = False
    """logits of a cross-encoder in place of their sigmoid"""
    max_tokens_per_doc: Annotated[int, Meta(ge=1)] | None = None
    """accepted; documents are truncated to what the model reads"""


class RerankResult(msgspec.Struct):
    """A document and how well it fits, in Cohere's and Jina's shape."""

    index: int
    relevance_score: float
    document: Document | UnsetType = UNSET


class RerankUsage(msgspec.Struct):
    """Numbers of tokens."""

    total_tokens: int
    prompt_tokens: int


class ApiVersion(msgspec.Struct):
    """Which interface answered."""

    version: str


class BilledUnits(msgspec.Struct):
    """Number of searches."""

    search_units: int = 1


class RerankMeta(msgspec.Struct):
    """What Cohere's clients read."""

    api_version: ApiVersion
    billed_units: BilledUnits


class RerankAnswer(msgspec.Struct):
    """The documents, the best first, with the fields that Cohere's and Jina's clients read."""

    id: str
    model: str
    results: list[RerankResult]
    usage: RerankUsage
    meta: RerankMeta


class Rank(msgspec.Struct):
    """A text and how well it fits, in text-embeddings-inference's shape."""

    index: int
    score: float
    text: str | UnsetType = UNSET


async def rerank(request: RerankRequest, served: Served, limits: Limits) -> RerankAnswer | list[Rank]:
    """Texts ranked by how well they fit a query: by a cross-encoder, or by cosine similarity."""
    if (request.documents is None) == (request.texts is None):
        raise Refusal(422, "give either documents or texts", param="documents")
    if request.texts is not None:
        texts = request.texts
    else:
        texts = [item if isinstance(item, str) else item.text for item in request.documents]
    limits.check_texts(len(texts), "documents" if request.texts is None else "texts")
    # Cohere and Jina truncate long documents, text-embeddings-inference refuses them unless told to.
    side = request.side if request.texts is not None else "end"
    scores = await served.score_pairs(request.query, texts, side)
    if served.crosses and not request.raw_scores:
        scores = 1.0 / (1.0 + np.exp(-scores.astype(np.float64)))
    order = np.argsort(-scores, kind="stable")[: request.top_n].tolist()
    if request.texts is not None:
        return [Rank(i, float(scores[i]), texts[i] if request.return_text else UNSET) for i in order]
    shown = bool(request.return_documents)
    results = [RerankResult(i, float(scores[i]), Document(texts[i]) if shown else UNSET) for i in order]
    total = sum(map(len, await served.aside(served.model.tokenizer.encode, [request.query, *texts])))
    meta = RerankMeta(ApiVersion("2"), BilledUnits())
    return RerankAnswer(f"rerank-{uuid.uuid4().hex}", served.name, results, RerankUsage(total, total), meta)


ENDPOINTS = tuple(
    Endpoint(path, RerankRequest, RerankAnswer | list[Rank], rerank, "rerank")
    for path in ("/rerank", "/v1/rerank", "/v2/rerank")
)
