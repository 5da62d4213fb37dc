"""Batched encoders give what the offline functions give, whatever else is in the batch, and compile nothing more."""

import asyncio
import dataclasses
import random
from collections.abc import Awaitable, Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import WORDS, fast
from serving_models import make_model

from bertgpt.convert.sentence_transformers import Dense, Embedder, LayerNorm, Module, Normalize, Pooling
from bertgpt.data.examples import encode_texts
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.inference.encode import classify, embed, fill_mask, pad, tokenize
from bertgpt.inference.model import Model
from bertgpt.models.bert import BertConfig
from bertgpt.models.gpt import GptConfig
from bertgpt.serving import queue
from bertgpt.serving.batched import BatchedServed
from bertgpt.serving.encoder import EncoderEngine
from bertgpt.serving.queue import Text
from bertgpt.types import Inputs, UserError

SIZE = {"d_model": 16, "num_layers": 2, "num_heads": 2, "d_ff": 32}
BERT = BertConfig(200, **SIZE, max_len=40, activation="gelu")
CONFIGS = {
    "bert": BERT,
    "albert": dataclasses.replace(BERT, embed_dim=8, shared_groups=1, pooler="mean"),
    "electra": dataclasses.replace(BERT, embed_dim=8, pooler="dropout_gelu", first_position=2, num_types=0),
    "gpt": GptConfig(200, **SIZE, max_len=40),
}
LABELS = ("bad", "fair", "good")
SEEDS = (0, 1, 2)


def random_model(config: BertConfig | GptConfig, tokenizer: Tokenizer, modules: tuple[Module, ...] = ()) -> Model:
    """A model with all its heads; with `modules`, as of a folder of sentence-transformers with random modules."""
    heads = {"class_logits": {"segment_ids": jnp.ones((1, 4), jnp.int32), "num_labels": len(LABELS)}}
    heads |= {"mlm_logits": {}} if isinstance(config, BertConfig) else {}
    model = make_model(config, tokenizer, LABELS, **heads)
    rng, width, params = np.random.default_rng(0), config.d_model, []
    for module in modules:
        width *= len(module.modes) if isinstance(module, Pooling) else 1
        shape = {"kernel": (width, width), "bias": (width,)} if isinstance(module, Dense) else {}
        shape = {"scale": (width,), "bias": (width,)} if isinstance(module, LayerNorm) else shape
        params.append({name: rng.normal(0, 0.4, size).astype(np.float32) for name, size in shape.items()})
    prompts = {"query": "the big river sings ", "passage": "a dog "}
    embedder = Embedder(modules, tuple(params), 24, prompts=prompts, default_prompt="passage", truncate_dim=13)
    return model._replace(embedder=embedder if modules else None)


