"""Continuous batching: outputs are those of the offline API, and slots, queues and clients are accounted for."""

import asyncio
import contextlib
import dataclasses
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
from serving_models import make_model

from bertgpt.data.tokenizer import Tokenizer
from bertgpt.inference.decoding import Decoding
from bertgpt.inference.generate import generate_ids, split_stops
from bertgpt.inference.model import Model
from bertgpt.models.gpt import GptConfig
from bertgpt.models.t5 import T5Config
from bertgpt.serving.decoder import DecoderEngine, DecoderOptions
from bertgpt.serving.errors import Refusal
from bertgpt.serving.pieces import Piece
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
    Decoding(max_new_tokens=20, temperature=1.0, top_p=0.8, repetition_penalty=1.1, num_return_sequences=3, seed=5),
]
WAIT = 120.0
"""seconds after which a test fails rather than hangs"""


def prompts(number: int, longest: int = 16, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(5, 200) for _ in range(rng.randint(1, longest))] for _ in range(number)]


@contextlib.contextmanager
def running(model: Model, warm: bool = False, **options: object) -> Iterator[DecoderEngine]:
    with ThreadPoolExecutor(1) as thread:
        engine = DecoderEngine(model, thread, DecoderOptions(**options))
        if warm:
            thread.submit(engine.warm_up).result()
        yield engine


@pytest.fixture(scope="module")
def models(tokenizer: Tokenizer) -> dict[str, Model]:
    return {name: make_model(config, tokenizer) for name, config in CONFIGS.items()}


@pytest.fixture(scope="module")
def engine(models: dict[str, Model]) -> Iterator[DecoderEngine]:
    with running(models["gpt"], slots=3, max_waiting=40) as engine:
        yield engine


async def collect(engine: DecoderEngine, *args: object, **named: object) -> dict[tuple[int, int], list[Piece]]:
    """The pieces of each output."""
    found = defaultdict(list)
    async with asyncio.timeout(WAIT), contextlib.aclosing(engine.generate(*args, **named)) as pieces:
        async for piece in pieces:
            found[piece.prompt, piece.output].append(piece)
    return dict(found)


def ids_of(pieces: Sequence[Piece]) -> list[int]:
    return [i for piece in pieces for i in piece.ids]


def text_of(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def offline(model: Model, prompt: Sequence[int], decoding: Decoding, stop: Sequence[str] = ()) -> list:
    """The outputs of a prompt, generated alone."""
    return generate_ids(model.apply, model.params, model.config, [prompt], decoding, split_stops(model, stop)[0])[0]


@pytest.mark.parametrize("name", [pytest.param("gpt", marks=pytest.mark.slow), "window", "t5"])
def test_outputs_are_those_of_the_offline_api_whatever_joins_and_leaves(models: dict[str, Model], name: str):
    model, rng = models[name], random.Random(1)
    cases = [(prompt, SETTINGS[i % len(SETTINGS)]) for i, prompt in enumerate(prompts(12))]
    cases += [(prompts(1, 70, seed=8)[0], GREEDY), (prompts(1, 90, seed=9)[0], GREEDY)]  # a longer cache, and longer
    rng.shuffle(cases)

    async def ask(engine: DecoderEngine, number: int) -> dict[tuple[int, int], list[Piece]]:
        await asyncio.sleep(0.02 * number * rng.random())
        return await collect(engine, [cases[number][0]], cases[number][1], logprobs=0)

    async def ask_all(engine: DecoderEngine) -> list[dict[tuple[int, int], list[Piece]]]:
        return await asyncio.gather(*(ask(engine, number) for number in range(len(cases))))

    with running(model, slots=3) as engine:
        answers = asyncio.run(ask_all(engine))
    ended = set()
    for (prompt, decoding), answer in zip(cases, answers, strict=True):
        outputs = offline(model, prompt, decoding)
        assert [ids_of(answer[0, k]) for k in range(len(outputs))] == [output.ids for output in outputs]
        for k, output in enumerate(outputs):
            pieces = answer[0, k]
            assert text_of(pieces) == model.tokenizer.decode(output.ids)
            assert pieces[-1].finish_reason == ("stop" if output.ended else "length")
            ended.add(output.ended)
            total = sum(value for piece in pieces for value in piece.logprobs)
            if not output.ended:
                np.testing.assert_allclose(total, output.score, rtol=1e-4)
    assert engine.jobs == [None] * 3 and not engine.requests
