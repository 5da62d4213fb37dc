"""One loaded model behind asynchronous methods. They compute one after another, in threads of the model's own."""

import asyncio
import contextlib
import functools
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float

from bertgpt.data.offsets import locate_tokens
from bertgpt.inference.class_scores import class_scores, is_cross_encoder, score_pairs
from bertgpt.inference.decoding import Decoding
from bertgpt.inference.embedding import encode_texts, longest_text
from bertgpt.inference.encode import classify, embed_ids, embedder_for, fill_mask
from bertgpt.inference.model import Model
from bertgpt.inference.predict import predict
from bertgpt.serving.capabilities import capabilities
from bertgpt.serving.chat_template import read_chat_template
from bertgpt.serving.decoder import DecoderEngine, DecoderOptions
from bertgpt.serving.errors import Refusal, as_refusal
from bertgpt.serving.logprobs import Scored, score_tokens
from bertgpt.serving.pieces import Piece
from bertgpt.types import JsonObject, UserError

T = TypeVar("T")
NO_LIMIT = 2**31 - 1
Truncate = Literal["no", "end", "start"]
"""what is dropped of a text that is too long"""


class Token(NamedTuple):
    """A token of a text."""

    id: int
    text: str
    """its characters in the text, or its name where it has none"""
    special: bool
    """whether it belongs to the special-token template"""
    start: int | None = None
    stop: int | None = None
    """text[start:stop]; None for special tokens"""