@pytest.fixture(scope="module", params=fast(CONFIGS, "bert", "gpt"))
def engine(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> EncoderEngine:
    modules = (Pooling(("lasttoken",)), Normalize()) if request.param == "gpt" else ()
    return warm(random_model(CONFIGS[request.param], tokenizer, modules))


def warm(model: Model, budget: int = 80) -> EncoderEngine:
    engine = EncoderEngine(model, budget)
    engine.warm_up()
    return engine


def serve(engine: EncoderEngine, work: Callable[[BatchedServed], Awaitable]) -> object:
    """Runs a coroutine with a new thread of a warm engine, for a minute at most."""

    async def main() -> object:
        served = BatchedServed("model", engine.model)
        served.engine = EncoderEngine(engine.model, engine.shapes.budget)
        served.engine.programs = engine.programs
        served.engine.start()
        try:
            async with asyncio.timeout(60):
                return await work(served)
        finally:
            await served.stop()

    return asyncio.run(main())


def texts(seed: int, count: int = 12, mask: str | None = None) -> list[str]:
    """Texts of all lengths, some longer than the model reads."""
    rng = random.Random(seed)
    found = [[rng.choice(WORDS) for _ in range(rng.choice((1, 3, 6, 12, 20, 60)))] for _ in range(count)]
    if mask:
        for words in found:
            for _ in range(rng.randint(1, 3)):
                words[rng.randrange(min(len(words), 8))] = mask
    return [" ".join(words) for words in found]


async def noise(engine: EncoderEngine, seed: int) -> None:
    """Random neighbours of all kinds."""
    rng = np.random.default_rng(seed)

    async def one(kind: str, length: int) -> None:
        ids = rng.integers(5, 180, length).tolist()
        await engine.run(kind, [Text(ids, first=length // 2, skipped=1, masks=(0,) if kind == "masks" else ())])

    await asyncio.gather(*(one(rng.choice(engine.kinds), int(rng.integers(1, 24))) for _ in range(40)))


def in_company(engine: EncoderEngine, seed: int, call: Callable[[BatchedServed, list], Awaitable], items: list) -> list:
    """What single calls give, one after another and then all at once among random neighbours."""

    async def alone(served: BatchedServed) -> list:
        return [await call(served, [item]) for item in items]

    async def together(served: BatchedServed) -> list:
        # The device is busy with noise when the calls come, so that they share batches with it and each other.
        busy = asyncio.ensure_future(noise(served.engine, seed))
        await asyncio.sleep(0)
        *found, _ = await asyncio.gather(*(call(served, [item]) for item in items), busy)
        return found

    return [serve(engine, alone), serve(engine, together), [serve(engine, lambda served: call(served, items))]]


def embedding(**named: object) -> Callable[[BatchedServed, list], Awaitable]:
    return lambda served, items: served.embed(items, truncate="end", **named)


def test_vectors_are_those_of_embed(engine: EncoderEngine):
    for seed in SEEDS:
        items, normalize = texts(seed), (None, False, True)[seed]
        wanted = embed(engine.model, items, normalize=normalize, batch_size=len(items))
        for found in in_company(engine, seed, embedding(normalize=normalize), items):
            np.testing.assert_allclose(np.concatenate([vectors for vectors, _ in found]), wanted, atol=1e-5)


def reference(model: Model, items: list[tuple[list[int], int]]) -> np.ndarray:
    """Class logits of token ids with this many of type 0, one sequence a row."""
    ids, segments = pad([ids for ids, _ in items], len(items), 40)
    types = np.arange(40)[None] >= np.array([first for _, first in items])[:, None]

    @jax.jit
    def run(params: dict, inputs: Inputs) -> jax.Array:
        hidden = model.apply(params, inputs)
        named = {"segment_ids": inputs.segment_ids, "num_labels": len(LABELS)}
        return model.apply(params, method="class_logits", hidden=hidden, **named)

    return np.asarray(run(model.params, Inputs(ids, segments, type_ids=types.astype(np.int32))))


def test_class_logits_are_those_of_one_text_a_row(engine: EncoderEngine):
    for seed in SEEDS:
        items = texts(seed)
        wanted = reference(engine.model, [(ids, len(ids)) for ids in tokenize(engine.model, items, decoders=True)])
        for found in in_company(engine, seed, lambda e, part: e.class_scores([(x,) for x in part], True, "end"), items):
            np.testing.assert_allclose(np.concatenate([scores for _, scores in found]), wanted, atol=1e-5)
        answers = list(classify(engine.model, items, len(items)))
        for found in in_company(engine, seed, lambda e, part: e.classify(part), items):
            for a, b in zip([answer for part in found for answer in part], answers, strict=True):
                assert a["label"] == b["label"] and a["probabilities"] == pytest.approx(b["probabilities"], abs=1.01e-4)


def test_scores_of_pairs_are_those_of_one_pair_a_row(engine: EncoderEngine):
    for seed in SEEDS:
        pairs = list(zip(texts(seed), texts(seed + 100), strict=True))
        encoded = encode_texts(engine.model.tokenizer, pairs, engine.model.config.max_len)
        wanted = reference(engine.model, list(zip(encoded.ids, encoded.first.tolist(), strict=True)))
        for found in in_company(engine, seed, lambda e, part: e.class_scores(part, True, "end"), pairs):
            np.testing.assert_allclose(np.concatenate([scores for _, scores in found]), wanted, atol=1e-5)


def test_masks_are_filled_as_fill_mask_fills_them(engine: EncoderEngine):
    if "masks" not in engine.kinds:
        assert isinstance(engine.model.config, GptConfig)
        with pytest.raises(UserError, match="is not an encoder"):
            serve(engine, lambda served: served.fill_mask(["a [MASK]"], 4))
        return
    for seed in SEEDS:
        items = texts(seed, mask="[MASK]")
        wanted = list(fill_mask(engine.model, items, 4, len(items)))
        for found in in_company(engine, seed, lambda e, part: e.fill_mask(part, 4), items):
            for answer, masks in zip([answer for part in found for answer in part], wanted, strict=True):
                assert [list(tokens) for tokens in answer] == [list(tokens) for tokens in masks]
                p = [list(tokens.values()) for tokens in answer]
                np.testing.assert_allclose(p, [list(tokens.values()) for tokens in masks], atol=1.01e-4)  # four digits


MODULES = {
    "mean and cls": (Pooling(("mean", "cls")), Dense("GELU", residual=True), Normalize()),
    "max without prompt": (
        Dense("Tanh", "token_embeddings"), Pooling(("max", "weightedmean"), include_prompt=False), LayerNorm(),
    ),
    "others without prompt": (
        Pooling(("mean_sqrt_len_tokens", "lasttoken", "cls"), include_prompt=False), Dense("ReLU"), Normalize(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", fast(MODULES, "max without prompt"))
def test_modules_of_sentence_transformers_see_their_own_text_only(name: str, tokenizer: Tokenizer):
    engine = warm(random_model(BERT, tokenizer, MODULES[name]))
    for seed, named in zip(SEEDS, ({}, {"prompt_name": "query"}, {"prompt": "tree "}), strict=True):
        items = texts(seed, 6)
        wanted = embed(engine.model, items, batch_size=len(items), **named)
        for found in in_company(engine, seed, embedding(**named), items):
            np.testing.assert_allclose(np.concatenate([v for v, _ in found]), wanted, atol=1e-5)


def test_token_ids_are_taken_as_they_are_and_counted(engine: EncoderEngine):
    ids = [[2, 10, 11, 12, 3], [2, 10, 3]]
    (vectors, counts), (again, _) = serve(
        engine, lambda e: asyncio.gather(e.embed(ids, normalize=False), e.embed(ids[1:], normalize=False))
    )
    assert counts == [5, 3] and vectors.dtype == np.float32 and len(vectors) == 2
    np.testing.assert_allclose(vectors[1:], again, atol=1e-5)
    for wrong, message in (([[]], "input 0 has 0 tokens"), ([[2], [3] * 99], "input 1 has 99"), ([[200]], "outside")):
        with pytest.raises(UserError, match=message):
            serve(engine, lambda e, wrong=wrong: e.embed_ids(wrong))


@pytest.fixture
def compilations() -> Iterator[list[str]]:
    """Names of compilation events while a test runs."""
    found: list[str] = []

    def listen(event: str, seconds: float, **_: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


def test_a_warm_up_ends_early_when_the_server_stops(engine: EncoderEngine, compilations: list[str]):
    other = EncoderEngine(engine.model, engine.shapes.budget)
    asyncio.run(other.stop())
    other.warm_up()
    assert not other.programs and not compilations


def test_nothing_is_compiled_after_warm_up(engine: EncoderEngine, compilations: list[str]):
    jax.jit(lambda x: x + 1)(np.ones(3))
    assert len(compilations) == 1  # compilations are seen here
    assert len(engine.programs) == len(engine.shapes.every) * (1 + len(engine.kinds))
    rng = np.random.default_rng(0)

    async def random_requests(served: BatchedServed) -> None:
        async def one(number: int) -> None:
            await asyncio.sleep(rng.random() * 0.2)
            kind = rng.choice(engine.kinds)
            sizes = rng.integers(1, engine.shapes.max_len + 1, rng.integers(1, 6))
            found = [Text([7] * n, masks=(0,) if kind == "masks" else ()) for n in sizes.tolist()]
            assert len(await served.engine.run(kind, found)) == len(found)

        await asyncio.gather(*map(one, range(200)))

    serve(engine, random_requests)
    assert len(compilations) == 1


def test_texts_longer_than_a_packed_row_get_rows_of_their_own_width(tokenizer: Tokenizer, monkeypatch):
    monkeypatch.setattr(queue, "NARROW", (64,))
    model = random_model(dataclasses.replace(BERT, max_len=200), tokenizer)
    engine = warm(model, budget=200)
    assert engine.shapes.every == ((1, 64), (1, 128), (1, 200))
    items = [" ".join(WORDS[i % 20] for i in range(n)) for n in (150, 3, 100, 10, 190, 500)]
    for found in in_company(engine, 0, embedding(), items):
        np.testing.assert_allclose(np.concatenate([v for v, _ in found]), embed(model, items, batch_size=6), atol=1e-5)


def test_numbers_that_are_not_finite_stay_with_their_request(tokenizer: Tokenizer):
    model = random_model(BERT, tokenizer)
    token = np.array(model.params["embeddings"]["token"])
    token[77] = np.nan
    broken = model._replace(params=model.params | {"embeddings": model.params["embeddings"] | {"token": token}})
    engine = warm(broken)

    async def both(served: BatchedServed) -> list:
        return await asyncio.gather(*(served.embed([ids]) for ids in ([2, 9, 10, 3], [2, 77, 3], [2, 12, 3], [3] * 5)))

    (first, _), (spoilt, _), (last, _), _ = serve(engine, both)
    assert np.isnan(spoilt).all() and np.isfinite(first).all() and np.isfinite(last).all()
    clean, _ = serve(engine, lambda e: e.embed([[2, 9, 10, 3]]))
    np.testing.assert_allclose(first, clean, atol=1e-5)
