"""Requests of many clients are computed together: they wait in a queue, and one worker takes the next few of a kind."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Generic, NamedTuple, TypeVar

from bertgpt.serving.errors import Refusal

Item = TypeVar("Item")
Result = TypeVar("Result")


class Waiting(NamedTuple):
    """An item that waits. `kind`: what is to be computed; items of one kind are computed together."""

    kind: Hashable
    item: object
    future: asyncio.Future


class Gathering(Generic[Item, Result]):
    """A bounded queue and its worker, all within one event loop; the worker lives while something waits.

    While a batch is computed the queue fills, so batches grow with the load. A request that finds the worker idle is
    computed at once, whatever its size. Items of a kind are taken in order, kinds in the order of their oldest item.
    """

    def __init__(
        self,
        compute: Callable[[Hashable, list[Item]], Awaitable[Sequence[Result]]],
        largest: int = 8,
        max_waiting: int = 256,
    ):
        """A queue.

        Args:
          compute: (kind, items) → the result of each. What an item gives must not depend on the others.
          largest: items of a batch.
          max_waiting: items that may wait; further ones are refused with 429.
        """
        self.compute, self.largest, self.max_waiting = compute, largest, max_waiting
        self.waiting: list[Waiting] = []
        self.worker: asyncio.Task | None = None

    async def run(self, kind: Hashable, items: Sequence[Item]) -> list[Result]:
        """The result of each item.

        Raises:
          Refusal: 429 if there is no room in the queue. Also what `compute` raises.
        """
        if len(self.waiting) + len(items) > self.max_waiting:
            raise Refusal(429, f"{self.max_waiting} images wait already; try again later", {"Retry-After": "1"})
        loop = asyncio.get_running_loop()
        mine = [Waiting(kind, item, loop.create_future()) for item in items]
        self.waiting.extend(mine)
        if self.worker is None or self.worker.done():
            self.worker = asyncio.ensure_future(self._work())
        try:
            return list(await asyncio.gather(*(item.future for item in mine)))
        finally:  # of a caller that gave up: what waits is computed no more
            for item in mine:
                item.future.cancel()
            self.waiting = [item for item in self.waiting if not item.future.done()]

    async def _work(self) -> None:
        while batch := self._take():
            await self._finish(batch)

    def _take(self) -> list[Waiting]:
        """The oldest items of one kind."""
        batch = [item for item in self.waiting if item.kind == self.waiting[0].kind][: self.largest]
        taken = set(map(id, batch))
        self.waiting = [item for item in self.waiting if id(item) not in taken]
        return batch

    async def _finish(self, batch: list[Waiting]) -> None:
        """Computes a batch. What spoils it is looked for by computing each item alone."""
        try:
            results = await self.compute(batch[0].kind, [item.item for item in batch])
        except Exception as error:
            if len(batch) > 1:
                for item in batch:
                    if not item.future.done():
                        await self._finish([item])
            elif not batch[0].future.done():
                batch[0].future.set_exception(error)
            return
        for item, result in zip(batch, results, strict=True):
            if not item.future.done():
                item.future.set_result(result)