class Served:
    """A model that requests are answered with. Engines replace its methods one by one.

    A coroutine that is cancelled gives back what it holds. Errors: UserError for what the caller can mend, `Refusal`
    for the rest.
    """

    def __init__(self, name: str, model: Model, decoder: DecoderOptions | None = None):
        self.name = name
        self.model = model
        self.can = capabilities(model)
        self.crosses = is_cross_encoder(model)
        self.chat_template = read_chat_template(model)
        self.created = int(time.time())
        self.waiting = 0
        """calls that wait or compute"""
        self.counters: Counter[str] = Counter()
        """what metrics show: see `metrics.OF_MODELS`"""
        self.thread = ThreadPoolExecutor(1, thread_name_prefix=f"bertgpt-{name}")
        self.slow = ThreadPoolExecutor(1, thread_name_prefix=f"bertgpt-{name}-slow")
        """for what may compile, so that other calls do not wait for it"""
        self.decoder = DecoderEngine(model, self.thread, decoder, self.slow) if "generate" in self.can else None

    def explain(self, error: Exception) -> Refusal:
        """The refusal for an error, as clients may read it: they know the model by its name, not by its path."""
        refusal, path = as_refusal(error), re.escape(str(self.model.path))
        refusal.message = re.sub(rf"(?<![\w/.-]){path}(?=[:/\s]|$)", lambda _: self.name, refusal.message)
        return refusal

    async def start(self) -> None:
        """Called once in the event loop before the first request: engines start and compile here."""
        if self.decoder is not None:
            await self.call(self.decoder.warm_up)

    async def stop(self) -> None:
        """Called once after the last request."""
        if self.decoder is not None:
            await self.decoder.drain()
        for pool in (self.thread, self.slow):
            pool.shutdown(wait=True, cancel_futures=True)

    async def call(self, function: Callable[..., T], *args: object, **named: object) -> T:
        """Calls a function in the model's thread. One that has not begun does not if the caller is cancelled."""
        return await self._call(self.thread, functools.partial(function, *args, **named))

    async def call_slow(self, function: Callable[..., T], *args: object, **named: object) -> T:
        """`call` for what may compile. If the caller gives up meanwhile, the program is there for the next one."""
        return await self._call(self.slow, functools.partial(function, *args, **named))

    async def _call(self, pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        self.waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, work)
        finally:
            self.waiting -= 1

    async def aside(self, function: Callable[..., T], *args: object, **named: object) -> T:
        """Calls a function that needs no device, such as a tokenizer, off the event loop."""
        return await self.call(function, *args, **named)

    async def embed(
        self,
        inputs: Sequence[str | list[int]],
        prompt: str | None = None,
        prompt_name: str | None = None,
        normalize: bool | None = None,
        truncate: Truncate = "no",
    ) -> tuple[Float[np.ndarray, "N D"], list[int]]:
        """Vectors of texts, or of token ids as the model reads them, and the number of tokens of each.

        Raises:
          Refusal: 413 if an input is longer than the model reads, unless its end or start may be dropped.
        """
        sequences, skipped = await self.aside(self.encode, inputs, prompt, prompt_name, truncate)
        counts = [len(ids) for ids in sequences]
        self.counters["input_tokens"] += sum(counts)
        return await self.embed_ids(sequences, skipped, normalize), counts

    async def embed_ids(
        self, sequences: Sequence[list[int]], skipped: int = 0, normalize: bool | None = None
    ) -> Float[np.ndarray, "N D"]:
        """Vectors of token ids, special tokens included, of which the first `skipped` are a prompt."""
        return await self.call(embed_ids, self.model, sequences, normalize=normalize, skipped=skipped)

    def encode(
        self,
        inputs: Sequence[str | list[int]],
        prompt: str | None,
        prompt_name: str | None,
        truncate: Truncate,
    ) -> tuple[list[list[int]], int]:
        """Token ids of each input, and how many of their first tokens are a prompt. Errors: see `embed`."""
        embedder = embedder_for(self.model, None)
        texts = [item for item in inputs if isinstance(item, str)]
        limit, words = longest_text(self.model, embedder), embedder.prompt(prompt, prompt_name)
        encoded, skipped = encode_texts(self.model, embedder, texts, words, NO_LIMIT)
        if len(texts) < len(inputs):
            skipped, rows = 0, iter(encoded)
            encoded = [next(rows) if isinstance(item, str) else item for item in inputs]
        for i, (item, ids) in enumerate(zip(inputs, encoded, strict=True)):
            if len(ids) <= limit:
                continue
            if truncate == "no":
                text = f"input {i + 1} has {len(ids)} tokens, and the model {self.name!r} reads {limit} at most"
                raise Refusal(413, f"{text}; truncate drops the rest")
            if isinstance(item, str):
                embedder = embedder._replace(keep_end=embedder.keep_end or truncate == "start")
                ((encoded[i],), _) = encode_texts(self.model, embedder, [item], words)
            else:
                encoded[i] = item[-limit:] if truncate == "start" else item[:limit]
        return encoded, skipped

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

    async def class_scores(
        self, items: Sequence[Sequence[str]], raw: bool = False, truncate: Truncate = "no"
    ) -> tuple[tuple[str, ...], Float[np.ndarray, "N C"]]:
        """Names of the classes, and the probability or the raw score of each for each text or pair of texts."""
        return await self.call(class_scores, self.model, items, raw, truncate=truncate != "no")

    async def score_pairs(self, query: str, texts: Sequence[str], truncate: Truncate = "no") -> Float[np.ndarray, " N"]:
        """How well each text fits the query: a cross-encoder's logit, else the cosine similarity of their vectors."""
        if self.crosses:
            return await self.call(score_pairs, self.model, query, texts, truncate != "no")
        vectors, _ = await self.embed([query, *texts], normalize=True, truncate=truncate)
        return vectors[1:] @ vectors[0]

    async def tokenize(self, texts: Sequence[str], special: bool = True) -> list[list[Token]]:
        """Tokens of each text with the characters they stand for, between special tokens if asked for."""
        return await self.aside(self._tokenize, texts, special)

    def _tokenize(self, texts: Sequence[str], special: bool) -> list[list[Token]]:
        tokenizer = self.model.tokenizer
        before, after = tokenizer.template if special else ([], [])
        found = []
        for text, located in zip(texts, locate_tokens(tokenizer, texts), strict=True):
            names = tokenizer.tokens(located.ids)
            inner = [
                Token(i, text[start:end] or name, False, int(start), int(end))
                for i, name, (start, end) in zip(located.ids, names, located.bounds.tolist(), strict=True)
            ]
            outer = [[Token(i, name, True) for i, name in zip(ids, tokenizer.tokens(ids), strict=True)]
                     for ids in (before, after)]  # fmt: skip
            found.append([*outer[0], *inner, *outer[1]])
        return found

    async def decode(self, rows: Sequence[list[int]], skip_special: bool = True) -> list[str]:
        """The text of token ids."""
        backend = self.model.tokenizer.backend
        return await self.aside(lambda: [backend.decode(ids, skip_special_tokens=skip_special) for ids in rows])

    async def score(self, rows: Sequence[Sequence[int]], top: int) -> list[Scored]:
        """Log probabilities of the tokens of each row after its first one, as a decoder reads them."""
        return await self.call_slow(lambda: [score_tokens(self.model, row[:1], row[1:], top) for row in rows])

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
          stop: special tokens or strings that end a text, which ends before them.
          logprobs: None: no log probabilities; else how many alternatives of each token to name as well.
        """
        if self.decoder is None:
            raise UserError(f"{self.name}: generates no text")
        self.waiting += 1
        try:
            async with contextlib.aclosing(self.decoder.generate(prompts, decoding, stop, logprobs)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            self.waiting -= 1
