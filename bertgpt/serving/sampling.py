"""What completions and chats have in common: settings of sampling, outputs, usage, server-sent events."""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Annotated

import msgspec
import orjson
from msgspec import Meta
from starlette.responses import StreamingResponse

from bertgpt.inference.decoding import Decoding
from bertgpt.serving.body import plain
from bertgpt.serving.endpoints import ModelRequest
from bertgpt.serving.errors import Refusal, error_body
from bertgpt.serving.limits import Limits
from bertgpt.serving.logprobs import Alternative
from bertgpt.serving.pieces import Piece
from bertgpt.serving.served import Served
from bertgpt.types import UserError

log = logging.getLogger(__name__)


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """What a stream holds."""

    include_usage: bool = False
    """a last event with the numbers of tokens"""
    include_obfuscation: bool = False
    """ignored"""


class SamplingRequest(ModelRequest, kw_only=True):
    """Settings of generation: OpenAI's, and further ones of `Decoding`."""

    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    """outputs of each prompt"""
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    """0: greedy search; null: 1"""
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    """sample from the most probable tokens with this probability together"""
    top_k: Annotated[int, Meta(ge=1, lt=2**31)] | None = None
    """sample from so many tokens"""
    min_p: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """sample from tokens with this fraction of the highest probability"""
    repetition_penalty: Annotated[float, Meta(gt=0, le=100)] = 1.0
    """divide logits of earlier tokens by this"""
    no_repeat_ngram_size: Annotated[int, Meta(ge=0, le=32)] = 0
    """no n-gram of this size occurs twice"""
    stop: str | list[str] | None = None
    """strings that end a text, which ends before them"""
    seed: int | None = None
    """of sampling; null: another one each time"""
    stream: bool | None = False
    """answer with server-sent events"""
    stream_options: StreamOptions | None = None
    """settings of the stream"""
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    """must be 0"""
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    """must be 0"""
    logit_bias: dict[str, float] | None = None
    """must be empty"""
    user: str | None = None
    """ignored"""

    def decoding(self, max_new_tokens: int, outputs: int) -> Decoding:
        """How tokens are chosen. Greedy search has one output, which stands for all.

        Raises:
          Refusal: a setting is not supported.
        """
        for name, value in (
            ("presence_penalty", self.presence_penalty),
            ("frequency_penalty", self.frequency_penalty),
            ("logit_bias", self.logit_bias),
        ):
            if value:
                raise Refusal(400, f"{name} is not supported", param=name)
        temperature = 1.0 if self.temperature is None else self.temperature
        seed = secrets.randbits(32) if self.seed is None else self.seed % 2**32
        return Decoding(
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=self.top_k,
            top_p=1.0 if self.top_p is None else self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            no_repeat_ngram_size=self.no_repeat_ngram_size,
            num_return_sequences=outputs if temperature else 1,
            seed=seed,
        )

    @property
    def stops(self) -> list[str]:
        """The stop strings. Errors: Refusal."""
        found = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(found) > 16 or not all(0 < len(text) <= 1000 for text in found):
            raise Refusal(422, "stop must be at most 16 texts of 1 to 1000 characters", param="stop")
        return found


class CompletionUsage(msgspec.Struct):
    """Numbers of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


def usage(served: Served, prompt_tokens: int, completion_tokens: int) -> CompletionUsage:
    """The numbers and their sum, which are counted."""
    served.counters["input_tokens"] += prompt_tokens
    served.counters["output_tokens"] += completion_tokens
    return CompletionUsage(prompt_tokens, completion_tokens, prompt_tokens + completion_tokens)


class Output(msgspec.Struct):
    """One output, put together from its pieces."""

    text: str = ""
    ids: list[int] = []
    logprobs: list[float] = []
    alternatives: list[tuple[Alternative, ...]] = []
    finish_reason: str = "length"

    def add(self, piece: Piece) -> None:
        """Appends a piece."""
        self.text += piece.text
        self.ids += piece.ids
        self.logprobs += piece.logprobs or ()
        self.alternatives += piece.alternatives or ()
        self.finish_reason = piece.finish_reason or self.finish_reason


async def collect(pieces: AsyncIterator[Piece], prompts: int, outputs: int) -> list[list[Output]]:
    """The outputs of each prompt."""
    found = [[Output() for _ in range(outputs)] for _ in range(prompts)]
    async with contextlib.aclosing(pieces):
        async for piece in pieces:
            found[piece.prompt][piece.output].add(piece)
    return found


def check_new_tokens(served: Served, limits: Limits, new: int, sequences: int, param: str) -> None:
    """Raises Refusal if a request asks for too many tokens."""
    if new * sequences > limits.max_new_tokens:
        text = f"{sequences} outputs of {new} tokens are more than the {limits.max_new_tokens} tokens"
        raise Refusal(422, f"{text} that a request may ask for", param=param)
    if served.model.config.architecture == "decoder" and new > served.model.config.max_len:
        raise UserError(f"{param}={new} exceeds the model's context of {served.model.config.max_len} tokens")


async def stream(
    pieces: AsyncIterator[Piece],
    served: Served,
    limits: Limits,
    on_piece: Callable[[Piece], Iterable[object]],
    at_end: Callable[[], Iterable[object]],
) -> StreamingResponse:
    """Server-sent events for pieces, the first of which is waited for, so that mistakes get a status of their own.

    Args:
      pieces: from `Served.generate`.
      served: the model.
      limits: the timeout is of the whole stream.
      on_piece: the events for a piece.
      at_end: the events after the last one.
    """
    end = time.monotonic() + limits.timeout
    first = await anext(pieces, None)

    async def events() -> AsyncIterator[bytes]:
        piece = first
        async with contextlib.aclosing(pieces):
            try:
                while piece is not None:
                    for event in on_piece(piece):
                        yield _event(event)
                    piece = await asyncio.wait_for(anext(pieces, None), max(end - time.monotonic(), 0.001))
                for event in at_end():
                    yield _event(event)
            except Exception as error:  # the status has been sent already
                if not isinstance(error, Refusal | UserError | TimeoutError):
                    log.exception("a stream failed")
                yield b"data: " + error_body(served.explain(error)) + b"\n\n"
        yield b"data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


def _event(content: object) -> bytes:
    return b"data: " + orjson.dumps(content, default=plain) + b"\n\n"
