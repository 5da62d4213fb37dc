"""A served model whose encoder computes in batches: the methods of `Served` on top of `EncoderEngine`."""

import asyncio
import dataclasses
import functools
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from jaxtyping import Float

from bertgpt.data.examples import TextDataset
from bertgpt.inference.class_scores import (
    encode_items,
    pair_scores,
    records_of,
    scores_of_logits,
    scores_of_outputs,
)
from bertgpt.inference.encode import describe_logits, name_tokens, softmax, tokenize, tokenize_masked
from bertgpt.inference.model import Model
from bertgpt.inference.predict import known, named_records
from bertgpt.objectives.classify import Classify, ClassifyMany, Regress
from bertgpt.serving.decoder import DecoderOptions
from bertgpt.serving.encoder import MOST_TOKENS, EncoderEngine, kinds_of
from bertgpt.serving.limits import Batching, Limits
from bertgpt.serving.queue import Kind, Text
from bertgpt.serving.served import Served, Truncate
from bertgpt.tasks.classification import TextClassification
from bertgpt.types import JsonObject

T = TypeVar("T")
THREADS = 2
"""that tokenise and describe"""


class BatchedServed(Served):
    """A model whose vectors, classes and masks of many requests are computed together, with the same results.

    What the engine does not compute is left to `Served`: tags, answers, generated texts, and runs of several tasks.
    """

    def __init__(self, name: str, model: Model, limits: Limits | None = None, batching: Batching | None = None):
        limits, batching = limits or Limits(), batching or Batching()
        decoder = DecoderOptions(batching.slots, batching.slot_len, batching.max_waiting, limits.timeout)
        super().__init__(name, model, decoder)
        bounds = (batching.batch_tokens, limits.max_requests, batching.max_waiting_tokens, limits.timeout)
        self.engine = EncoderEngine(model, *bounds) if kinds_of(model) else None
        if self.engine is not None:
            self.engine.counters = self.counters
        self.run_data = batched_data(model)
        self.helpers = ThreadPoolExecutor(THREADS, thread_name_prefix=f"bertgpt-{name}-text")

    async def start(self) -> None:
        """Compiles all programs."""
        await super().start()
        if self.engine is not None:
            await asyncio.to_thread(self.engine.warm_up)
            self.engine.start()

    async def stop(self) -> None:
        """Finishes what was accepted."""
        if self.engine is not None:
            await self.engine.stop()
        self.helpers.shutdown(wait=False, cancel_futures=True)
        await super().stop()

    async def aside(self, function: Callable[..., T], *args: object, **named: object) -> T:
        """See `Served.aside`."""
        work = functools.partial(function, *args, **named)
        return await asyncio.get_running_loop().run_in_executor(self.helpers, work)

    async def queued(self, work: Awaitable[T]) -> T:
        """Waits for the engine, and is counted as waiting."""
        self.waiting += 1
        try:
            return await work
        finally:
            self.waiting -= 1

    def computes(self, kind: Kind) -> bool:
        """Whether the engine computes this."""
        return self.engine is not None and kind in self.engine.kinds

    async def embed_ids(
        self, sequences: Sequence[list[int]], skipped: int = 0, normalize: bool | None = None
    ) -> Float[np.ndarray, "N D"]:
        """See `Served.embed_ids`."""
        if not self.computes("vectors"):
            return await super().embed_ids(sequences, skipped, normalize)
        return await self.queued(self.engine.vectors(sequences, skipped, normalize))

    async def fill_mask(self, texts: Sequence[str], top_k: int) -> list[list[dict[str, float]]]:
        """See `Served.fill_mask`."""
        if not self.computes("masks") or not 1 <= top_k <= MOST_TOKENS:
            return await super().fill_mask(texts, top_k)
        sequences = await self.aside(tokenize_masked, self.model, texts)
        answers = await self.queued(self.engine.masks(sequences, top_k))
        name = functools.partial(name_tokens, self.model.tokenizer)
        return await self.aside(lambda: [[name(*pair) for pair in answer] for answer in answers])

    async def classify(self, texts: Sequence[str]) -> list[JsonObject]:
        """See `Served.classify`."""
        if self.model.experiment is not None:
            return await self.predict(texts)
        if not self.computes("classes"):
            return await super().classify(texts)
        sequences = await self.aside(tokenize, self.model, texts, decoders=True)
        logits = await self.queued(self.engine.logits([Text(ids) for ids in sequences]))
        return await self.aside(lambda: list(describe_logits(self.model, logits)))

    async def predict(self, records: Sequence[str | JsonObject]) -> list[JsonObject]:
        """See `Served.predict`."""
        if self.run_data is None:
            return await super().predict(records)
        dataset, outputs = await self._outputs(await self.aside(named_records, self.model, records))
        return await self.aside(lambda: list(known(self.run_data.describe(dataset, outputs))))

    async def class_scores(
        self, items: Sequence[Sequence[str]], raw: bool = False, truncate: Truncate = "no"
    ) -> tuple[tuple[str, ...], Float[np.ndarray, "N C"]]:
        """See `Served.class_scores`."""
        if self.run_data is not None:
            dataset, outputs = await self._outputs(await self.aside(records_of, self.model, items))
            return await self.aside(scores_of_outputs, self.model, dataset, outputs, raw, truncate != "no")
        if self.model.experiment is not None or not self.computes("classes"):
            return await super().class_scores(items, raw, truncate)
        encoded = await self.aside(encode_items, self.model, items, truncate != "no")
        texts = [Text(ids, first) for ids, first in zip(encoded.ids, encoded.first.tolist(), strict=True)]
        return await self.aside(scores_of_logits, self.model, await self.queued(self.engine.logits(texts)), raw)

    async def score_pairs(self, query: str, texts: Sequence[str], truncate: Truncate = "no") -> Float[np.ndarray, " N"]:
        """See `Served.score_pairs`."""
        if not self.crosses:
            return await super().score_pairs(query, texts, truncate)
        return pair_scores((await self.class_scores([(query, text) for text in texts], True, truncate))[1])

    async def _outputs(self, records: Sequence[JsonObject]) -> tuple[TextDataset, dict[str, np.ndarray]]:
        """What `inference.predict.outputs_for` gives for records of a run of classification."""

        def read() -> tuple[TextDataset, list[Text]]:
            dataset = self.run_data.predict_batches(records, max(len(records), 1), self.model.tokenizer).dataset
            rows = zip(dataset.table, dataset.lengths.tolist(), dataset.first.tolist(), strict=True)
            return dataset, [Text(row[:length].tolist(), first) for row, length, first in rows]

        dataset, texts = await self.aside(read)
        logits, objective = await self.queued(self.engine.logits(texts)), self.model.run.objective
        if isinstance(objective, Regress):
            return dataset, {"value": logits[:, 0] * np.float32(objective.scale)}
        many = isinstance(objective, ClassifyMany)
        return dataset, {"probabilities": np.exp(-np.logaddexp(0.0, -logits)) if many else softmax(logits)}


def batched_data(model: Model) -> TextClassification | None:
    """The data of a run of classification, one text a row; None for models of other kinds."""
    if model.experiment is None or "classes" not in kinds_of(model):
        return None
    objective, data = model.experiment.objective, model.experiment.data
    if not isinstance(objective, Classify | ClassifyMany | Regress) or not isinstance(data, TextClassification):
        return None
    return dataclasses.replace(data, packed=False)
