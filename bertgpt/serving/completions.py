"""/v1/completions as OpenAI's clients ask for it."""

import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.responses import StreamingResponse

from bertgpt.data.tokenizer import Tokenizer
from bertgpt.inference.generate import prompt_ids
from bertgpt.serving.endpoints import Endpoint
from bertgpt.serving.errors import Refusal
from bertgpt.serving.limits import Limits
from bertgpt.serving.logprobs import Alternative, Scored, token_name, token_texts
from bertgpt.serving.pieces import Piece
from bertgpt.serving.sampling import (
    CompletionUsage,
    Output,
    SamplingRequest,
    check_new_tokens,
    collect,
    stream,
    usage,
)
from bertgpt.serving.served import Served
from bertgpt.serving.tei import Id, texts_or_ids


class CompletionRequest(SamplingRequest, kw_only=True):
    """A request to /v1/completions."""

    prompt: str | list[str | Id | list[Id]]
    """a text, texts, token ids, or lists of token ids"""
    max_tokens: Annotated[int, Meta(ge=0, lt=2**31)] | None = None
    """new tokens of each output at most; null: 16. 0, with `echo`, only scores the prompt"""
    echo: bool | None = False
    """put the prompt before the text; decoders only"""
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    """give the log probability of each token, and of so many tokens in its place"""
    best_of: Annotated[int, Meta(ge=1, le=128)] | None = None
    """generate so many outputs and return the `n` of the highest log probability per token; null: `n`"""
    suffix: str | None = None
    """not supported"""


