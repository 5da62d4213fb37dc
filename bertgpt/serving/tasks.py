"""Tasks of encoders: filling masks, classes, entities, answers. A response has one result for each input."""

from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from bertgpt.data.offsets import locate_tokens
from bertgpt.data.tokenizer_codec import check_text
from bertgpt.inference.encode import check_mlm
from bertgpt.inference.entailment import entail, entailment_task
from bertgpt.inference.predict import task_of
from bertgpt.inference.prompting import Prompt, label
from bertgpt.serving.capabilities import can_entail
from bertgpt.serving.endpoints import Endpoint, ModelRequest
from bertgpt.serving.errors import Refusal
from bertgpt.serving.limits import Limits
from bertgpt.serving.served import Served
from bertgpt.serving.tei import texts_of
from bertgpt.types import JsonObject

LABEL = "{label}"
LARGEST = 200_000
"""tokens of an answer about masks: masks · top_k"""


class TextsRequest(ModelRequest, kw_only=True):
    """A request about one or several texts."""

    inputs: str | list[str]
    """a text, or texts"""


# -- masks ------------------------------------------------------------------------------------------------------------


class FillMaskRequest(TextsRequest, kw_only=True):
    """A request to /fill-mask."""

    top_k: Annotated[int, Meta(ge=1, le=100)] = 5
    """tokens for each mask"""


class FilledToken(msgspec.Struct):
    """A token that may stand in place of a mask."""

    token: str
    """as the vocabulary writes it"""
    text: str
    """its characters"""
    id: int | None
    probability: float | None


class FilledMask(msgspec.Struct):
    """A mask and the most probable tokens for it, most probable first."""

    start: int
    """the mask is inputs[start:end], in characters"""
    end: int
    tokens: list[FilledToken]


class FillMaskAnswer(msgspec.Struct):
    """For each text its masks, in order."""

    model: str
    results: list[list[FilledMask]]


async def fill_mask(request: FillMaskRequest, served: Served, limits: Limits) -> FillMaskAnswer:
    """The most probable tokens for each mask of each text."""
    texts = texts_of(request.inputs, limits)
    places = await served.aside(find_masks, served, texts)
    if (size := sum(map(len, places)) * request.top_k) > LARGEST:
        text = f"inputs: the masks have {size:,} tokens to fill in, more than {LARGEST:,}; give fewer or lower top_k"
        raise Refusal(413, text, param="inputs")
    filled = await served.fill_mask(texts, request.top_k)
    return await served.aside(describe_masks, served, places, filled)


def describe_masks(
    served: Served, places: Sequence[Sequence[tuple[int, int]]], filled: Sequence[Sequence[dict[str, float]]]
) -> FillMaskAnswer:
    """The answer from the characters of each mask of each text and its tokens with their probabilities."""
    tokenizer, results = served.model.tokenizer, []
    for masks, answers in zip(places, filled, strict=True):
        found = []
        for (start, end), answer in zip(masks, answers, strict=False):  # masks beyond the longest sequence have none
            ids = [(token, tokenizer.backend.token_to_id(token), p) for token, p in answer.items()]
            tokens = [FilledToken(t, t if i is None else tokenizer.backend.decode([i]), i, p) for t, i, p in ids]
            found.append(FilledMask(start, end, tokens))
        results.append(found)
    return FillMaskAnswer(served.name, results)


