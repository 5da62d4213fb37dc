"""The queue of an encoder: fair to small requests, bounded, and rid of those who have left."""

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import AsyncIterator, Sequence

import numpy as np
import pytest
from serving_models import DECODER, ENCODER, make_model

from bertgpt.data.tokenizer import Tokenizer
from bertgpt.serving.encoder import EncoderEngine
from bertgpt.serving.errors import Refusal
from bertgpt.serving.queue import Batch, Request, RequestQueue, Shapes, Text, fill, segments_of
from bertgpt.types import UserError

SHAPES = Shapes(512)


def test_the_set_of_shapes_is_small_and_covers_every_length():
    assert SHAPES.every == (
        (1, 16), (1, 32), (1, 48), (1, 64), (1, 96),
        (1, 128), (2, 128), (3, 128), (4, 128), (1, 256), (2, 256), (1, 512),
    )  # fmt: skip
    assert Shapes(8, 64).every == ((1, 8), (2, 8), (3, 8), (4, 8), (8, 8))
    assert Shapes(300).widths == (128, 256, 300) and len(Shapes(512, 8192).every) == 26
    with pytest.raises(UserError, match="budget"):
        Shapes(16, 0)


def requests_of(lengths: Sequence[Sequence[int]], shapes: Shapes = SHAPES) -> list[Request]:
    """Requests with texts of these lengths; text j of request i consists of the token i · 1000 + j + 1."""
    loop = asyncio.new_event_loop()
    found = [
        Request("vectors", [Text([i * 1000 + j + 1] * n) for j, n in enumerate(each)], shapes, loop.create_future())
        for i, each in enumerate(lengths)
    ]
    loop.close()
    return found


def batches(queue: RequestQueue) -> list[Batch]:
    queue.close()
    return list(iter(queue.take, None))


@pytest.mark.parametrize("seed", range(3))
def test_every_text_is_in_one_batch_whole_and_apart_from_others(seed: int):
    rng = random.Random(seed)
    lengths = [[rng.choice((3, 10, 25, 60, 130, 300, 512)) for _ in range(rng.randint(1, 9))] for _ in range(60)]
    queue, requests = RequestQueue(SHAPES, 100, 10**6), requests_of(lengths)
    for request in requests:
        queue.put(request)
    seen = []
    for batch in batches(queue):
        ids, segments, positions, _, _ = fill(batch)
        assert batch.shape in SHAPES.every and segments.max() <= segments_of(batch.shape[1])
        for item in batch.placed:
            (columns,) = np.nonzero(segments[item.row] == item.segment)
            token = requests.index(item.request) * 1000 + item.index + 1
            assert (ids[item.row, columns] == token).all()
            assert positions[item.row, columns].tolist() == list(range(len(item.text.ids)))
            seen.append(token)
        assert np.count_nonzero(segments) == batch.tokens
    assert sorted(seen) == [i * 1000 + j + 1 for i, each in enumerate(lengths) for j in range(len(each))]
    assert queue.tokens == 0 and not queue.waiting


def test_rows_of_short_texts_are_nearly_full():
    rng = random.Random(0)
    lengths = [[max(5, min(120, int(rng.lognormvariate(3.1, 0.5))))] for _ in range(600)]
    queue = RequestQueue(SHAPES, 1000, 10**6)
    for request in requests_of(lengths):
        queue.put(request)
    found = batches(queue)[:-1]
    assert sum(batch.tokens for batch in found) / sum(np.prod(batch.shape) for batch in found) > 0.95


def test_small_requests_are_not_behind_all_of_a_large_one():
    large, *small = requests_of([[30] * 1000, *([20] for _ in range(10)), [400]])
    queue = RequestQueue(SHAPES, 100, 10**6)
    for request in (large, *small):
        queue.put(request)
    order = [{id(item.request) for item in batch.placed} for batch in batches(queue)]
    assert all(id(request) in order[0] for request in small[:10]) and id(large) in order[0]
    assert id(small[10]) in order[1]  # its turn comes before the next texts of the large one
    assert len(order) < 1000 * 30 / 512 * 1.2


def test_requests_that_leave_take_their_texts_along():
    first, second = requests_of([[100] * 9, [50] * 4])
    queue = RequestQueue(SHAPES, 100, 10**6)
    queue.put(first)
    queue.put(second)
    assert queue.take().tokens == 3 * 100 + 2 * 50 and queue.tokens == 700
    queue.discard(first)
    queue.discard(first)
    rest = batches(queue)
    assert all(item.request is second for batch in rest for item in batch.placed) and queue.tokens == 0


class Gate:
    """Stands in for the device: batches wait until it is opened; results are the ids of each text."""

    def __init__(self, engine: EncoderEngine, monkeypatch: pytest.MonkeyPatch):
        self.open, self.ran = threading.Event(), []
        monkeypatch.setattr(engine, "_run", self.run)

    def run(self, batch: Batch) -> list:
        assert self.open.wait(30), "the gate stays closed"
        self.ran.append([item.text.ids for item in batch.placed])
        if any(13 in item.text.ids for item in batch.placed):
            raise RuntimeError("thirteen")
        return [(item, np.asarray(item.text.ids, np.float32)) for item in batch.placed]


