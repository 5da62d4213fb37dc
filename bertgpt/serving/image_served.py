"""A served model that reads images: they are decoded off the event loop, and computed together in batches of 1 to 8."""

import asyncio
import functools
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from jaxtyping import UInt8

from bertgpt.inference.image_tasks import format_of
from bertgpt.inference.image_text import compares_images, zero_shot
from bertgpt.inference.model import Model
from bertgpt.inference.predict import predict, task_of
from bertgpt.serving.batched import BatchedServed
from bertgpt.serving.gathering import Gathering
from bertgpt.serving.image_models import reads_images, with_pixels
from bertgpt.serving.limits import Batching, Limits
from bertgpt.serving.pictures import read_pixels
from bertgpt.serving.served import Served
from bertgpt.types import JsonObject

T = TypeVar("T")
LARGEST = 8
"""images of a batch; others have 1, 2 or 4"""
THREADS = 2
"""that decode"""


class ImageServed(Served):
    """A model that reads images. What an image gives does not depend on its batch, and is what `bertgpt.predict` gives.

    Requests wait in one queue; the programs for batches of 1, 2, 4 and 8 images are compiled before the first one.
    """

    def __init__(self, name: str, model: Model, batching: Batching | None = None):
        self.source = format_of(model)
        super().__init__(name, with_pixels(model, self.source))
        fields = ("image",) if compares_images(model) or not self.can else task_of(self.model)[0].inputs
        self.image_field, self.text_field = fields[0], fields[1] if len(fields) > 1 else None
        self.queue: Gathering[JsonObject, object] = Gathering(
            self._compute, LARGEST, (batching or Batching()).max_waiting
        )
        self.helpers = ThreadPoolExecutor(THREADS, thread_name_prefix=f"bertgpt-{name}-images")

    async def start(self) -> None:
        """Compiles the programs for all sizes of batches, with black images and short texts."""
        await super().start()
        blank = np.zeros(self.source.shape, np.uint8)
        record = {self.image_field: blank} | ({} if self.text_field is None else {self.text_field: "?"})
        kind = (("a", "b"), "{}") if compares_images(self.model) else "predict"
        for size in (1, 2, 4, LARGEST) if self.can else ():
            await self._compute(kind, [record] * size)

    async def stop(self) -> None:
        """Finishes what was accepted."""
        self.helpers.shutdown(wait=False, cancel_futures=True)
        await super().stop()

    async def aside(self, function: Callable[..., T], *args: object, **named: object) -> T:
        """See `Served.aside`."""
        work = functools.partial(function, *args, **named)
        return await asyncio.get_running_loop().run_in_executor(self.helpers, work)

    async def decode(self, uris: Sequence[str], limits: Limits, param: str) -> list[UInt8[np.ndarray, "F H W C"]]:
        """The pixels of data URIs. Errors: Refusal, which names `param`."""
        return await self.aside(read_pixels, uris, self.source, limits, param)

    async def predict(self, records: Sequence[JsonObject]) -> list[JsonObject]:
        """What `bertgpt.predict` gives for records with decoded images. Errors: Refusal, if too many wait."""
        return await self._queued("predict", records)

    async def choose(
        self, records: Sequence[JsonObject], labels: Sequence[str], hypothesis: str
    ) -> list[dict[str, float]]:
        """What `bertgpt.zero_shot` gives: label → probability, for each image."""
        return await self._queued((tuple(labels), hypothesis.replace("{label}", "{}")), records)

    async def _queued(self, kind: Hashable, records: Sequence[JsonObject]) -> list:
        self.waiting += 1
        try:
            return await self.queue.run(kind, records)
        finally:
            self.waiting -= 1

    async def _compute(self, kind: Hashable, items: list[JsonObject]) -> list:
        """Kind: "predict", or the labels and the template of a zero-shot classification."""
        filled = [*items, *[items[0]] * ((1 << (len(items) - 1).bit_length()) - len(items))]
        return (await self.call(self._answers, kind, filled))[: len(items)]

    def _answers(self, kind: Hashable, records: list[JsonObject]) -> list:
        if kind == "predict":
            return list(predict(self.model, records, batch_size=LARGEST))
        labels, template = kind
        images = [record[self.image_field] for record in records]
        return zero_shot(self.model, images, labels, template, batch_size=LARGEST)


def serve_model(name: str, model: Model, limits: Limits | None = None, batching: Batching | None = None) -> Served:
    """The model with what batches its requests: of images, or of texts."""
    return ImageServed(name, model, batching) if reads_images(model) else BatchedServed(name, model, limits, batching)
