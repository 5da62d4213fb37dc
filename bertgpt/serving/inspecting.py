"""Inside a model: attention weights, the logit lens, and saliency per token, as `bertgpt.inspect` computes them."""

from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

from bertgpt.inference import inspect
from bertgpt.inference.encode import num_classes
from bertgpt.inference.reading import Token, read_both
from bertgpt.serving.endpoints import Endpoint, ModelRequest
from bertgpt.serving.errors import Refusal
from bertgpt.serving.limits import Limits
from bertgpt.serving.served import Served
from bertgpt.types import UserError

LARGEST = 1_000_000
"""numbers of an answer with attention weights: layers · heads · tokens², about 8 bytes each"""
LARGEST_LENS = 200_000
"""predictions of an answer of the lens: layers · tokens · top_k"""


class TextRequest(ModelRequest, kw_only=True):
    """A request about one text."""

    inputs: str
    """a text; [MASK] in it is the special token"""


class InspectRequest(TextRequest, kw_only=True):
    """A request to /inspect/attention."""

    pair: str | None = None
    """the second text of a pair, for encoders"""
    target: str | None = None
    """of an encoder–decoder, what its decoder reads after its start token"""


class ShownToken(msgspec.Struct):
    """A token that a model reads."""

    token: str
    """as the vocabulary writes it"""
    id: int
    start: int
    """inputs[start:end], in characters; both 0 for tokens that the model adds"""
    end: int


class Attended(msgspec.Struct):
    """Tokens and attention weights."""

    tokens: list[ShownToken]
    attention: list[list[list[list[float]]]]
    """[layer][head][query][key]; of an encoder–decoder, of its encoder"""
    target_tokens: list[ShownToken]
    """what the decoder of an encoder–decoder reads"""
    target_attention: list[list[list[list[float]]]] | None
    """[layer][head][query][key] of the decoder; null without a target"""
    cross_attention: list[list[list[list[float]]]] | None
    """[layer][head][query][key] of the decoder to the encoder's output; null without a target"""


class AttentionAnswer(msgspec.Struct):
    """One result."""

    model: str
    results: list[Attended]


class LensRequest(TextRequest, kw_only=True):
    """A request to /inspect/lens."""

    top_k: Annotated[int, Meta(ge=1, le=20)] = 5
    """predictions per token"""
    target: str | None = None
    """of an encoder–decoder, what its decoder reads after its start token"""


class Guess(msgspec.Struct):
    """A token that a layer would predict."""

    token: str
    id: int
    probability: float


class Seen(msgspec.Struct):
    """Tokens, and what each layer would predict at each."""

    tokens: list[ShownToken]
    layers: list[list[list[Guess]]]
    """[layer][token]; layer 0 is the embedded input, the last one predicts what the model predicts"""


class LensAnswer(msgspec.Struct):
    """One result."""

    model: str
    results: list[Seen]


class SaliencyRequest(TextRequest, kw_only=True):
    """A request to /inspect/saliency."""

    label: str | None = None
    """the label to explain; null: the one that the model predicts"""
    pair: str | None = None
    """the second text of a pair"""


class SalientToken(ShownToken):
    """A token and how much it contributes."""

    score: float
    """gradient × input; above 0 it speaks for the label"""


class Explained(msgspec.Struct):
    """How much each token contributes to a label."""

    tokens: list[SalientToken]
    label: str | None
    """null for a number"""
    probability: float | None
    """of the label; null for a number"""
    value: float
    """the label's logit, or the number"""


class SaliencyAnswer(msgspec.Struct):
    """One result."""

    model: str
    results: list[Explained]


def shown(tokens: tuple[Token, ...]) -> list[dict[str, object]]:
    """Tokens as objects."""
    return [token._asdict() for token in tokens]


def lengths(served: Served, pair: str | None, target: str | None, text: str) -> tuple[int, int]:
    """Numbers of tokens that the model and its decoder read; 0 if there is no decoder.

    Raises:
      Refusal: the model reads no such thing.
    """
    architecture = served.model.config.architecture
    if target is not None and architecture != "encoder_decoder":
        raise Refusal(422, f"target: the model {served.name!r} is no encoder–decoder", param="target")
    if pair is not None and architecture != "encoder":
        raise Refusal(422, f"pair: the model {served.name!r} is no encoder and reads one text", param="pair")
    try:
        read, decoder = read_both(served.model, text, pair, target)
    except UserError as error:
        raise Refusal(422, f"inputs: {error}", param="inputs") from None
    return len(read.tokens), 0 if decoder is None else len(decoder.tokens)


