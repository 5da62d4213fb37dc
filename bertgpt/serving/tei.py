"""The endpoints of Hugging Face's text-embeddings-inference, in its shapes. Errors have the shape of all our errors."""

from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import UNSET, Meta, UnsetType

import bertgpt
from bertgpt.convert.sentence_transformers import Pooling
from bertgpt.inference.encode import embedder_for
from bertgpt.serving.endpoints import Endpoint, ModelRequest
from bertgpt.serving.errors import Refusal
from bertgpt.serving.limits import Limits
from bertgpt.serving.served import Served, Truncate

Direction = Literal["Left", "Right", "left", "right"]
Id = Annotated[int, Meta(ge=0, lt=2**31)]
LONGEST = 400_000
"""characters of all texts of a request to /tokenize: its answer is many times as long"""


class TruncatingRequest(ModelRequest, kw_only=True):
    """What requests about texts say of those that are too long."""

    truncate: bool | None = False
    """drop the rest of a text that is too long; otherwise such a request is refused"""
    truncation_direction: Direction = "Right"
    """the side that is dropped; of pairs of texts always the right one"""

    @property
    def side(self) -> Truncate:
        """What is dropped."""
        return ("start" if self.truncation_direction.lower() == "left" else "end") if self.truncate else "no"


class EmbedRequest(TruncatingRequest, kw_only=True):
    """A request to /embed."""

    inputs: str | list[str | Id | list[Id]]
    """a text, texts, token ids, or lists of token ids"""
    normalize: bool = True
    """divide by the L2 norm"""
    prompt_name: str | None = None
    """a prompt of the model to put before each text"""
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    """keep the first so many components"""


class PredictRequest(TruncatingRequest, kw_only=True):
    """A request to /predict."""

    inputs: str | list[str | list[str]]
    """a text, a pair of texts, or a list of lists of one or two texts"""
    raw_scores: bool = False
    """scores before softmax or sigmoid"""


class Prediction(msgspec.Struct):
    """A class."""

    score: float
    label: str


class SimilarityInput(msgspec.Struct, forbid_unknown_fields=True):
    """What is compared."""

    source_sentence: str
    sentences: list[str]


class SimilarityParameters(msgspec.Struct, forbid_unknown_fields=True):
    """How it is compared."""

    truncate: bool | None = False
    truncation_direction: Direction = "Right"
    prompt_name: str | None = None


class SimilarityRequest(ModelRequest, kw_only=True):
    """A request to /similarity."""

    inputs: SimilarityInput
    parameters: SimilarityParameters | None = None


class TokenizeRequest(ModelRequest, kw_only=True):
    """A request to /tokenize."""

    inputs: str | list[str]
    add_special_tokens: bool = True
    prompt_name: str | None = None


class SimpleToken(msgspec.Struct):
    """A token."""

    id: int
    text: str
    special: bool
    start: int | None
    """offset of its first character; null for special tokens"""
    stop: int | None


class DecodeRequest(ModelRequest, kw_only=True):
    """A request to /decode."""

    ids: list[Id | list[Id]]
    """token ids, or lists of them"""
    skip_special_tokens: bool = True


def texts_or_ids(
    given: str | list[str | int | list[int]], served: Served, limits: Limits, param: str
) -> list[str | list[int]]:
    """Inputs as a list of texts or of lists of token ids.

    Raises:
      Refusal: they are mixed, empty or too many, or an id is none of the model's.
    """
    items = [given] if isinstance(given, str) else given
    if items and all(isinstance(item, int) for item in items):
        items = [items]
    limits.check_texts(len(items), param)
    size = served.model.tokenizer.vocab.size
    for item in items:
        if type(item) is not type(items[0]) or isinstance(item, int):
            raise Refusal(422, f"{param} must hold texts only, or token ids only, or lists of token ids", param=param)
        if isinstance(item, list) and (not item or not all(0 <= i < size for i in item)):
            raise Refusal(422, f"token ids must lie in 0 … {size - 1}, with at least one in a list", param=param)
    return items


def texts_of(given: str | list[str], limits: Limits, param: str = "inputs") -> list[str]:
    """One or several texts as a list. Errors: Refusal if there are none or too many."""
    texts = [given] if isinstance(given, str) else given
    limits.check_texts(len(texts), param)
    return texts


def shortened(vectors: np.ndarray, dimensions: int | None, normalize: bool) -> np.ndarray:
    """The first components of vectors, normalised again (Kusupati et al. 2022, “Matryoshka Representation Learning”).

    Raises:
      Refusal: they have fewer.
    """
    if dimensions is None:
        return vectors
    if not 1 <= dimensions <= vectors.shape[1]:
        raise Refusal(422, f"dimensions must lie in 1 … {vectors.shape[1]}", param="dimensions")
    vectors = vectors[:, :dimensions]
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12) if normalize else vectors


