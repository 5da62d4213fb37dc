"""Items of many callers are computed together, in order, and a bad one harms no other."""

import asyncio
from collections.abc import Hashable

import pytest

from bertgpt.serving.errors import Refusal
from bertgpt.serving.gathering import Gathering


class Doubling:
    """Computes 2 · item, when `gate` is open; keeps the batches. An item "bad" spoils its batch."""

    def __init__(self):
        self.batches: list[tuple[Hashable, list]] = []
        self.gate = asyncio.Event()

    async def __call__(self, kind: Hashable, items: list) -> list:
        self.batches.append((kind, items))
        await self.gate.wait()
        if "bad" in items:
            raise ValueError("bad")
        return [2 * item for item in items]


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_what_waits_is_computed_together_by_kind_and_in_order():
    async def run() -> None:
        compute = Doubling()
        queue = Gathering(compute, largest=4)
        calls = [asyncio.ensure_future(queue.run("a", [1]))]
        await settle()
        for kind, items in (("a", [2, 3]), ("b", [4]), ("a", [5, 6, 7]), ("b", [8])):
            calls.append(asyncio.ensure_future(queue.run(kind, items)))
        await settle()
        assert compute.batches == [("a", [1])]  # the others wait
        compute.gate.set()
        assert await asyncio.gather(*calls) == [[2], [4, 6], [8], [10, 12, 14], [16]]
        assert compute.batches == [("a", [1]), ("a", [2, 3, 5, 6]), ("b", [4, 8]), ("a", [7])]
        assert await queue.run("b", [1]) == [2] and await queue.run("b", []) == []  # the worker starts again

    asyncio.run(run())


def test_a_bad_item_fails_alone():
    async def run() -> None:
        compute = Doubling()
        queue = Gathering(compute)
        first = asyncio.ensure_future(queue.run("a", [0]))
        await settle()
        bad, good = (asyncio.ensure_future(queue.run("a", items)) for items in ([1, "bad"], [3]))
        compute.gate.set()
        assert await first == [0] and await good == [6]
        with pytest.raises(ValueError, match="bad"):
            await bad

    asyncio.run(run())


def test_a_caller_that_gives_up_leaves_the_queue_and_a_full_queue_refuses():
    async def run() -> None:
        compute = Doubling()
        queue = Gathering(compute, max_waiting=2)
        calls = [asyncio.ensure_future(queue.run("a", [1]))]
        await settle()
        calls += [asyncio.ensure_future(queue.run("a", [2, 3]))]
        await settle()
        with pytest.raises(Refusal, match="2 images wait already") as refusal:
            await queue.run("a", [4])
        assert refusal.value.status == 429 and refusal.value.headers == {"Retry-After": "1"}
        calls[1].cancel()
        await settle()
        calls += [asyncio.ensure_future(queue.run("a", [5, 6]))]
        compute.gate.set()
        assert await calls[0] == [2] and await calls[2] == [10, 12] and calls[1].cancelled()
        assert compute.batches == [("a", [1]), ("a", [5, 6])]

    asyncio.run(run())
