"""Tokens per second of continuous batching, beside the same requests one at a time: GPT-2-124M with random weights.

    python -m benchmarks.serving_decode [--clients 1 4 8] [--requests 2] [--new_tokens 32] [--output FILE]

Each client sends its requests one after another: a prompt of 8 to 64 tokens, to be continued by greedy search. The two
ways take turns, once for each number of clients, after both were compiled. About 3 minutes on two cores.
"""

import argparse
import asyncio
import json
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np

from bertgpt.data.tokenizer import ByteBPE
from bertgpt.inference.decoding import Decoding
from bertgpt.inference.generate import generate_ids, split_stops
from bertgpt.inference.model import Model
from bertgpt.layers.stack import for_inference
from bertgpt.models.apply import make_apply, parameter_shapes
from bertgpt.models.gpt import GPT2_SMALL, GptConfig
from bertgpt.serving.decoder import DecoderEngine, DecoderOptions
from bertgpt.types import Inputs

LONGEST_PROMPT = 64


def random_model(config: GptConfig = GPT2_SMALL) -> Model:
    """A model with random weights, and a small tokenizer: only its first tokens are generated."""
    tokenizer = ByteBPE(300).make(lambda: iter(["a few words"]))
    shapes = nn.unbox(parameter_shapes(config.make(), Inputs(np.ones((1, 4), np.int32)), {}))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32) * 0.02, shapes)
    params = jax.device_put(for_inference(params, config.stacks, "float32"))
    return Model(config, tokenizer, make_apply(config.make()), params, Path("random"))


def measure(
    model: Model, clients: Sequence[int] = (1, 4, 8), requests: int = 2, new_tokens: int = 32, slots: int = 8
) -> list[dict[str, float]]:
    """Tokens per second for each number of clients.

    Args:
      model: a decoder.
      clients: numbers of clients that ask at the same time.
      requests: that each client sends, one after another.
      new_tokens: of each request.
      slots: of the engine.
    """
    decoding = Decoding(max_new_tokens=new_tokens, min_new_tokens=new_tokens)
    stops, _ = split_stops(model, ())
    rng = random.Random(0)

    def prompt() -> list[int]:
        return [rng.randrange(5, 300) for _ in range(rng.randint(8, LONGEST_PROMPT))]

    def alone(ids: list[int]) -> None:
        generate_ids(model.apply, model.params, model.config, [ids], decoding, stops)

    async def client(engine: DecoderEngine, prompts: list[list[int]]) -> None:
        for ids in prompts:
            async for _ in engine.generate([ids], decoding):
                pass

    async def ask_all(engine: DecoderEngine, asked: list[list[list[int]]]) -> None:
        await asyncio.gather(*(client(engine, prompts) for prompts in asked))

    rows = []
    with ThreadPoolExecutor(1) as thread:
        options = DecoderOptions(slots=slots, slot_len=2 * LONGEST_PROMPT + 2 * new_tokens)
        engine = DecoderEngine(model, thread, options)
        begin = time.perf_counter()
        thread.submit(engine.warm_up).result()
        warm = time.perf_counter() - begin
        for width in (16, 32, 64):
            alone([5] * width)
        asyncio.run(ask_all(engine, [[prompt()]]))
        for number in clients:
            asked = [[prompt() for _ in range(requests)] for _ in range(number)]
            tokens = number * requests * new_tokens
            begin = time.perf_counter()
            asyncio.run(ask_all(engine, asked))
            middle = time.perf_counter()
            for ids in (ids for prompts in asked for ids in prompts):
                alone(ids)
            end = time.perf_counter()
            rows.append({
                "clients": number, "engine_tokens_per_s": tokens / (middle - begin),
                "one_at_a_time_tokens_per_s": tokens / (end - middle),
                "ratio": (end - middle) / (middle - begin), "warm_up_s": warm,
            })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--requests", type=int, default=2, help="that each client sends")
    parser.add_argument("--new_tokens", type=int, default=32)
    parser.add_argument("--output", type=Path, help="JSON file for the rows")
    options = parser.parse_args()
    rows = measure(random_model(), options.clients, options.requests, options.new_tokens)
    print(f"warm-up: {rows[0]['warm_up_s']:.0f} s")
    print(f"{'clients':>7} {'engine tok/s':>13} {'one at a time':>14} {'ratio':>6}")
    for row in rows:
        print(
            f"{row['clients']:>7} {row['engine_tokens_per_s']:>13.1f} {row['one_at_a_time_tokens_per_s']:>14.1f}"
            f" {row['ratio']:>6.2f}"
        )
    if options.output:
        options.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
