"""/v1/completions as OpenAI's clients ask for it."""

import itertools
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.responses import StreamingResponse

from bertgpt.data.offsets import locate_tokens
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.inference.generate import prompt_ids
from bertgpt.serving.endpoints import Endpoint
from bertgpt.serving.errors import Refusal
from bertgpt.serving.limits import Limits
from bertgpt.serving.logprobs import Scored, name_alternatives, token_texts
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
    prompts, texts = await prompts_of(request, served, limits)
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
    top, echoed = request.logprobs, [None] * len(prompts)
    if request.echo and top is not None:
        scored = await served.score(prompts, top)
        rows = zip(texts, prompts, scored, strict=True)
        echoed = await served.aside(lambda: [prompt_log_probs(served, *row, top) for row in rows])
    for number, output in ((i, output) for i, row in enumerate(found) for output in row):
        given = None if top is None else await served.aside(log_probs, tokenizer, output, top)
        choice = Choice(output.text, len(head.choices), given, output.finish_reason)
        if request.echo:
            put_before(choice, texts[number], echoed[number])
        head.choices.append(choice)
    made = sum(len(output.ids) for row in found for output in row)
    return msgspec.structs.replace(head, usage=usage(served, prompt_tokens, made))


async def prompts_of(request: CompletionRequest, served: Served, limits: Limits) -> tuple[list[list[int]], list[str]]:
    """Token ids and texts of the prompts. Errors: Refusal."""
    given = texts_or_ids(request.prompt, served, limits, "prompt")
    if isinstance(given[0], str):
        ids, texts = await served.aside(prompt_ids, served.model, given), given
    else:
        decode = served.model.tokenizer.decode
        ids, texts = given, await served.aside(lambda: [decode(row) for row in given]) if request.echo else []
    for number, row in enumerate(ids, start=1):  # those that nothing is generated for are only scored
        if request.max_tokens == 0 and not 0 < len(row) <= served.model.config.max_len:
            text = f"prompt {number} has {len(row)} tokens; it must have 1 to {served.model.config.max_len}"
            raise Refusal(400, text, param="prompt")
    return ids, texts


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


def log_probs(
    tokenizer: Tokenizer,
    output: Output,
    top: int,
    offset: int = 0,
    before: Sequence[int] = (),
    complete: bool = True,
) -> LogProbs:
    """The log probabilities of tokens whose text begins at `offset`. The others: see `token_texts`."""
    texts = token_texts(tokenizer, output.ids, before, complete)
    names = name_alternatives(tokenizer, output.ids, texts, output.alternatives, before) if top else None
    return LogProbs(texts, list(output.logprobs), names, offsets_of(texts, offset))


def offsets_of(texts: Sequence[str], offset: int = 0) -> list[int]:
    """Where each of several texts begins, one after another."""
    return list(itertools.accumulate(map(len, texts), initial=offset))[: len(texts)]


def prompt_log_probs(served: Served, text: str, prompt: Sequence[int], scored: Scored, top: int) -> LogProbs:
    """The log probabilities of the tokens of a prompt after its first one."""
    tokenizer = served.model.tokenizer
    (located,) = locate_tokens(tokenizer, [text], parse_special=True)
    before, _ = tokenizer.template
    if [*before, *located.ids] == [*prompt]:
        # White space, which is in no token of some tokenizers, goes with the token after it.
        ends = itertools.accumulate((int(end) for _, end in located.bounds[:-1]), max, initial=0)
        bounds = [0] * len(before) + [*ends, len(text)]
        texts = [text[a:b] for a, b in itertools.pairwise(bounds)]
    else:  # given as ids
        texts = token_texts(tokenizer, prompt)
    names = None
    if top:
        names = [None, *name_alternatives(tokenizer, prompt[1:], texts[1:], scored.alternatives, prompt[:1])]
    return LogProbs(texts, [None, *scored.logprobs], names, offsets_of(texts))


def put_before(choice: Choice, text: str, prompt: LogProbs | None) -> None:
    """Puts a prompt before the text of a choice, and its log probabilities before the others."""
    own = choice.logprobs
    if own is not None and prompt is not None:
        choice.logprobs = LogProbs(
            prompt.tokens + own.tokens,
            prompt.token_logprobs + own.token_logprobs,
            None if prompt.top_logprobs is None else prompt.top_logprobs + (own.top_logprobs or []),
            prompt.text_offset + [len(text) + start for start in own.text_offset],
        )
    choice.text = text + choice.text


async def stream_completion(
    request: CompletionRequest,
    served: Served,
    limits: Limits,
    pieces: AsyncIterator[Piece],
    head: Completion,
    prompt_tokens: int,
) -> StreamingResponse:
    """The events of a stream."""
    tokenizer, made = served.model.tokenizer, 0
    before: dict[tuple[int, int], list[int]] = defaultdict(list)
    offsets: Counter[tuple[int, int]] = Counter()
    outputs = request.n or 1
    copies = outputs if request.temperature == 0 else 1

    def on_piece(piece: Piece) -> Iterator[Completion]:
        nonlocal made
        made += len(piece.ids)
        given = None
        key = (piece.prompt, piece.output)
        if request.logprobs is not None:
            output = Output(piece.text, [*piece.ids], [*(piece.logprobs or ())], [*(piece.alternatives or ())])
            ended = piece.finish_reason is not None
            given = log_probs(tokenizer, output, request.logprobs, offsets[key], before[key], ended)
            offsets[key] += sum(map(len, given.tokens))
            before[key] += piece.ids
        for copy in range(copies):
            index = piece.prompt * outputs + piece.output + copy
            yield msgspec.structs.replace(head, choices=[Choice(piece.text, index, given, piece.finish_reason)])

    def at_end() -> Iterator[Completion]:
        counted = usage(served, prompt_tokens, made * copies)
        if request.stream_options is not None and request.stream_options.include_usage:
            yield msgspec.structs.replace(head, usage=counted)

    return await stream(pieces, served, limits, on_piece, at_end)


ENDPOINTS = (Endpoint("/v1/completions", CompletionRequest, Completion, completions, "generate"),)