def check_size(size: int, largest: int, tokens: int, what: str) -> None:
    """Raises Refusal if an answer would be too large."""
    if size > largest:
        message = f"inputs: {what} of {tokens} tokens are {size:,} numbers, more than {largest:,}; give a shorter text"
        raise Refusal(413, message, param="inputs")


async def attention(request: InspectRequest, served: Served, limits: Limits) -> object:
    """Attention weights of every layer and head, rounded to 4 digits."""
    return await served.call_slow(_attention, request, served)


def _attention(request: InspectRequest, served: Served) -> object:
    config, model = vars(served.model.config.main), served.model
    size, more = lengths(served, request.pair, request.target, request.inputs)
    decoded = config.get("num_decoder_layers", 0) * more * (more + size)
    total = config["num_heads"] * (config["num_layers"] * size**2 + decoded)
    check_size(total, LARGEST, size + more, "attention weights")
    found = inspect.attention(model, request.inputs, request.pair, request.target)

    def rounded(weights: np.ndarray | None) -> np.ndarray | None:
        return None if weights is None else np.ascontiguousarray(np.round(weights, 4))

    result = {
        "tokens": shown(found.tokens),
        "attention": rounded(found.weights),
        "target_tokens": shown(found.target_tokens),
        "target_attention": rounded(found.target_weights),
        "cross_attention": rounded(found.cross_weights),
    }
    return {"model": served.name, "results": [result]}


async def lens(request: LensRequest, served: Served, limits: Limits) -> object:
    """What each layer would predict if it were the last (logit lens)."""
    return await served.call_slow(_lens, request, served)


def _lens(request: LensRequest, served: Served) -> object:
    config, target = vars(served.model.config.main), request.target
    size, more = lengths(served, None, target, request.inputs)
    layers = 1 + config.get("num_decoder_layers", config["num_layers"])
    check_size(layers * (more or size) * request.top_k, LARGEST_LENS, more or size, "predictions")
    found = inspect.logit_lens(served.model, request.inputs, request.top_k, target)
    probabilities = np.round(found.probabilities.astype(np.float64), 4).tolist()
    rows = [
        [
            [{"token": t, "id": i, "probability": p} for t, i, p in zip(*cell, strict=True)]
            for cell in zip(*layer, strict=True)
        ]
        for layer in zip(found.predictions, found.ids.tolist(), probabilities, strict=True)
    ]
    return {"model": served.name, "results": [{"tokens": shown(found.tokens), "layers": rows}]}


async def saliency(request: SaliencyRequest, served: Served, limits: Limits) -> object:
    """How much each token contributes to a label of the classifier (gradient × input)."""
    return await served.call_slow(_saliency, request, served)


def _saliency(request: SaliencyRequest, served: Served) -> object:
    model = served.model
    names = model.labels.shown or tuple(f"LABEL_{i}" for i in range(num_classes(model)))
    if request.label is not None and (model.labels.kind == "number" or request.label not in names):
        known = "it predicts a number" if model.labels.kind == "number" else f"it has {', '.join(names)}"
        raise Refusal(422, f"label: the model {served.name!r} has no label {request.label[:100]!r}; {known}",
                      param="label")  # fmt: skip
    lengths(served, request.pair, None, request.inputs)
    found = inspect.saliency(model, request.inputs, request.label, request.pair)
    scores = [float(f"{score:.4g}") for score in found.scores.tolist()]
    tokens = [token | {"score": score} for token, score in zip(shown(found.tokens), scores, strict=True)]
    result = {"tokens": tokens, "label": found.label, "probability": found.probability, "value": found.value}
    return {"model": served.name, "results": [result]}


ENDPOINTS = (
    Endpoint("/inspect/attention", InspectRequest, AttentionAnswer, attention, "attention"),
    Endpoint("/inspect/lens", LensRequest, LensAnswer, lens, "lens"),
    Endpoint("/inspect/saliency", SaliencyRequest, SaliencyAnswer, saliency, "saliency"),
)
