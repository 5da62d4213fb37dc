"""Dynamic batching for encoders, and for decoders whose states are pooled.

Requests wait in a bounded queue. While the device is busy the queue fills; when it is free, a thread takes what waits,
packs it into rows (segment ids and positions keep texts apart) and runs one of a few programs, all compiled before the
first request. A request that finds the device idle runs at once. What a text gives does not depend on its batch.
"""

import asyncio
import logging
import math
import os
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from bertgpt.convert.sentence_transformers import Embedder, Normalize
from bertgpt.inference.embedding import longest_text, own_embedder, run_modules
from bertgpt.inference.encode import embedder_for, is_encoder, num_classes
from bertgpt.inference.model import Model
from bertgpt.serving.errors import Refusal
from bertgpt.serving.queue import Batch, Kind, QueueFull, Request, RequestQueue, Shapes, Text, fill, segments_of
from bertgpt.types import Inputs, Params, UserError

log = logging.getLogger(__name__)

BUDGETS = {"cpu": 512}
"""tokens of a batch by platform. On two CPU cores 256 tokens already reach 97 % of the rate of 512"""
OTHER_BUDGET = 8192
MASKS = 16
"""masked positions that are projected to the vocabulary at once"""
MOST_TOKENS = 100
"""largest top_k"""


class Program(NamedTuple):
    """A compiled function and its first arguments."""

    function: Callable[..., Array]
    params: Params

    def __call__(self, *arguments: Array | np.ndarray) -> Array | tuple[Array, Array]:
        return self.function(self.params, *arguments)


