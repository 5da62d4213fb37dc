"""One loaded model behind asynchronous methods. They compute one after another, in a thread of the model's own."""

import asyncio
import functools
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float

from bertgpt.inference.decoding import Decoding
from bertgpt.inference.embedding import encode_texts
from bertgpt.inference.encode import classify, embed_ids, embedder_for, fill_mask
from bertgpt.inference.generate import check_prompts, cut, generate_ids, stops_of
from bertgpt.inference.model import Model
from bertgpt.inference.predict import predict
from bertgpt.serving.capabilities import capabilities
from bertgpt.types import JsonObject, UserError

T = TypeVar("T")


class Alternative(NamedTuple):
    """A token that could stand in place of a generated one."""

    id: int
    logprob: float


class Piece(NamedTuple):
    """A part of one generated output."""

    prompt: int
    """index of the prompt"""
    output: int
    """index of the output of this prompt"""
    text: str
    """new text; may be empty"""
    ids: tuple[int, ...] = ()
    """new tokens, without the stop token"""
    logprobs: tuple[float, ...] | None = None
    """log probability of each of them, if asked for"""
    alternatives: tuple[tuple[Alternative, ...], ...] | None = None
    """the most probable tokens in place of each of them, most probable first, if asked for"""
    finish_reason: str | None = None
    """of the last piece of an output: "stop" or "length" """