def find_masks(served: Served, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
    """The characters of each mask of each text. Errors: Refusal, if a text has none."""
    tokenizer = served.model.tokenizer
    check_mlm(served.model, "filling masks")
    for text in texts:
        check_text(text)
    places = []
    for number, located in enumerate(locate_tokens(tokenizer, texts, parse_special=True)):
        masks = [
            tuple(where)
            for i, where in zip(located.ids, located.bounds.tolist(), strict=True)
            if i == tokenizer.vocab.mask
        ]
        if not masks:
            raise Refusal(422, f"inputs: text {number} has no {tokenizer.roles['mask']} to fill in", param="inputs")
        places.append(masks)
    return places


# -- classes ----------------------------------------------------------------------------------------------------------


class ClassifyRequest(TextsRequest, kw_only=True):
    """A request to /classify."""

    labels: list[str] | None = None
    """labels to choose from without training on them (zero-shot); null: those of the model's own classifier"""
    hypothesis: str | None = None
    """with `labels`: a sentence with {label}. A model of textual entailment tells whether the text implies it; other
    models tell how probable the label is there, after the text. null: “This text is about {label}.”"""

    @property
    def needs(self) -> str | None:
        """Zero-shot classification, if there are labels."""
        return None if self.labels is None else "zero_shot"


class Classified(msgspec.Struct):
    """The class of a text; the labels of one that may have several; or its number."""

    label: str | None | UnsetType = UNSET
    labels: list[str] | None | UnsetType = UNSET
    probability: float | None | UnsetType = UNSET
    probabilities: dict[str, float] | None | UnsetType = UNSET
    value: float | None | UnsetType = UNSET
    values: dict[str, float] | None | UnsetType = UNSET


class ClassifyAnswer(msgspec.Struct):
    """For each text its class."""

    model: str
    results: list[Classified]


async def classify(request: ClassifyRequest, served: Served, limits: Limits) -> ClassifyAnswer:
    """The class of each text: by the model's classifier, or zero-shot by entailment or by a cloze."""
    texts = texts_of(request.inputs, limits)
    if request.labels is None:
        if request.hypothesis is not None:
            raise Refusal(422, "hypothesis goes with labels", param="hypothesis")
        answers = await served.classify(texts)
    else:
        check_labels(request, len(texts), limits)
        answers = await served.call(zero_shot, served, texts, request.labels, request.hypothesis)
    return ClassifyAnswer(served.name, [Classified(**answer) for answer in answers])


def check_labels(request: ClassifyRequest, texts: int, limits: Limits) -> None:
    """Raises Refusal if the labels of a request cannot be chosen from."""
    labels, hypothesis = request.labels, request.hypothesis
    if len(labels) < 2 or len(set(labels)) < len(labels) or not all(word.strip() for word in labels):
        raise Refusal(422, "labels must be two or more different ones, none of them empty", param="labels")
    if len(labels) * texts > limits.max_texts:
        text = f"labels: {len(labels)} labels for {texts} texts are more than {limits.max_texts} questions"
        raise Refusal(413, f"{text}, which is what a request may ask", param="labels")
    if hypothesis is not None and (hypothesis.count(LABEL) != 1 or "{" in hypothesis.replace(LABEL, "")):
        raise Refusal(422, f"hypothesis must have {LABEL} in it once, and no other braces", param="hypothesis")


def zero_shot(served: Served, texts: Sequence[str], labels: Sequence[str], hypothesis: str | None) -> list[JsonObject]:
    """Labels without training: by textual entailment where the model judges it, else by the label's words.

    A decoder reads only what comes before the label, so its sentence ends there.
    """
    model = served.model
    if can_entail(model):
        field = entailment_task(model)[0][0]
        records = [{field: text} for text in texts]
        return list(entail(model, records, labels, hypothesis or f"This text is about {LABEL}."))
    decoder = model.config.architecture == "decoder"
    template = "{text} " + (hypothesis or f"This text is about {LABEL}" + ("" if decoder else "."))
    return list(label(model, Prompt(template, tuple(labels)), [{"text": text} for text in texts]))


# -- entities and answers ---------------------------------------------------------------------------------------------


class Entity(msgspec.Struct):
    """A part of a text: inputs[start:end], in characters."""

    start: int
    end: int
    label: str
    text: str


class Tagged(msgspec.Struct):
    """The entities of a text; of a tagger of all words, such as one of parts of speech, its words."""

    entities: list[Entity] | None
    words_cut: int = 0
    """words at the end that the model did not read"""


class NerAnswer(msgspec.Struct):
    """For each text its entities, in order."""

    model: str
    results: list[Tagged]


async def ner(request: TextsRequest, served: Served, limits: Limits) -> NerAnswer:
    """The entities of each text with their characters."""
    texts = texts_of(request.inputs, limits)
    answers = await served.predict(texts)
    results = [Tagged(entities_of(t, a), a.get("words_cut") or 0) for t, a in zip(texts, answers, strict=True)]
    return NerAnswer(served.name, results)


def entities_of(text: str, answer: JsonObject) -> list[Entity] | None:
    """The entities that a tagger found, or its tagged words; None where its numbers are not finite."""
    if answer.get("tagged") is not None:
        found, end = [], 0
        for word, tag in answer["tagged"]:
            start = text.index(word, end)
            end = start + len(word)
            found.append(Entity(start, end, tag, word))
        return found
    entities = answer.get("entities", answer.get("arguments"))
    return None if entities is None else [Entity(**entity) for entity in entities]


class Asked(msgspec.Struct, forbid_unknown_fields=True):
    """A question and the text that may answer it."""

    question: str
    context: str


class QaRequest(ModelRequest, kw_only=True):
    """A request to /qa: a question with its context, or a list of them in `inputs`."""

    question: str | None = None
    context: str | None = None
    """the text that may answer the question"""
    inputs: list[Asked] | None = None
    """several questions, each with its context"""


class Answered(msgspec.Struct):
    """The answer to a question."""

    answer: str | None
    """context[start:end]; empty if the context has no answer"""
    start: int | None
    end: int | None
    score: float | None
    """logit of the start + logit of the end"""
    probability: float | None
    """among the best answers that were considered"""


class QaAnswer(msgspec.Struct):
    """For each question its answer."""

    model: str
    results: list[Answered]


async def qa(request: QaRequest, served: Served, limits: Limits) -> QaAnswer:
    """The part of a context that answers a question."""
    asked = request.inputs
    if asked is None:
        for name, value in (("question", request.question), ("context", request.context)):
            if value is None:
                raise Refusal(422, f"{name} is missing; give question and context, or inputs", param=name)
        asked = [Asked(request.question, request.context)]
    elif request.question is not None or request.context is not None:
        raise Refusal(422, "give either question and context, or inputs", param="inputs")
    limits.check_texts(len(asked), "inputs")
    for item in asked:
        for name, value in (("question", item.question), ("context", item.context)):
            if not value.strip():
                raise Refusal(422, f"{name} is empty", param=name)
    question, context = task_of(served.model)[0].inputs
    answers = await served.predict([{question: item.question, context: item.context} for item in asked])
    fields = Answered.__struct_fields__
    return QaAnswer(served.name, [Answered(**{name: answer.get(name) for name in fields}) for answer in answers])


ENDPOINTS = (
    Endpoint("/fill-mask", FillMaskRequest, FillMaskAnswer, fill_mask, "fill_mask"),
    Endpoint("/classify", ClassifyRequest, ClassifyAnswer, classify, ("classify", "zero_shot")),
    Endpoint("/ner", TextsRequest, NerAnswer, ner, "tag"),
    Endpoint("/qa", QaRequest, QaAnswer, qa, "qa"),
)
