"""Continuous batching: outputs are those of the offline API, and slots, queues and clients are accounted for."""

import asyncio
import contextlib
import dataclasses
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from serving_models import make_model

from bertgpt.data.tokenizer import ByteBPE, Tokenizer
from bertgpt.inference.decoding import Decoding, Stops, continue_sampling, start_sampling
from bertgpt.inference.generate import generate_ids, split_stops
from bertgpt.inference.model import Model
from bertgpt.inference.slots import NewTokens
from bertgpt.models.gpt import GptConfig
from bertgpt.models.t5 import T5Config
from bertgpt.serving import decoder
from bertgpt.serving.decoder import DecoderEngine, DecoderOptions
from bertgpt.serving.errors import Refusal
from bertgpt.serving.logprobs import score_tokens
from bertgpt.serving.pieces import Piece, Progress
from bertgpt.types import UserError

SIZE = {"vocab_size": 200, "d_model": 16, "num_layers": 2, "num_heads": 2, "d_ff": 32, "max_len": 128}
CONFIGS = {
    "gpt": GptConfig(**SIZE),
    "window": GptConfig(**SIZE, local_window=5),
    "t5": T5Config(**SIZE, num_decoder_layers=2, head_dim=8),
}
GREEDY = Decoding(max_new_tokens=20, min_new_tokens=6, repetition_penalty=1.3)
SETTINGS = [
    GREEDY,
    Decoding(max_new_tokens=20, temperature=0.8, top_k=20, top_p=0.9, num_return_sequences=2, seed=3),
    Decoding(max_new_tokens=20, temperature=1.2, min_p=0.02, min_new_tokens=3, seed=2**32 - 1),
    Decoding(max_new_tokens=20, temperature=1.0, top_p=0.8, repetition_penalty=1.1, num_return_sequences=5, seed=5),
]
WAIT = 120.0
"""seconds after which a test fails rather than hangs"""


def prompts(number: int, longest: int = 16, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(5, 200) for _ in range(rng.randint(1, longest))] for _ in range(number)]


@contextlib.contextmanager
def running(model: Model, warm: bool = False, **options: object) -> Iterator[DecoderEngine]:
    """An engine with three slots."""
    with ThreadPoolExecutor(1) as thread:
        engine = DecoderEngine(model, thread, DecoderOptions(slots=3, **options))
        if warm:
            thread.submit(engine.warm_up).result()
        yield engine


@pytest.fixture(scope="module")
def models(tokenizer: Tokenizer) -> dict[str, Model]:
    return {name: make_model(config, tokenizer) for name, config in CONFIGS.items()}


async def collect(engine: DecoderEngine, *args: object, **named: object) -> dict[tuple[int, int], list[Piece]]:
    """The pieces of each output."""
    found = defaultdict(list)
    async with asyncio.timeout(WAIT), contextlib.aclosing(engine.generate(*args, **named)) as pieces:
        async for piece in pieces:
            found[piece.prompt, piece.output].append(piece)
    return dict(found)


def ids_of(pieces: Sequence[Piece]) -> list[int]:
    return [i for piece in pieces for i in piece.ids]


def logprobs_of(pieces: Sequence[Piece]) -> list[float]:
    return [value for piece in pieces for value in piece.logprobs]


