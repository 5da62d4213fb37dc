"""Imported taggers and heads for answers predict as runs do: against one forward pass and brute force over spans."""

import dataclasses
import json
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from serving_models import ENCODER, make_model

from bertgpt.cli.main import main
from bertgpt.convert.hub import export_model
from bertgpt.data.offsets import locate_tokens
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.inference.entailment import entail
from bertgpt.inference.model import Model, load
from bertgpt.inference.predict import predict
from bertgpt.models.apply import parameter_shapes
from bertgpt.types import Inputs, Labels, UserError

TAGS = ("O", "B-A", "I-A", "B-B", "I-B")
TEXT = "The cat's house runs under a (green) bird"
CONTEXT = "the small cat runs in a house and the bird sings of a tree"


@pytest.fixture(scope="module")
def tagger(tokenizer: Tokenizer) -> Model:
    model = make_model(ENCODER, tokenizer, tag_logits={"num_labels": 5})
    return model._replace(labels=Labels(TAGS, kind="tag"))


@pytest.fixture(scope="module")
def extractor(tokenizer: Tokenizer) -> Model:
    return make_model(ENCODER, tokenizer, span_logits={})


def logits_of(model: Model, ids: list[int], types: list[int], method: str, **named: int) -> np.ndarray:
    hidden = model.apply(model.params, Inputs(jnp.asarray([ids]), type_ids=jnp.asarray([types])))
    return np.asarray(model.apply(model.params, method=method, hidden=hidden, **named))[0]


def test_each_word_has_the_best_tag_of_its_first_token(tagger: Model):
    vocab, words = tagger.tokenizer.vocab, ["The", "cat", "'", "s", "house", "runs", "under", "a", "(", "green", ")", "bird"]  # fmt: skip # noqa: E501
    tokens = tagger.tokenizer.encode(words)
    ids = [vocab.cls, *(i for word in tokens for i in (word or [vocab.unk])), vocab.sep]
    firsts = 1 + np.cumsum([0, *(max(len(word), 1) for word in tokens[:-1])])
    best = logits_of(tagger, ids, [0] * len(ids), "tag_logits", num_labels=5).argmax(-1)[firsts]
    plain = tagger._replace(labels=Labels(tuple("abcde"), kind="tag"))
    assert next(predict(plain, [TEXT])) == {"tagged": [[w, "abcde"[t]] for w, t in zip(words, best, strict=True)]}
    (found,) = predict(tagger, [TEXT])
    covered = [{e["label"] for e in found["entities"] if e["start"] <= TEXT.index(w) < e["end"]} for w in words]
    assert covered == [{TAGS[t][2:]} if t else set() for t in best] and found["entities"]
    assert all(TEXT[e["start"] : e["end"]] == e["text"] for e in found["entities"])
    assert list(predict(tagger, ["", TEXT])) == [{"entities": []}, found]


def test_the_answer_is_the_best_of_all_spans(extractor: Model):
    vocab, question = extractor.tokenizer.vocab, "who sings"
    (asked,) = extractor.tokenizer.encode([question])
    (located,) = locate_tokens(extractor.tokenizer, [CONTEXT])
    head = [vocab.cls, *asked, vocab.sep]
    ids = [*head, *located.ids, vocab.sep]
    scores = logits_of(extractor, ids, [0] * len(head) + [1] * (len(ids) - len(head)), "span_logits")
    best = max(
        (scores[len(head) + a, 0] + scores[len(head) + b, 1], a, b)
        for a in range(len(located.ids))
        for b in range(a, min(a + 30, len(located.ids)))
    )
    (found,) = predict(extractor, [{"question": question, "context": CONTEXT}])
    assert found["score"] == pytest.approx(best[0], abs=1e-3)
    assert (found["start"], found["end"]) == (located.bounds[best[1], 0], located.bounds[best[2], 1])
    assert CONTEXT[found["start"] : found["end"]] == found["answer"] and found["probability"] <= 1
    long = next(predict(extractor, [{"question": question, "context": CONTEXT + " and in a river" * 40}]))
    assert long["answer"]  # in windows


def test_an_imported_model_of_entailment_classifies_without_training(tokenizer: Tokenizer):
    pair = {"segment_ids": jnp.ones((1, 4), jnp.int32), "num_labels": 3}
    nli = make_model(ENCODER, tokenizer, ("CONTRADICTION", "NEUTRAL", "ENTAILMENT"), class_logits=pair)
    labels, vocab = ("cat", "bird"), tokenizer.vocab
    (answer,) = entail(nli, [{"text": "the small bird"}], labels, "it is {label}")
    entailed = []
    for label in labels:
        a, b = tokenizer.encode(["the small bird", f"it is {label}"])
        ids, types = [vocab.cls, *a, vocab.sep, *b, vocab.sep], [0] * (len(a) + 2) + [1] * (len(b) + 1)
        segments = jnp.ones((1, len(ids)), jnp.int32)
        logits = logits_of(nli, ids, types, "class_logits", segment_ids=segments, num_labels=3)
        entailed.append(np.exp(logits[2]) / np.exp(logits).sum())
    wanted = np.array(entailed) / sum(entailed)
    np.testing.assert_allclose(list(answer["probabilities"].values()), wanted, atol=1e-4)


@pytest.mark.parametrize("kind", ["TokenClassification", "QuestionAnswering"])
def test_the_command_predicts_with_an_imported_head(kind: str, tokenizer: Tokenizer, tmp_path: Path, capsys):
    config = dataclasses.replace(ENCODER, activation="gelu", vocab_size=tokenizer.vocab.size)
    heads = {"tag_logits": {"num_labels": 5}} if kind == "TokenClassification" else {"span_logits": {}}
    shapes = nn.unbox(parameter_shapes(config.make(), Inputs(jnp.ones((1, 4), jnp.int32)), heads))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape, scale=0.3).astype(np.float32), shapes)
    labels = Labels(TAGS, kind="tag") if kind == "TokenClassification" else Labels()
    export_model(tmp_path / "hf", config, params, architecture=f"BertFor{kind}", labels=labels, files=tokenizer.files())
    record = {"text": TEXT} if labels.values else {"question": "who sings", "context": CONTEXT}
    assert main(["predict", str(tmp_path / "hf"), "--record", json.dumps(record)]) == 0
    (wanted,) = predict(load(tmp_path / "hf"), [record])
    assert json.loads(capsys.readouterr().out) == record | wanted


def test_a_model_without_such_a_head_has_no_task(tokenizer: Tokenizer, tagger: Model):
    with pytest.raises(UserError, match="tiny: is not a run, so it has no task"):
        list(predict(make_model(ENCODER, tokenizer), ["a"]))
    with pytest.raises(UserError, match="tiny: is not a run, so it has no task"):
        list(predict(tagger._replace(tokenizer=None), ["a"]))
    with pytest.raises(UserError, match="record 1: has no field 'text'; tiny needs text"):
        list(predict(tagger._replace(path=Path("tiny")), [{"words": "a"}]))