class EncoderEngine:
    """Vectors, class logits and masked-token predictions for many clients at once.

    Errors of its methods: `UserError` for what a caller can mend; `Refusal` with 429 if the queue is full, 503 if the
    engine is stopping, 504 after `timeout` seconds. A cancelled call leaves the queue.
    """

    def __init__(
        self,
        model: Model,
        budget: int | None = None,
        max_requests: int = 256,
        max_tokens: int = 2**18,
        timeout: float = 60.0,
    ):
        """An engine; `warm_up` and `start` it before use.

        Args:
          model: from `bertgpt.load`.
          budget: tokens of a batch; None: 512 on CPUs, 8,192 on accelerators.
          max_requests: requests that may wait.
          max_tokens: tokens that may wait.
          timeout: seconds that a call may take.
        """
        self.model, self.timeout = model._replace(params=jax.device_put(model.params)), timeout
        self.embedder = embedder_of(model)
        self.kinds = kinds_of(model)
        longest = longest_text(model, self.embedder) if self.kinds == ("vectors",) else model.config.max_len
        platform = jax.tree.leaves(self.model.params)[0].devices().pop().platform
        self.shapes = Shapes(longest, budget or BUDGETS.get(platform, OTHER_BUDGET))
        self.queue = RequestQueue(self.shapes, max_requests, max_tokens)
        self.programs: dict[tuple[str, tuple[int, int]], Program] = {}
        self.counters: Counter[str] = Counter()
        """batch_tokens and batch_positions that were computed"""
        self.worker = threading.Thread(target=self._work, name="encoder", daemon=True)

    # -- start and end ------------------------------------------------------------------------------------------------

    def warm_up(self) -> None:
        """Compiles every program for every shape, several at a time, and runs each once; fewer if `stop` is called."""
        start = time.perf_counter()
        with ThreadPoolExecutor(min(os.cpu_count() or 1, 4), thread_name_prefix="compile") as pool:
            for found in pool.map(self._compile, self.shapes.every):
                self.programs |= found
        if self.queue.closed:
            return
        log.debug(
            "%s: %d programs for batches of %s, ready after %.1f s", self.model.name, len(self.programs),
            ", ".join(f"{rows}×{width}" for rows, width in self.shapes.every), time.perf_counter() - start,
        )  # fmt: skip

    def start(self) -> None:
        """Starts the thread that runs batches."""
        self.worker.start()

    async def stop(self, seconds: float = 60.0) -> None:
        """Refuses further calls, finishes those that were accepted, and ends the thread; waits this long at most."""
        self.queue.close()
        if self.worker.ident is not None:
            await asyncio.to_thread(self.worker.join, seconds)

    def _compile(self, shape: tuple[int, int]) -> dict[tuple[str, tuple[int, int]], Program]:
        """The programs of one shape: the encoder, and what makes an answer of its states, for each kind."""
        if self.queue.closed:
            return {}
        model, packed = self.model, segments_of(shape[1])
        tokens = np.zeros((5, *shape), np.int32)

        def encode(params: Params, tokens: Int[Array, "5 B S"]) -> Float[Array, "B S D"]:
            ids, segments, positions, types, _ = tokens
            return model.apply(params, Inputs(ids, segments, positions, types if model.config.num_types > 1 else None))

        def vectors(params: Params, hidden: Float[Array, "B S D"], tokens: Int[Array, "5 B S"]) -> Array:
            _, segments, positions, _, skipped = tokens
            return run_modules(bare(self.embedder).modules, params, hidden, segments, skipped, packed, positions)

        def classes(params: Params, hidden: Float[Array, "B S D"], tokens: Int[Array, "5 B S"]) -> Array:
            named = {"segment_ids": tokens[1], "num_labels": num_classes(model), "packed": packed}
            return model.apply(params, method="class_logits", hidden=hidden, **named)

        def masks(params: Params, hidden: Float[Array, "B S D"], where: Int[Array, "M 2"]) -> tuple[Array, Array]:
            size = model.tokenizer.vocab.size
            logits = model.apply(params, method="mlm_logits", hidden=hidden[where[:, 0], where[:, 1]])[:, :size]
            probabilities, best = jax.lax.top_k(jax.nn.softmax(logits), min(MOST_TOKENS, size))
            return best, probabilities

        def compiled(function: Callable, params: Params, *arguments: object) -> Program:
            program = Program(jax.jit(function).lower(params, *arguments).compile(), params)
            jax.block_until_ready(program(*jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), arguments)))
            return program

        hidden = jax.eval_shape(encode, model.params, tokens)
        found = {("encode", shape): compiled(encode, model.params, tokens)}
        if "vectors" in self.kinds:
            found["vectors", shape] = compiled(vectors, jax.device_put(bare(self.embedder).params), hidden, tokens)
        if "classes" in self.kinds:
            found["classes", shape] = compiled(classes, model.params, hidden, tokens)
        if "masks" in self.kinds:
            found["masks", shape] = compiled(masks, model.params, hidden, np.zeros((MASKS, 2), np.int32))
        return found

    # -- calls --------------------------------------------------------------------------------------------------------

    async def vectors(
        self, sequences: Sequence[Sequence[int]], skipped: int = 0, normalize: bool | None = None
    ) -> Float[np.ndarray, "N D"]:
        """What `inference.encode.embed_ids` gives."""
        if not sequences:
            return np.zeros((0, 0), np.float32)
        found = np.stack(await self.run("vectors", [Text(ids, skipped=skipped) for ids in sequences]))
        found, modules = found.astype(np.float32), self.embedder.modules
        if isinstance(modules[-1], Normalize) and normalize is not False:
            found = unit(found)
        found = found[:, : self.embedder.truncate_dim]
        after = own_embedder(self.model) is None if normalize is None else normalize
        return unit(found) if after else found

    async def logits(self, texts: Sequence[Text]) -> Float[np.ndarray, "N C"]:
        """Class logits of texts or pairs of texts."""
        if not texts:
            return np.zeros((0, num_classes(self.model)), np.float32)
        return np.stack(await self.run("classes", texts)).astype(np.float32)

    async def masks(
        self, sequences: Sequence[Sequence[int]], top_k: int
    ) -> list[list[tuple[Int[np.ndarray, " K"], Float[np.ndarray, " K"]]]]:
        """For each mask of each text the most probable tokens, at most MOST_TOKENS, and their probabilities."""
        mask = self.model.tokenizer.vocab.mask
        texts = [Text(ids, masks=tuple(i for i, token in enumerate(ids) if token == mask)) for ids in sequences]
        answers = await self.run("masks", texts) if texts else []
        return [[(best[:top_k], p[:top_k]) for best, p in answer] for answer in answers]

    async def run(self, kind: Kind, texts: Sequence[Text]) -> list:
        """The result of each text: a vector, class logits, or for each mask (token ids, probabilities).

        Raises:
          UserError: the model does not give this, or a text is empty, too long, or has ids outside the vocabulary.
          Refusal: the queue is full, the engine is stopping, or it took too long.
        """
        self._check(kind, texts)
        request = Request(kind, texts, self.shapes, asyncio.get_running_loop().create_future())
        try:
            self.queue.put(request)
        except QueueFull as error:
            raise Refusal(429, str(error), {"Retry-After": str(error.seconds)}) from None
        try:
            async with asyncio.timeout(self.timeout):
                return await request.future
        except TimeoutError:
            raise Refusal(504, f"not computed within {self.timeout:g} s") from None
        finally:
            self.queue.discard(request)

    def _check(self, kind: Kind, texts: Sequence[Text]) -> None:
        if self.queue.closed:
            raise Refusal(503, "the server is stopping")
        if kind not in self.kinds:
            raise UserError(f"{self.model.name}: has no {kind}")
        for number, text in enumerate(texts):
            if not 0 < len(text.ids) <= self.shapes.max_len:
                limit = self.shapes.max_len
                raise UserError(f"input {number} has {len(text.ids)} tokens; it must have 1 to {limit}")
            if min(text.ids) < 0 or max(text.ids) >= self.model.config.vocab_size:
                raise UserError(f"input {number} has ids outside the vocabulary of {self.model.config.vocab_size}")

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (batch := self.queue.take()) is not None:
            start = time.perf_counter()
            for item, result in self._results(batch):
                item.request.results[item.index] = result
                item.request.unfinished -= 1
            self.queue.measure(batch.tokens, time.perf_counter() - start)
            self.counters["batch_tokens"] += batch.tokens
            self.counters["batch_positions"] += math.prod(batch.shape)
            hand_over({id(item.request): item.request for item in batch.placed}.values())

    def _results(self, batch: Batch) -> list:
        """(placed text, its result or an exception). What spoils a batch is looked for by running each request alone.

        A number that is not finite spoils a batch too: attention weights of 0 do not keep it from other texts.
        """
        requests = {id(item.request): item.request for item in batch.placed}
        try:
            found = self._run(batch)
            if len(requests) == 1 or all(np.isfinite(np.asarray(result)).all() for _, result in found):
                return found
        except Exception as error:
            if len(requests) == 1:
                log.exception("a batch of %s failed", batch.shape)
                return [(item, error) for item in batch.placed]
        alone = ([item for item in batch.placed if id(item.request) == key] for key in requests)
        return [pair for placed in alone for pair in self._results(batch._replace(placed=placed))]

    def _run(self, batch: Batch) -> list:
        tokens = fill(batch)
        hidden = self.programs["encode", batch.shape](tokens)
        by_kind = defaultdict(list)
        for item in batch.placed:
            by_kind[item.request.kind].append(item)
        found: list = []
        for kind in ("vectors", "classes"):
            if items := by_kind[kind]:
                rows = np.asarray(self.programs[kind, batch.shape](hidden, tokens))
                found += [(item, rows[item.row, item.segment - 1]) for item in items]
        if items := by_kind["masks"]:
            found += self._run_masks(batch.shape, hidden, items)
        return found

    def _run_masks(self, shape: tuple[int, int], hidden: Array, items: list) -> list:
        where = np.array([(item.row, item.start + i) for item in items for i in item.text.masks], np.int32)
        padded = np.zeros((-(-len(where) // MASKS) * MASKS, 2), np.int32)
        padded[: len(where)] = where
        program = self.programs["masks", shape]
        parts = [jax.device_get(program(hidden, part)) for part in np.split(padded, len(padded) // MASKS)]
        best, probabilities = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        answers = iter(zip(best, probabilities, strict=True))
        return [(item, [next(answers) for _ in item.text.masks]) for item in items]


def hand_over(requests: Iterable[Request]) -> None:
    """Gives results to the futures of requests that are complete, with one call for each event loop."""
    complete = defaultdict(list)
    for request in requests:
        if request.unfinished == 0:
            complete[request.future.get_loop()].append(request)

    def resolve(requests: list[Request]) -> None:
        for request in requests:
            if not request.future.done():
                failed = next((result for result in request.results if isinstance(result, Exception)), None)
                if failed is None:
                    request.future.set_result(request.results)
                else:
                    request.future.set_exception(failed)

    for loop, requests in complete.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(resolve, requests)


def unit(vectors: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
    """Vectors divided by their L2 norm."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), np.float32(1e-12))


def embedder_of(model: Model) -> Embedder | None:
    """How the model makes vectors, None if it does not."""
    try:
        return embedder_for(model, None) if model.tokenizer is not None else None
    except UserError:
        return None


def bare(embedder: Embedder) -> Embedder:
    """The modules without the last Normalize, which is left to the caller."""
    if not isinstance(embedder.modules[-1], Normalize):
        return embedder
    return embedder._replace(modules=embedder.modules[:-1], params=embedder.params[:-1])


def kinds_of(model: Model) -> tuple[Kind, ...]:
    """What the model can be asked for."""
    has_mlm = is_encoder(model) and ("mlm_head" in model.params or model.config.mlm_head != "transform")
    can = {
        "vectors": embedder_of(model) is not None,
        "classes": num_classes(model) > 0,
        "masks": has_mlm and model.tokenizer is not None and model.tokenizer.vocab.mask is not None,
    }
    return tuple(kind for kind, able in can.items() if able)
