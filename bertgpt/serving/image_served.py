"""A served model that reads images: they are decoded off the event loop, and computed together in batches of 1 to 8."""

import asyncio
import functools
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from jaxtyping import UInt8

from bertgpt.inference.model import Model
from bertgpt.inference.predict import predict, task_of
from bertgpt.serving.batched import BatchedServed
from bertgpt.serving.gathering import Gathering
from bertgpt.serving.image_models import format_of, reads_images, with_pixels
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
        data = task_of(self.model)[0]
        self.image_field, *others = data.inputs
        self.text_field = others[0] if others else None
        self.queue: Gathering[JsonObject, JsonObject] = Gathering(
            self._compute, LARGEST, (batching or Batching()).max_waiting
        )
        self.helpers = ThreadPoolExecutor(THREADS, thread_name_prefix=f"bertgpt-{name}-images")

    async def start(self) -> None:
        """Compiles the programs for all sizes of batches, with black images and short texts."""
        await super().start()
        blank = np.zeros(self.source.shape, np.uint8)
        record = {self.image_field: blank} | ({} if self.text_field is None else {self.text_field: "?"})
        for size in (1, 2, 4, 8):
            await self.call(self._predict, [record] * size)

    async def stop(self) -> None:
        """Finishes what was accepted."""
        self.helpers.shutdown(wait=False, cancel_futures=True)
        await super().stop()

    async def aside(self, function: Callable[..., T], *args: object, **named: object) -> T:
        """See `Served.aside`."""
        return await asyncio.get_running_loop().run_in_executor(
            self.helpers, functools.partial(function, *args, **named)
        )

    async def decode(self, uris: Sequence[str], limits: Limits, param: str) -> list[UInt8[np.ndarray, "F H W C"]]:
        """The pixels of data URIs. Errors: Refusal, which names `param`."""
        return await self.aside(read_pixels, uris, self.source, limits, param)

    async def predict(self, records: Sequence[JsonObject]) -> list[JsonObject]:
        """What `bertgpt.predict` gives for records with decoded images. Errors: Refusal, if too many wait."""
        self.waiting += 1
        try:
            return await self.queue.run("predict", records)
        finally:
            self.waiting -= 1

    async def _compute(self, kind: Hashable, items: list[JsonObject]) -> list[JsonObject]:
        assert kind == "predict"
        return await self.call(self._predict, items)

    def _predict(self, records: list[JsonObject]) -> list[JsonObject]:
        size = 1 << (len(records) - 1).bit_length()
        filled = [*records, *[records[0]] * (size - len(records))]
        return list(predict(self.model, filled, batch_size=LARGEST))[: len(records)]


def serve_model(name: str, model: Model, limits: Limits | None = None, batching: Batching | None = None) -> Served:
    """The model with what batches its requests: of images, or of texts."""
    return ImageServed(name, model, batching) if reads_images(model) else BatchedServed(name, model, limits, batching)