def text_of(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def offline(model: Model, prompt: Sequence[int], decoding: Decoding, stop: Sequence[str] = ()) -> list:
    """The outputs of a prompt, generated alone."""
    return generate_ids(model.apply, model.params, model.config, [prompt], decoding, split_stops(model, stop)[0])[0]


@pytest.mark.parametrize("name", [pytest.param("gpt", marks=pytest.mark.slow), "window", "t5"])
def test_outputs_are_those_of_the_offline_api_whatever_joins_and_leaves(models: dict[str, Model], name: str):
    model, rng = models[name], random.Random(1)
    settings = {"gpt": [*SETTINGS, dataclasses.replace(GREEDY, bidirectional=True)], "t5": SETTINGS[:2]}
    settings = settings.get(name, SETTINGS[1:])
    cases = [(prompt, settings[i % len(settings)]) for i, prompt in enumerate(prompts(12))]
    cases += [([*range(5, 95)], GREEDY)]  # the cache grows, and shrinks again
    rng.shuffle(cases)

    async def ask(engine: DecoderEngine, number: int) -> dict[tuple[int, int], list[Piece]]:
        await asyncio.sleep(0.02 * number * rng.random())
        return await collect(engine, [cases[number][0]], cases[number][1], logprobs=0)

    async def ask_all(engine: DecoderEngine) -> list[dict[tuple[int, int], list[Piece]]]:
        return await asyncio.gather(*(ask(engine, number) for number in range(len(cases))))

    with running(model) as engine:
        answers = asyncio.run(ask_all(engine))
    for (prompt, decoding), answer in zip(cases, answers, strict=True):
        outputs = offline(model, prompt, decoding)
        assert [ids_of(answer[0, k]) for k in range(len(outputs))] == [output.ids for output in outputs]
        for k, output in enumerate(outputs):
            assert text_of(answer[0, k]) == model.tokenizer.decode(output.ids)
            assert answer[0, k][-1].finish_reason == ("stop" if output.ended else "length")
            if not output.ended:  # the score counts the stop token, which is not sent
                np.testing.assert_allclose(sum(logprobs_of(answer[0, k])), output.score, rtol=1e-4)
    assert engine.jobs == [None] * 3 and not engine.requests


@pytest.mark.slow
def test_requests_compile_nothing_after_the_warm_up(models: dict[str, Model]):
    compiled, rng = [], random.Random(2)
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: compiled.append(event) if event.endswith("backend_compile_duration") else None
    )

    async def ask(engine: DecoderEngine, prompt: list[int]) -> None:
        decoding = Decoding(
            max_new_tokens=rng.randint(1, 8),
            min_new_tokens=rng.randint(0, 1),
            temperature=rng.choice([0.0, 0.7, 1.3]),
            top_k=rng.choice([None, 1, 30, 500]),
            top_p=rng.choice([1.0, 0.9]),
            min_p=rng.choice([0.0, 0.1]),
            repetition_penalty=rng.choice([1.0, 1.2]),
            seed=rng.randrange(2**32),
        )
        stop = rng.choice([(), ("[MASK]", "the"), ("cat",)])
        await collect(engine, [prompt], decoding, stop, rng.choice([None, 0, 3]))

    async def ask_all(engine: DecoderEngine) -> None:
        for first in range(0, 100, 10):
            chosen = prompts(10, rng.choice([4, 40, 120]), seed=first)
            await asyncio.gather(*(ask(engine, prompt) for prompt in chosen))

    with running(models["gpt"], warm=True) as engine:
        compiled.clear()
        asyncio.run(ask_all(engine))
        assert not compiled
        asyncio.run(collect(engine, prompts(1), Decoding(2, no_repeat_ngram_size=2)))  # does not run in slots
        assert compiled


