"""Texts from texts: summaries and translations, by runs of such tasks and by models of the T5 family."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from bertgpt.inference.generate import prompt_ids
from bertgpt.inference.predict import task_decoding
from bertgpt.serving.endpoints import Endpoint
from bertgpt.serving.errors import Refusal
from bertgpt.serving.limits import Limits
from bertgpt.serving.sampling import check_new_tokens, collect
from bertgpt.serving.served import Served
from bertgpt.serving.tasks import TextsRequest
from bertgpt.serving.tei import texts_of
from bertgpt.types import GenerationTask


class RewriteRequest(TextsRequest, kw_only=True):
    """What requests for texts from texts have in common."""

    max_new_tokens: Annotated[int, Meta(ge=1)] | None = None
    """tokens of a text at most; null: as the model was configured"""
    num_beams: Annotated[int, Meta(ge=1, le=32)] | None = None
    """beams of beam search; null: as the model was configured"""


class SummarizeRequest(RewriteRequest, kw_only=True):
    """A request to /summarize."""


class TranslateRequest(RewriteRequest, kw_only=True):
    """A request to /translate."""

    source: str | None = None
    """name of the language of the text, such as English, for models that read “translate English to German: ”"""
    target: str | None = None
    """name of the language to translate into; given with `source`"""


class Written(msgspec.Struct):
    """A text that was generated."""

    text: str | None


class RewriteAnswer(msgspec.Struct):
    """For each text the one that was made of it."""

    model: str
    results: list[Written]


async def summarize(request: SummarizeRequest, served: Served, limits: Limits) -> RewriteAnswer:
    """A summary of each text."""
    return await rewrite(request, served, limits, "summarize: ")


async def translate(request: TranslateRequest, served: Served, limits: Limits) -> RewriteAnswer:
    """A translation of each text."""
    if (request.source is None) != (request.target is None):
        name = "target" if request.target is None else "source"
        raise Refusal(422, f"{name} is missing; source and target go together", param=name)
    if request.source is None:
        return await rewrite(request, served, limits, "")
    if served.model.experiment is not None:
        message = f"source: the model {served.name!r} was trained on one pair of languages; leave source and target out"
        raise Refusal(422, message, param="source")
    return await rewrite(request, served, limits, f"translate {request.source} to {request.target}: ")


async def rewrite(request: RewriteRequest, served: Served, limits: Limits, prefix: str) -> RewriteAnswer:
    """The texts that a model makes of texts.

    Args:
      request: the texts, and how to generate.
      served: the model.
      limits: bounds.
      prefix: what T5 reads before a text (Raffel et al. 2020 appendix D); a run puts its own there.
    """
    texts = texts_of(request.inputs, limits)
    for number, text in enumerate(texts):
        if not text.strip():
            raise Refusal(422, f"inputs: text {number} is empty", param="inputs")
    model, run = served.model, served.model.experiment
    if run is not None and not isinstance(run.data, GenerationTask):
        if model.config.architecture == "encoder":  # selects sentences
            if request.max_new_tokens is not None or request.num_beams is not None:
                raise Refusal(422, f"max_new_tokens and num_beams: the model {served.name!r} selects sentences")
            answers = await served.predict(texts)
            return RewriteAnswer(served.name, [Written(answer["summary"]) for answer in answers])
        run = None  # pretrained
    decoding = model.decoding if run is None else task_decoding(model)
    asked = {"max_new_tokens": request.max_new_tokens, "num_beams": request.num_beams}
    given = {name: value for name, value in asked.items() if value is not None}
    decoding = dataclasses.replace(decoding, num_return_sequences=1, **given)
    check_new_tokens(served, limits, decoding.max_new_tokens, len(texts) * decoding.num_beams, "max_new_tokens")
    prompts = await served.aside(prompts_for, served, texts, prefix if run is None else None)
    outputs = await collect(served.generate(prompts, decoding), len(prompts), 1)
    return RewriteAnswer(served.name, [Written(group[0].text) for group in outputs])


def prompts_for(served: Served, texts: Sequence[str], prefix: str | None) -> list[list[int]]:
    """Token ids of what the model reads: each text after a prefix, or, with None, as a run's task has it.

    Raises:
      Refusal: a text is longer than an encoder reads.
    """
    model = served.model
    if prefix is None:
        data = model.run.data
        return data.prompts_of([{data.inputs[0]: text} for text in texts], model.tokenizer)
    prompts = prompt_ids(model, [prefix + text for text in texts])
    for number, ids in enumerate(prompts):
        if len(ids) > model.config.max_len:
            text = f"inputs: text {number} has {len(ids)} tokens, and the model reads {model.config.max_len} at most"
            raise Refusal(413, text, param="inputs")
    return prompts


ENDPOINTS = (
    Endpoint("/summarize", SummarizeRequest, RewriteAnswer, summarize, "summarize"),
    Endpoint("/translate", TranslateRequest, RewriteAnswer, translate, "translate"),
)