class LogProbs(msgspec.Struct):
    """Log probabilities of the tokens of a text."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class Choice(msgspec.Struct):
    """One output."""

    text: str
    index: int
    logprobs: LogProbs | None
    finish_reason: str | None


class Completion(msgspec.Struct):
    """An answer of /v1/completions, or an event of its stream."""

    id: str
    created: int
    model: str
    choices: list[Choice]
    usage: CompletionUsage | None = None
    object: str = "text_completion"


async def completions(request: CompletionRequest, served: Served, limits: Limits) -> Completion | StreamingResponse:
    """Texts that continue prompts (decoders) or answer them (encoder–decoders)."""
    prompts, texts = prompts_of(request, served, limits)
    outputs, new = request.n or 1, 16 if request.max_tokens is None else request.max_tokens
    sampled = max(outputs, request.best_of or 1)
    check(request, served, new, outputs)
    check_new_tokens(served, limits, new, sampled * len(prompts), "max_tokens")
    head = Completion(f"cmpl-{uuid.uuid4().hex}", int(time.time()), served.name, [])
    tokenizer, prompt_tokens = served.model.tokenizer, sum(map(len, prompts))
    if new == 0:
        found = [[Output(finish_reason="length") for _ in range(outputs)] for _ in prompts]
    else:
        decoding = request.decoding(new, sampled)
        # The ranking of best_of needs log probabilities too.
        top = 0 if request.logprobs is None and sampled > outputs else request.logprobs
        pieces = served.generate(prompts, decoding, request.stops, top)
        if request.stream:
            return await stream_completion(request, served, limits, pieces, head, prompt_tokens)
        found = await collect(pieces, len(prompts), decoding.num_return_sequences)
        # Greedy search has one output, which stands for all.
        found = [row * outputs if len(row) < outputs else best(row, outputs) for row in found]
    scored: list[Scored] | None = None
    if request.echo and request.logprobs is not None:
        scored = await served.score(prompts, request.logprobs)
    for number, output in ((i, output) for i, row in enumerate(found) for output in row):
        given = None if request.logprobs is None else log_probs(tokenizer, output, request.logprobs)
        choice = Choice(output.text, len(head.choices), given, output.finish_reason)
        if request.echo:
            put_before(choice, texts[number], prompts[number], scored and scored[number], request, tokenizer)
        head.choices.append(choice)
    made = sum(len(output.ids) for row in found for output in row)
    return msgspec.structs.replace(head, usage=usage(served, prompt_tokens, made))


def prompts_of(request: CompletionRequest, served: Served, limits: Limits) -> tuple[list[list[int]], list[str]]:
    """Token ids and texts of the prompts. Errors: Refusal."""
    given = texts_or_ids(request.prompt, served, limits, "prompt")
    if isinstance(given[0], str):
        return prompt_ids(served.model, given), given
    return given, [served.model.tokenizer.decode(ids) for ids in given] if request.echo else [""] * len(given)


def check(request: CompletionRequest, served: Served, new: int, outputs: int) -> None:
    """Raises Refusal if settings do not go together."""
    if request.suffix:
        raise Refusal(400, "suffix is not supported", param="suffix")
    if request.best_of is not None and request.best_of < outputs:
        raise Refusal(422, f"best_of={request.best_of} is less than n={outputs}", param="best_of")
    if request.stream and request.best_of not in (None, outputs):
        raise Refusal(422, "a stream cannot hold the best of several outputs", param="best_of")
    if request.stream and request.echo:
        raise Refusal(422, "a stream cannot hold the prompt", param="echo")
    if request.echo and served.model.config.architecture != "decoder":
        raise Refusal(422, f"echo needs a decoder, which {served.name!r} is not", param="echo")
    if new == 0 and not request.echo:
        raise Refusal(422, "max_tokens=0 has a use with echo only", param="max_tokens")


def best(row: Sequence[Output], count: int) -> list[Output]:
    """The outputs with the highest log probability per token, if there are more."""
    if len(row) == count:
        return list(row)
    return sorted(row, key=lambda output: -sum(output.logprobs) / max(len(output.logprobs), 1))[:count]


def log_probs(tokenizer: Tokenizer, output: Output, top: int, offset: int = 0) -> LogProbs:
    """The log probabilities of an output whose text begins at `offset`."""
    texts = list(token_texts(tokenizer, output.ids))
    offsets = [offset + sum(map(len, texts[:i])) for i in range(len(texts))]
    return LogProbs(texts, list(output.logprobs), top_of(tokenizer, output.alternatives, top), offsets)


def top_of(
    tokenizer: Tokenizer, alternatives: Sequence[Sequence[Alternative]], top: int
) -> list[dict[str, float] | None] | None:
    """For each token: text → log probability of the most probable tokens in its place."""
    if not top:
        return None
    return [{token_name(tokenizer, item.id): item.logprob for item in row[:top]} for row in alternatives]


def put_before(
    choice: Choice,
    text: str,
    prompt: Sequence[int],
    scored: Scored | None,
    request: CompletionRequest,
    tokenizer: Tokenizer,
) -> None:
    """Puts the prompt before the text of a choice, and its log probabilities before the others."""
    choice.text = text + choice.text
    if choice.logprobs is None or scored is None:
        return
    texts = list(token_texts(tokenizer, prompt))
    top = top_of(tokenizer, scored.alternatives, request.logprobs or 0)
    own, rest = choice.logprobs, len(text)
    choice.logprobs = LogProbs(
        texts + own.tokens,
        [None, *scored.logprobs, *own.token_logprobs],
        None if top is None else [None, *top, *(own.top_logprobs or [])],
        [sum(map(len, texts[:i])) for i in range(len(texts))] + [rest + start for start in own.text_offset],
    )


async def stream_completion(
    request: CompletionRequest,
    served: Served,
    limits: Limits,
    pieces: AsyncIterator[Piece],
    head: Completion,
    prompt_tokens: int,
) -> StreamingResponse:
    """The events of a stream."""
    tokenizer, made, offsets = served.model.tokenizer, 0, {}
    outputs = request.n or 1
    copies = outputs if request.temperature == 0 else 1

    def on_piece(piece: Piece) -> Iterator[Completion]:
        nonlocal made
        made += len(piece.ids)
        given = None
        key = (piece.prompt, piece.output)
        if request.logprobs is not None:
            output = Output(piece.text, [*piece.ids], [*(piece.logprobs or ())], [*(piece.alternatives or ())])
            given = log_probs(tokenizer, output, request.logprobs, offsets.get(key, 0))
        offsets[key] = offsets.get(key, 0) + len(piece.text)
        for copy in range(copies):
            index = piece.prompt * outputs + piece.output + copy
            yield msgspec.structs.replace(head, choices=[Choice(piece.text, index, given, piece.finish_reason)])

    def at_end() -> Iterator[Completion]:
        counted = usage(served, prompt_tokens, made * copies)
        if request.stream_options is not None and request.stream_options.include_usage:
            yield msgspec.structs.replace(head, usage=counted)

    return await stream(pieces, limits, on_piece, at_end)


ENDPOINTS = (Endpoint("/v1/completions", CompletionRequest, Completion, completions, "generate"),)