def test_settings_outside_the_slots_stream_log_probabilities_and_keep_few_programs(
    models: dict[str, Model], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(decoder, "ALONE", 1)
    model, prompt = models["gpt"], prompts(1)[0]
    with running(model) as engine:
        for size in (2, 3):
            settings = Decoding(max_new_tokens=20, min_new_tokens=20, no_repeat_ngram_size=size)
            pieces = asyncio.run(collect(engine, [prompt], settings, logprobs=1))[0, 0]
            assert len(pieces) > 1 and ids_of(pieces) == offline(model, prompt, settings)[0].ids
            want = score_tokens(model, prompt, ids_of(pieces), 1)
            np.testing.assert_allclose(logprobs_of(pieces), want.logprobs, rtol=1e-4)
            assert len(engine.settings) == 1
            engine._keep((settings, Stops((), 0, 1), 16))  # another one, which drops the programs
            assert start_sampling._cache_size() == continue_sampling._cache_size() == 0


def test_log_probabilities_are_those_of_the_unmodified_logits(models: dict[str, Model]):
    model, prompt = models["gpt"], prompts(1)[0]
    decoding = Decoding(max_new_tokens=6, min_new_tokens=6, temperature=2.0, top_k=3, repetition_penalty=1.5)
    for settings in (decoding, dataclasses.replace(decoding, no_repeat_ngram_size=3)):  # in slots and not
        with running(model) as engine:
            pieces = asyncio.run(collect(engine, [prompt], settings, logprobs=4))[0, 0]
        want = score_tokens(model, prompt, ids_of(pieces), 4)
        np.testing.assert_allclose(logprobs_of(pieces), want.logprobs, rtol=1e-4)
        found = [row for piece in pieces for row in piece.alternatives]
        assert [[item.id for item in row] for row in found] == [[item.id for item in row] for row in want.alternatives]
        values = [[[item.logprob for item in row] for row in rows] for rows in (found, want.alternatives)]
        np.testing.assert_allclose(*values, rtol=1e-4)


@pytest.mark.parametrize("step_seconds", [0.0001, 1.0], ids=["many steps a call", "one step a call"])
def test_outputs_end_before_stop_strings_however_many_tokens_a_call_makes(
    models: dict[str, Model], step_seconds: float
):
    model, prompt = models["gpt"], prompts(1, seed=4)[0]
    decoding = Decoding(max_new_tokens=24, temperature=1.0, seed=1)
    whole = offline(model, prompt, decoding)[0].ids
    text = model.tokenizer.decode(whole)
    stop = text[len(text) // 2 :][:4]
    with running(model) as engine:
        engine.step_seconds = step_seconds
        pieces = asyncio.run(collect(engine, [prompt], decoding, [stop, "never this"]))[0, 0]
    assert text_of(pieces) == text[: text.index(stop)] and pieces[-1].finish_reason == "stop"
    texts = [model.tokenizer.decode(whole[:n]) for n in range(len(whole) + 1)]
    assert ids_of(pieces) == whole[: next(n for n, text in enumerate(texts) if stop in text)]


def test_beam_search_runs_between_the_steps_of_others(models: dict[str, Model]):
    model, (one, two, three) = models["gpt"], prompts(3, seed=6)
    beams, grams = Decoding(8, num_beams=3, num_return_sequences=2), Decoding(8, no_repeat_ngram_size=2)

    async def ask(engine: DecoderEngine) -> list:
        return await asyncio.gather(
            collect(engine, [one], GREEDY), collect(engine, [two], beams), collect(engine, [three], grams)
        )

    with running(model) as engine:
        first, second, third = asyncio.run(ask(engine))
    assert ids_of(first[0, 0]) == offline(model, one, GREEDY)[0].ids
    assert [ids_of(second[0, k]) for k in range(2)] == [output.ids for output in offline(model, two, beams)]
    assert ids_of(third[0, 0]) == offline(model, three, grams)[0].ids


# -- clients, queue and faults ----------------------------------------------------------------------------------------

LONG = Decoding(max_new_tokens=110, min_new_tokens=110)
SHORT = Decoding(max_new_tokens=2)


def counted(engine: DecoderEngine) -> list[int]:
    """Makes each call take one step and lists the number of slots in use at each."""
    calls, extend = [], engine.batch.extend

    def one_step(steps: int, until_free: bool) -> NewTokens:
        calls.append(int(engine.batch.slots.active.sum()))
        return extend(1, until_free)

    engine.batch.extend = one_step
    return calls


async def idle(engine: DecoderEngine) -> None:
    """Waits until no round is due any more."""
    async with asyncio.timeout(WAIT):
        while engine.scheduled:
            await asyncio.sleep(0.001)


def test_a_client_that_leaves_frees_its_slot_at_the_next_call(models: dict[str, Model]):
    async def leave(engine: DecoderEngine) -> None:
        calls = counted(engine)
        async with asyncio.timeout(WAIT):
            pieces = engine.generate(prompts(3), LONG)
            await anext(pieces)
            await pieces.aclose()
            left = len(calls)
            await idle(engine)
            assert len(calls) <= left + 2  # one that was running, and one that had begun to
            # The same for a task that is cancelled, here by a timeout, with outputs that wait.
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await collect(engine, prompts(6), LONG)
            left = len(calls)
            await idle(engine)
            assert len(calls) <= left + 2
        assert engine.jobs == [None] * 3 and not engine.requests and not engine.waiting

    with running(models["gpt"]) as engine:
        asyncio.run(leave(engine))
        assert ids_of(asyncio.run(collect(engine, prompts(1), SHORT))[0, 0])


def test_a_waiting_prompt_gets_the_first_slot_that_becomes_free(models: dict[str, Model]):
    async def ask(engine: DecoderEngine) -> list[str]:
        order = []

        async def one(name: str, decoding: Decoding, number: int) -> None:
            await collect(engine, prompts(number), decoding)
            order.append(name)

        await asyncio.gather(one("long", LONG, 2), one("short", SHORT, 1), one("waiting", SHORT, 1))
        return order

    with running(models["gpt"]) as engine:
        assert asyncio.run(ask(engine)) == ["short", "waiting", "long"]


def test_a_full_queue_is_refused_with_a_time_to_come_back(models: dict[str, Model]):
    async def fill(engine: DecoderEngine) -> None:
        accepted = [asyncio.ensure_future(collect(engine, prompts(1, seed=i), LONG)) for i in range(5)]
        await asyncio.sleep(0)
        with pytest.raises(Refusal, match="too many outputs are waiting") as refused:
            await collect(engine, prompts(1), SHORT)
        assert refused.value.status == 429 and int(refused.value.headers["Retry-After"]) >= 1
        with pytest.raises(Refusal, match="3 outputs are more than may wait at a time, 2") as refused:
            await collect(engine, prompts(3), SHORT)
        assert refused.value.status == 413
        assert all(len(ids_of(answer[0, 0])) == 110 for answer in await asyncio.gather(*accepted))
        await collect(engine, prompts(1), SHORT)

    with running(models["gpt"], max_waiting=2) as engine:
        asyncio.run(fill(engine))


def test_requests_that_take_too_long_end_with_504(models: dict[str, Model]):
    async def ask(engine: DecoderEngine) -> None:
        try:
            await collect(engine, prompts(8), LONG)
        finally:
            await idle(engine)

    with running(models["gpt"], timeout=0.05) as engine:
        counted(engine)
        with pytest.raises(Refusal, match=r"longer than 0\.05 seconds") as refused:
            asyncio.run(ask(engine))
    assert refused.value.status == 504 and engine.jobs == [None] * 3


def test_a_warm_up_ends_early_when_the_server_stops(models: dict[str, Model], monkeypatch: pytest.MonkeyPatch):
    with running(models["gpt"]) as engine:
        calls: list = []
        monkeypatch.setattr(engine.batch, "read", calls.append)
        asyncio.run(engine.drain())
        engine.warm_up()
    assert not calls


def test_stopping_finishes_what_was_accepted_and_fails_what_takes_too_long(models: dict[str, Model]):
    async def stop(engine: DecoderEngine, seconds: float) -> list:
        begun = [asyncio.ensure_future(collect(engine, prompts(1, seed=i), LONG)) for i in range(4)]
        await asyncio.sleep(0.01)
        await engine.drain(seconds)
        with pytest.raises(Refusal, match="the server is stopping") as refused:
            await collect(engine, prompts(1), SHORT)
        assert refused.value.status == 503
        return await asyncio.gather(*begun, return_exceptions=True)

    with running(models["gpt"]) as engine:
        assert all(len(ids_of(answer[0, 0])) == 110 for answer in asyncio.run(stop(engine, WAIT)))
    with running(models["gpt"]) as engine:
        counted(engine)
        assert all(isinstance(answer, Refusal) and answer.status == 503 for answer in asyncio.run(stop(engine, 0.0)))


def test_faults_concern_only_the_requests_that_they_happen_to(models: dict[str, Model], caplog):
    async def break_one(engine: DecoderEngine) -> list:
        read, extend = engine.batch.read, engine.batch.extend

        def no_memory(ids: list[int], bidirectional: bool) -> object:
            if len(ids) == 1:
                raise MemoryError("too long")
            return read(ids, bidirectional)

        engine.batch.read = no_memory
        asked = [collect(engine, [ids], SHORT) for ids in ([5, 6], [7], [8, 9])]
        found = await asyncio.gather(*asked, return_exceptions=True)
        engine.batch.read = read

        def fail(steps: int, until_free: bool) -> NewTokens:
            engine.batch.extend = extend
            raise RuntimeError("the device is gone")

        engine.batch.extend = fail
        more = await asyncio.gather(*(collect(engine, [[i]], SHORT) for i in range(4)), return_exceptions=True)
        return [*found, *more, await collect(engine, [[5, 6]], SHORT)]

    with running(models["gpt"]) as engine:
        one, error, two, *rest, again = asyncio.run(break_one(engine))
    assert isinstance(error, MemoryError) and len(ids_of(two[0, 0])) == 2
    assert [type(item) for item in rest] == [RuntimeError] * 3 + [dict]  # three slots; the fourth prompt was waiting
    assert ids_of(again[0, 0]) == ids_of(one[0, 0])


@pytest.mark.parametrize(
    "prompt, settings, logprobs, message",
    [
        ([], {}, None, "prompt 1 is empty"),
        ([5] * 120, {"max_new_tokens": 10}, None, "lower max_new_tokens to 8"),
        ([5], {}, 21, r"logprobs=21 must lie in \[0, 20\]"),
    ],
)
def test_requests_that_cannot_be_met_are_refused_by_name(models, prompt, settings, logprobs, message):
    with running(models["gpt"]) as engine, pytest.raises(UserError, match=message):
        asyncio.run(collect(engine, [prompt], Decoding(**settings), logprobs=logprobs))
    assert not engine.requests


# -- text -------------------------------------------------------------------------------------------------------------


def test_pieces_hold_whole_characters_and_no_beginning_of_a_stop_string():
    text = "naïve 日本語 cafés 🙂🙃 end of all"
    tokenizer = ByteBPE(300).make(lambda: iter([text, "abc"]))
    (ids,) = tokenizer.encode([text])
    assert len(ids) > len(text)  # characters are split

    def send(ids: list[int], strings: list[str]) -> list[Piece]:
        progress = Progress(tokenizer, strings, 0, 0, wants=False)
        pieces = [progress.add([i], (), (), "length" if n == len(ids) else None) for n, i in enumerate(ids, start=1)]
        last = next((n for n, piece in enumerate(pieces) if piece and piece.finish_reason), len(pieces))
        return [piece for piece in pieces[: last + 1] if piece]

    pieces = send(ids, ["end if"])
    assert text_of(pieces) == text and ids_of(pieces) == ids and len(pieces) > 20
    assert not any("\ufffd" in piece.text for piece in pieces)
    held = [piece.text for piece in pieces if "end" in piece.text]
    assert held == ["end o"]  # what could begin "end if" came with the character that decided it
    stopped = send(ids, ["🙃 end"])
    assert text_of(stopped) == text[: text.index("🙃")] and stopped[-1].finish_reason == "stop"
    assert tokenizer.decode(ids_of(stopped)).endswith("🙃 end")
    cut_off = send(ids[: ids.index(tokenizer.encode(["日"])[0][-1])], [])
    assert text_of(cut_off).endswith("\ufffd")  # what ends in the middle of a character is sent as it is
