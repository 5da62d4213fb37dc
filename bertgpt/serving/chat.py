"""/v1/chat/completions as OpenAI's clients ask for it."""

import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType
from starlette.responses import StreamingResponse

from bertgpt.data.tokenizer import Tokenizer
from bertgpt.inference.generate import prompt_ids
from bertgpt.serving.chat_template import PLAIN_STOP, plain_prompt, render
from bertgpt.serving.endpoints import Endpoint
from bertgpt.serving.errors import Refusal
from bertgpt.serving.limits import Limits
from bertgpt.serving.logprobs import name_alternatives, token_texts
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

DEFAULT_NEW_TOKENS = 256
"""of an answer, where the context has room for them"""


class TextPart(msgspec.Struct, forbid_unknown_fields=True):
    """A part of a message; only texts are supported."""

    type: Literal["text"]
    text: str


class ChatMessage(msgspec.Struct, forbid_unknown_fields=True):
    """A message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None
    """ignored"""


class ResponseFormat(msgspec.Struct, forbid_unknown_fields=True):
    """The form of the answer; only text is supported."""

    type: Literal["text"]


class ChatRequest(SamplingRequest, kw_only=True):
    """A request to /v1/chat/completions."""

    messages: list[ChatMessage]
    """the chat so far"""
    max_tokens: Annotated[int, Meta(ge=1, lt=2**31)] | None = None
    """new tokens of each output at most; null: 256 where there is room for them"""
    max_completion_tokens: Annotated[int, Meta(ge=1, lt=2**31)] | None = None
    """the newer name of max_tokens"""
    logprobs: bool | None = False
    """give the log probability of each token"""
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    """and of so many tokens in its place"""
    response_format: ResponseFormat | None = None
    """text"""


class TopLogProb(msgspec.Struct):
    """A token and its log probability."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogProb(TopLogProb):
    """A token of the answer, and tokens in its place."""

    top_logprobs: list[TopLogProb] = []


class ChatLogProbs(msgspec.Struct):
    """Log probabilities of an answer."""

    content: list[TokenLogProb]
    refusal: None = None


class Answer(msgspec.Struct):
    """The message that is answered, or in a stream what is new of it."""

    role: str | UnsetType = UNSET
    content: str | None | UnsetType = UNSET


class ChatChoice(msgspec.Struct):
    """One output."""

    index: int
    message: Answer | UnsetType = UNSET
    delta: Answer | UnsetType = UNSET
    """in a stream"""
    logprobs: ChatLogProbs | None = None
    finish_reason: str | None = None


class ChatCompletion(msgspec.Struct):
    """An answer of /v1/chat/completions, or an event of its stream."""

    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: CompletionUsage | None = None
    object: str = "chat.completion"


async def chat(request: ChatRequest, served: Served, limits: Limits) -> ChatCompletion | StreamingResponse:
    """An answer to the messages of a chat."""
    prompt, stops = await prompt_of(request, served)
    outputs, context = request.n or 1, served.model.config.max_len
    room = context - len(prompt) if served.model.config.architecture == "decoder" else context
    new = request.max_completion_tokens or request.max_tokens or max(min(DEFAULT_NEW_TOKENS, room), 1)
    check_new_tokens(served, limits, new, outputs, "max_tokens")
    top = None if not request.logprobs else request.top_logprobs or 0
    if request.top_logprobs and not request.logprobs:
        raise Refusal(422, "top_logprobs needs logprobs=true", param="top_logprobs")
    decoding = request.decoding(new, outputs)
    pieces = served.generate([prompt], decoding, stops, top)
    head = ChatCompletion(f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), served.name, [])
    if request.stream:
        return await stream_chat(request, served, limits, pieces, head, len(prompt))
    (row,) = await collect(pieces, 1, decoding.num_return_sequences)
    row = row * outputs if len(row) < outputs else row  # greedy search has one output, which stands for all
    for i, output in enumerate(row):
        given = None if top is None else await served.aside(log_probs, served.model.tokenizer, output, top)
        answer = Answer("assistant", output.text)
        head.choices.append(ChatChoice(i, message=answer, logprobs=given, finish_reason=output.finish_reason))
    head.usage = usage(served, len(prompt), sum(len(output.ids) for output in row))
    return head


async def prompt_of(request: ChatRequest, served: Served) -> tuple[list[int], list[str]]:
    """Token ids of the prompt, and the stop strings. Errors: Refusal, UserError."""
    if not request.messages:
        raise Refusal(422, "messages is empty", param="messages")
    messages = [
        {
            "role": "system" if item.role == "developer" else item.role,
            "content": item.content if isinstance(item.content, str) else "".join(part.text for part in item.content),
        }
        for item in request.messages
    ]
    tokenizer = served.model.tokenizer
    if served.chat_template is None:
        ids = await served.aside(prompt_ids, served.model, [plain_prompt(messages)])
        return ids[0], [*request.stops, PLAIN_STOP]
    special = {f"{role}_token": token for role, token in tokenizer.roles.items()}
    text = render(served.chat_template, messages, special)
    ids = await served.aside(tokenizer.encode, [text], parse_special=True)
    return ids[0], request.stops


def log_probs(
    tokenizer: Tokenizer, output: Output, top: int, before: Sequence[int] = (), complete: bool = True
) -> ChatLogProbs:
    """The log probabilities of the tokens of an output. The others: see `token_texts`."""
    texts = token_texts(tokenizer, output.ids, before, complete)
    others = [row[:top] for row in output.alternatives]
    named = name_alternatives(tokenizer, output.ids, texts, others, before)
    rows = zip(texts, output.logprobs, named, strict=True)
    return ChatLogProbs(
        [
            TokenLogProb(
                text, logprob, list(text.encode()), [TopLogProb(n, p, list(n.encode())) for n, p in names.items()]
            )
            for text, logprob, names in rows
        ]
    )


async def stream_chat(
    request: ChatRequest,
    served: Served,
    limits: Limits,
    pieces: AsyncIterator[Piece],
    head: ChatCompletion,
    prompt_tokens: int,
) -> StreamingResponse:
    """The events of a stream."""
    head.object = "chat.completion.chunk"
    made, begun = 0, set()
    before: dict[int, list[int]] = defaultdict(list)
    copies = request.n or 1 if request.temperature == 0 else 1

    def on_piece(piece: Piece) -> Iterator[ChatCompletion]:
        nonlocal made
        made += len(piece.ids)
        given = None
        if request.logprobs:
            output = Output(piece.text, [*piece.ids], [*(piece.logprobs or ())], [*(piece.alternatives or ())])
            earlier, ended = before[piece.output], piece.finish_reason is not None
            given = log_probs(served.model.tokenizer, output, request.top_logprobs or 0, earlier, ended)
            earlier += piece.ids
        for index in range(piece.output, piece.output + copies):
            delta = Answer(content=piece.text) if index in begun else Answer("assistant", piece.text)
            begun.add(index)
            choice = ChatChoice(index, delta=delta, logprobs=given, finish_reason=piece.finish_reason)
            yield msgspec.structs.replace(head, choices=[choice])

    def at_end() -> Iterator[ChatCompletion]:
        counted = usage(served, prompt_tokens, made * copies)
        if request.stream_options is not None and request.stream_options.include_usage:
            yield msgspec.structs.replace(head, choices=[], usage=counted)

    return await stream(pieces, served, limits, on_piece, at_end)


ENDPOINTS = (Endpoint("/v1/chat/completions", ChatRequest, ChatCompletion, chat, "generate"),)