class Served:
    """A model that requests are answered with. Engines replace its methods one by one.

    A coroutine that is cancelled gives back what it holds. Errors: UserError for what the caller can mend, `Refusal`
    for the rest.
    """

    def __init__(self, name: str, model: Model):
        self.name = name
        self.model = model
        self.can = capabilities(model)
        self.created = int(time.time())
        self.waiting = 0
        """calls that wait or compute"""
        self.thread = ThreadPoolExecutor(1, thread_name_prefix=f"bertgpt-{name}")

    async def start(self) -> None:
        """Called once in the event loop before the first request: engines start and compile here."""

    async def stop(self) -> None:
        """Called once after the last request."""
        self.thread.shutdown(wait=True, cancel_futures=True)

    async def call(self, function: Callable[..., T], *args: object, **named: object) -> T:
        """Calls a function in the model's thread. One that has not begun does not if the caller is cancelled."""
        self.waiting += 1
        try:
            work = functools.partial(function, *args, **named)
            return await asyncio.get_running_loop().run_in_executor(self.thread, work)
        finally:
            self.waiting -= 1

    async def embed(
        self,
        inputs: Sequence[str | list[int]],
        prompt: str | None = None,
        prompt_name: str | None = None,
        normalize: bool | None = None,
    ) -> tuple[Float[np.ndarray, "N D"], list[int]]:
        """Vectors of texts, or of token ids as the model reads them, and the number of tokens of each."""
        return await self.call(self._embed, inputs, prompt, prompt_name, normalize)

    def _embed(
        self, inputs: Sequence[str | list[int]], prompt: str | None, prompt_name: str | None, normalize: bool | None
    ) -> tuple[Float[np.ndarray, "N D"], list[int]]:
        embedder = embedder_for(self.model, None)
        texts = [item for item in inputs if isinstance(item, str)]
        encoded, skipped = encode_texts(self.model, embedder, texts, embedder.prompt(prompt, prompt_name))
        if len(texts) < len(inputs):
            skipped, rows = 0, iter(encoded)
            encoded = [next(rows) if isinstance(item, str) else item for item in inputs]
        return embed_ids(self.model, encoded, normalize=normalize, skipped=skipped), [len(ids) for ids in encoded]

    async def fill_mask(self, texts: Sequence[str], top_k: int) -> list[list[dict[str, float]]]:
        """For each text and mask: token → probability."""
        return await self.call(lambda: list(fill_mask(self.model, texts, top_k)))

    async def classify(self, texts: Sequence[str]) -> list[JsonObject]:
        """Labels with probabilities, of a run or of a Hugging Face classifier."""
        run = self.model.experiment is not None
        return await self.call(lambda: list((predict if run else classify)(self.model, texts)))

    async def predict(self, records: Sequence[str | JsonObject]) -> list[JsonObject]:
        """What a run's own task says of records."""
        return await self.call(lambda: list(predict(self.model, records)))

    async def score_pairs(self, query: str, texts: Sequence[str]) -> Float[np.ndarray, " N"]:
        """How well each text fits the query: the cosine similarity of their vectors."""
        vectors, _ = await self.embed([query, *texts], normalize=True)
        return vectors[1:] @ vectors[0]

    async def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text in the tokenizer's template."""
        tokenizer = self.model.tokenizer
        if tokenizer is None:
            raise UserError(f"{self.name}: has no tokenizer")
        before, after = tokenizer.template
        encoded = await self.call(tokenizer.encode, list(texts))
        return [[*before, *ids, *after] for ids in encoded]

    async def generate(
        self,
        prompts: Sequence[Sequence[int]],
        decoding: Decoding,
        stop: Sequence[str] = (),
        logprobs: int | None = None,
    ) -> AsyncIterator[Piece]:
        """Pieces of the outputs of all prompts, as they are generated.

        Args:
          prompts: token ids.
          decoding: how to choose tokens.
          stop: strings that end a text, which ends before them.
          logprobs: None: no log probabilities; else how many alternatives of each token to name as well.
        """
        check_prompts(self.model.config, prompts, decoding)
        if logprobs is not None:
            raise UserError(f"{self.name}: gives no log probabilities")
        loop, pieces, gone = asyncio.get_running_loop(), asyncio.Queue(), threading.Event()

        def send(piece: Piece) -> None:
            if not gone.is_set():
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

        work = asyncio.ensure_future(self.call(self._generate, prompts, decoding, stop, send, gone))
        work.add_done_callback(lambda _: pieces.put_nowait(None))
        try:
            while (piece := await pieces.get()) is not None:
                yield piece
            await work
        finally:
            gone.set()
            work.cancel()

    def _generate(
        self,
        prompts: Sequence[Sequence[int]],
        decoding: Decoding,
        stop: Sequence[str],
        send: Callable[[Piece], None],
        gone: threading.Event,
    ) -> None:
        model, tokenizer = self.model, self.model.tokenizer
        stops, returns = stops_of(tokenizer, (), model.stop_ids), decoding.num_return_sequences
        sent: dict[int, tuple[int, int]] = {}  # row → characters and tokens that were sent

        def pass_on(row: int, ids: Sequence[int], reason: str | None) -> bool:
            """Sends what is new of an output. Returns whether it contains a stop string."""
            text = tokenizer.decode(list(ids))
            kept = cut(text, stop)
            end = len(kept)
            if reason is None and kept == text:  # what may begin a stop string or is half a character is held back
                end = min(end - max([0, *(len(s) - 1 for s in stop)]), len(kept.rstrip("\ufffd")))
            characters, tokens = sent.get(row, (0, 0))
            end, ended = max(end, characters), reason or ("stop" if kept != text else None)
            if end > characters or ended:
                new = tuple(ids[tokens:])
                send(Piece(row // returns, row % returns, kept[characters:end], new, finish_reason=ended))
                sent[row] = (end, len(ids))
            return kept != text

        ended: set[int] = set()

        def watch(rows: list[list[int]], done: Sequence[bool]) -> list[bool]:
            for row, ids in enumerate(rows):
                if row not in ended and not done[row] and pass_on(row, ids, None):
                    ended.add(row)
            return [row in ended or gone.is_set() for row in range(len(rows))]

        watched = None if decoding.num_beams > 1 else watch
        outputs = generate_ids(model.apply, model.params, model.config, prompts, decoding, stops, watched)
        for row, output in enumerate(item for group in outputs for item in group):
            if row not in ended:
                pass_on(row, output.ids, "stop" if output.ended else "length")
