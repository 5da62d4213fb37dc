"""A served model that batches answers as one that does not, for runs of classification too."""

import asyncio
import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import fast
from serving_models import DECODER, ENCODER, make_model

from bertgpt.config import Experiment
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.inference.model import Model
from bertgpt.objectives.classify import Classify, ClassifyMany, ClassifyOrdinal, Regress
from bertgpt.serving.batched import BatchedServed
from bertgpt.serving.decoder import DecoderOptions
from bertgpt.serving.encoder import EncoderEngine
from bertgpt.serving.errors import Refusal
from bertgpt.serving.limits import Batching, Limits
from bertgpt.serving.served import Served
from bertgpt.tasks.classification import TextClassification
from bertgpt.training.optim import AdamW
from bertgpt.types import UserError

LABELS = ("bad", "fair", "good")
DATA = TextClassification("reviews.jsonl", labels=LABELS, second_field="other", seq_len=24, packed=True)
RUNS = {
    "one label of pairs": (Classify(3), DATA, 3),
    "several labels": (ClassifyMany(3), dataclasses.replace(DATA, second_field=None, target="labels", packed=False), 3),
    "a number of pairs": (Regress(2.5), dataclasses.replace(DATA, labels=(), target="number"), 1),
    "ordered labels": (ClassifyOrdinal(3), DATA, 2),
}
TEXTS = ["the cat sleeps", "a", "the big green house sings of the small blue bird and runs in a river of a tree " * 2]


def run_model(name: str, tokenizer: Tokenizer) -> Model:
    objective, data, outputs = RUNS[name]
    heads = {"class_logits": {"segment_ids": jnp.ones((1, 4), jnp.int32), "num_labels": outputs}}
    model = make_model(ENCODER, tokenizer, **heads)
    experiment = Experiment(name="run", model=ENCODER, objective=objective, data=data, optim=AdamW(), steps=1)
    made = objective.make(tokenizer.vocab)
    return model._replace(experiment=experiment, objective=made, labels=data.label_set)


def both(model: Model, call) -> tuple:
    """What a call gives with and without batching."""

    async def main() -> tuple:
        plain, batched = Served("plain", model), BatchedServed("batched", model)
        batched.engine = EncoderEngine(model, 48)
        batched.engine.counters = batched.counters
        await batched.start()
        try:
            return await call(plain), await call(batched), batched
        finally:
            await batched.stop()
            await plain.stop()

    return asyncio.run(main())


@pytest.mark.parametrize("name", fast(RUNS, "one label of pairs"))
def test_runs_of_classification_give_the_same_records_and_scores(name: str, tokenizer: Tokenizer):
    model = run_model(name, tokenizer)
    fields = model.run.data.inputs
    items = [tuple(TEXTS[(i + j) % 3] for j in range(len(fields))) for i in range(3)]
    records = [dict(zip(fields, item, strict=True)) for item in items]

    async def call(served: Served) -> tuple:
        scores = [await served.class_scores(items, raw, "end") for raw in (False, True)]
        return await served.predict(records), scores

    (records_a, scores_a), (records_b, scores_b), batched = both(model, call)
    for a, b in zip(records_a, records_b, strict=True):
        assert a.keys() == b.keys()
        assert [str(v) for v in a.values() if isinstance(v, str)] == [str(v) for v in b.values() if isinstance(v, str)]
    for (names_a, a), (names_b, b) in zip(scores_a, scores_b, strict=True):
        assert names_a == names_b
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert (batched.counters["batch_tokens"] > 0) == (name != "ordered labels")  # those are left to the plain way
    assert batched.counters["batch_positions"] >= batched.counters["batch_tokens"] and batched.waiting == 0


def test_cross_encoders_score_pairs_as_without_batching(tokenizer: Tokenizer):
    heads = {"class_logits": {"segment_ids": jnp.ones((1, 4), jnp.int32), "num_labels": 1}}
    model = make_model(ENCODER, tokenizer, **heads)
    a, b, _ = both(model, lambda served: served.score_pairs("a dog", TEXTS, "end"))
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_models_without_an_encoder_are_served_as_before(tokenizer: Tokenizer, served: dict):
    batched = BatchedServed("t5", served["t5"].model)
    assert batched.engine is None and not batched.computes("vectors") and batched.can == served["t5"].can
    asyncio.run(batched.stop())


def test_the_settings_of_the_server_reach_the_engines(tokenizer: Tokenizer):
    limits, batching = Limits(max_requests=7, timeout=9), Batching(3, 20, 5, 256, 1000)
    gpt, bert = (BatchedServed("m", make_model(config, tokenizer), limits, batching) for config in (DECODER, ENCODER))
    assert gpt.decoder.options == DecoderOptions(slots=3, slot_len=20, max_waiting=5, timeout=9)
    queue = bert.engine.queue
    assert (queue.max_requests, queue.max_tokens, queue.shapes.budget, bert.engine.timeout) == (7, 1000, 256, 9)


def test_messages_name_the_model_and_hide_its_path(tokenizer: Tokenizer):
    served = Served("mine", make_model(ENCODER, tokenizer)._replace(path=Path("/srv/models/m")))
    for text, shown in (
        ("/srv/models/m: has no head", "mine: has no head"),
        ("text 1: /srv/models/m/vocab.txt is damaged", "text 1: mine/vocab.txt is damaged"),
        ("/srv/models/main: is another", "/srv/models/main: is another"),
    ):
        for error in (UserError(text), Refusal(422, text)):
            assert served.explain(error).message == shown
    assert served.explain(RuntimeError("/srv/models/m")).status == 500