async def embed(request: EmbedRequest, served: Served, limits: Limits) -> object:
    """Vectors of texts or token ids."""
    inputs = texts_or_ids(request.inputs, served, limits, "inputs")
    vectors, _ = await served.embed(inputs, None, request.prompt_name, request.normalize, request.side)
    return list(shortened(vectors, request.dimensions, request.normalize))


async def predict(request: PredictRequest, served: Served, limits: Limits) -> object:
    """Classes of texts or pairs of texts with their scores, the highest first."""
    given = request.inputs
    single = isinstance(given, str) or (len(given) == 2 and all(isinstance(item, str) for item in given))
    items = [[given] if isinstance(given, str) else given] if single else given
    limits.check_texts(len(items), "inputs")
    for item in items:
        if isinstance(item, str) or not 1 <= len(item) <= 2:
            raise Refusal(422, "inputs must be a text, a pair of texts, or lists of one or two texts", param="inputs")
    found: list[list[Prediction]] = [[] for _ in items]
    for size in {len(item) for item in items}:  # texts and pairs may be mixed
        chosen = [i for i, item in enumerate(items) if len(item) == size]
        names, scores = await served.class_scores([items[i] for i in chosen], request.raw_scores, request.side)
        for i, row in zip(chosen, scores.tolist(), strict=True):
            found[i] = sorted(map(Prediction, row, names), key=lambda item: -item.score)
    return found[0] if single else found


async def similarity(request: SimilarityRequest, served: Served, limits: Limits) -> object:
    """Cosine similarity of one text to others."""
    texts = texts_of(request.inputs.sentences, limits, "inputs.sentences")
    more = request.parameters or SimilarityParameters()
    side = TruncatingRequest(truncate=more.truncate, truncation_direction=more.truncation_direction).side
    vectors, _ = await served.embed([request.inputs.source_sentence, *texts], None, more.prompt_name, True, side)
    return vectors[1:] @ vectors[0]


async def tokenize(request: TokenizeRequest, served: Served, limits: Limits) -> object:
    """Tokens of texts with their ids and the characters that they stand for."""
    texts = texts_of(request.inputs, limits)
    if (size := sum(map(len, texts))) > LONGEST:
        text = f"inputs has {size:,} characters, more than the {LONGEST:,} that a request may have here"
        raise Refusal(413, text, param="inputs")
    if request.prompt_name is not None:
        embedder = served.model.embedder
        if embedder is None:
            raise Refusal(422, "the model has no prompts", param="prompt_name")
        texts = [embedder.prompt(None, request.prompt_name) + text for text in texts]
    rows = await served.tokenize(texts, request.add_special_tokens)
    return [[token._asdict() for token in row] for row in rows]


async def decode(request: DecodeRequest, served: Served, limits: Limits) -> object:
    """Texts of token ids."""
    rows = texts_or_ids(request.ids, served, limits, "ids")
    return await served.decode(rows, request.skip_special_tokens)


class ClassNames(msgspec.Struct):
    """Classes by number and by name."""

    id2label: dict[str, str]
    label2id: dict[str, int]


class PoolingName(msgspec.Struct):
    """How a vector is made of tokens."""

    pooling: str


class ModelType(msgspec.Struct):
    """What kind of model it is: one of these, or none."""

    embedding: PoolingName | UnsetType = UNSET
    classifier: ClassNames | UnsetType = UNSET
    reranker: ClassNames | UnsetType = UNSET


class Info(msgspec.Struct):
    """A model and the bounds of the server."""

    model_id: str
    model_type: ModelType
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    max_client_batch_size: int
    version: str
    model_sha: str | None = None
    model_dtype: str = "float32"
    auto_truncate: bool = False
    tokenization_workers: int = 1


def info(served: Served, limits: Limits) -> Info:
    """What /info says of the first loaded model."""
    model, kind = served.model, ModelType()
    names = {str(i): name for i, name in enumerate(model.labels.shown)}
    classes = ClassNames(names, {name: int(i) for i, name in names.items()})
    if served.crosses:
        kind.reranker = classes
    elif "classify" in served.can:
        kind.classifier = classes
    elif "embed" in served.can:
        pools = [module.modes for module in embedder_for(model, None).modules if isinstance(module, Pooling)]
        kind.embedding = PoolingName(",".join(mode for modes in pools for mode in modes))
    return Info(
        model_id=served.name,
        model_type=kind,
        max_concurrent_requests=limits.max_requests,
        max_input_length=model.config.max_len,
        max_batch_tokens=model.config.max_len * limits.max_texts,
        max_client_batch_size=limits.max_texts,
        version=bertgpt.__version__,
    )


ENDPOINTS = (
    Endpoint("/embed", EmbedRequest, list[list[float]], embed, "embed"),
    Endpoint("/predict", PredictRequest, list[Prediction | list[Prediction]], predict, "classify"),
    Endpoint("/similarity", SimilarityRequest, list[float], similarity, "embed"),
    Endpoint("/tokenize", TokenizeRequest, list[list[SimpleToken]], tokenize, "tokenize"),
    Endpoint("/decode", DecodeRequest, list[str], decode, "tokenize"),
)