@pytest.fixture
def make_engine(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch):
    @contextlib.asynccontextmanager
    async def make(**named: object) -> AsyncIterator[tuple[EncoderEngine, Gate]]:
        engine = EncoderEngine(make_model(ENCODER, tokenizer, mlm_logits={}), **named)
        gate = Gate(engine, monkeypatch)
        engine.start()
        try:
            async with asyncio.timeout(30):
                yield engine, gate
        finally:
            gate.open.set()
            await engine.stop(10)
            assert not engine.worker.is_alive()

    return make


async def begun(engine: EncoderEngine, waiting: int) -> None:
    """Waits until this many requests are in the queue."""
    while len(engine.queue.waiting) != waiting:
        await asyncio.sleep(0.005)


async def ask(engine: EncoderEngine, *ids: list[int]) -> list:
    return await engine.run("vectors", [Text(each) for each in ids])


def test_a_full_queue_refuses_with_an_estimate_of_when_to_come_back(make_engine):
    async def main() -> None:
        async with make_engine(max_requests=2, max_tokens=1000) as (engine, gate):
            busy = [asyncio.ensure_future(ask(engine, [1]))]
            await asyncio.sleep(0.05)  # the thread has taken it, so that the next ones wait
            busy += [asyncio.ensure_future(ask(engine, [5] * 40)) for _ in range(2)]
            await begun(engine, 2)
            with pytest.raises(Refusal, match="queue is full") as refusal:
                await ask(engine, [2])
            assert refusal.value.status == 429 and refusal.value.headers == {"Retry-After": "1"}
            engine.queue.rate = 10.0
            with pytest.raises(Refusal) as refusal:
                await ask(engine, [2])
            assert refusal.value.headers == {"Retry-After": "8"}  # 80 tokens at 10 a second
            gate.open.set()
            await asyncio.gather(*busy)
            assert (
                len(await ask(engine, *([3] * 40 for _ in range(60)))) == 60
            )  # alone, it may be larger than the queue

    asyncio.run(main())


def test_who_goes_away_is_not_computed_and_who_waits_too_long_is_told(make_engine):
    async def main() -> None:
        async with make_engine(timeout=0.4) as (engine, gate):
            first = asyncio.ensure_future(ask(engine, [1]))
            await asyncio.sleep(0.05)
            gone = asyncio.ensure_future(ask(engine, [7, 7], [8, 8]))
            await begun(engine, 1)
            gone.cancel()
            with pytest.raises(asyncio.CancelledError):
                await gone
            assert not engine.queue.waiting and engine.queue.tokens == 0
            late = asyncio.ensure_future(ask(engine, [9]))
            for late_one in (first, late):
                with pytest.raises(Refusal, match=r"not computed within 0.4 s") as refusal:
                    await late_one
                assert refusal.value.status == 504
            assert not engine.queue.waiting
            gate.open.set()
            assert [result.tolist() for result in await ask(engine, [4])] == [[4]]
            assert gate.ran == [[[1]], [[4]]]

    asyncio.run(main())


def test_a_request_that_fails_does_not_fail_others_of_its_batch(make_engine):
    async def main() -> None:
        async with make_engine() as (engine, gate):
            busy = asyncio.ensure_future(ask(engine, [1]))
            await asyncio.sleep(0.05)
            several = [asyncio.ensure_future(ask(engine, [i], [i + 1, i])) for i in (10, 12, 15)]
            await begun(engine, 3)
            gate.open.set()
            found = await asyncio.gather(busy, *several, return_exceptions=True)
            assert isinstance(found[2], RuntimeError)
            assert [[x.tolist() for x in each] for each in (found[1], found[3])] == [[[10], [11, 10]], [[15], [16, 15]]]
            with pytest.raises(UserError, match="input 1 has ids outside the vocabulary of 200"):
                await ask(engine, [1], [200])

    asyncio.run(main())


def test_stopping_finishes_what_was_accepted_and_refuses_the_rest(make_engine):
    async def main() -> None:
        async with make_engine() as (engine, gate):
            accepted = [asyncio.ensure_future(ask(engine, [i] * 40)) for i in range(1, 12)]
            await asyncio.sleep(0.05)
            stopping = asyncio.ensure_future(engine.stop(20))
            await asyncio.sleep(0.05)
            with pytest.raises(Refusal, match="stopping") as refusal:
                await ask(engine, [1])
            assert refusal.value.status == 503
            gate.open.set()
            await stopping
            assert [len(found[0]) for found in await asyncio.gather(*accepted)] == [40] * 11

    asyncio.run(main())


def test_a_lone_request_does_not_wait_for_company(make_engine):
    async def main() -> float:
        async with make_engine() as (engine, gate):
            gate.open.set()
            await ask(engine, [1])
            start = time.perf_counter()
            for _ in range(50):
                await ask(engine, [1, 2, 3])
            return (time.perf_counter() - start) / 50

    assert asyncio.run(main()) < 0.02


def test_models_without_an_encoder_or_head_have_no_kinds(tokenizer: Tokenizer):
    assert EncoderEngine(make_model(ENCODER, tokenizer)).kinds == ("vectors",)
    assert EncoderEngine(make_model(DECODER, tokenizer)).kinds == ()
