"""Extractive summaries: right sentences, rows of sentences, the choice and its ROUGE."""

import dataclasses
import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from rouge_score.rouge_scorer import RougeScorer

from bertgpt.data.loader import Batches
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.objectives.extract import SelectSentences
from bertgpt.tasks.generation import evaluate_summaries
from bertgpt.tasks.summarization import Document, ExtractiveSummary, Lead, Oracle, best_f1, oracle
from bertgpt.types import DataRequest, HeldOut, UserError, Vocab


def rouge(texts, references) -> dict[str, float]:
    """ROUGE by name."""
    return evaluate_summaries(texts, references).values


SENTENCES = ["The cat sleeps in the house.", "A big bird sings.", "The dog runs under the tree.", "Small cats eat."]
DOCUMENT = Document(SENTENCES, ("the dog runs and the bird sings", "dogs running under trees"))


def write(tmp_path: Path, records: list[dict]) -> ExtractiveSummary:
    path = tmp_path / "documents.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return ExtractiveSummary(str(path), test_path=str(path), validation=0.0, count=2, seq_len=64)


@pytest.fixture
def data(tmp_path: Path) -> ExtractiveSummary:
    records = [{"document": SENTENCES, "summary": list(DOCUMENT.references)}]
    return write(tmp_path, [*records, {"document": " ".join(SENTENCES[::-1]), "summary": "the cat sleeps"}])


def rows(data: ExtractiveSummary, tokenizer: Tokenizer):
    return data.make(
        DataRequest(split="test", seed=0, batch_size=2, tokenizer=tokenizer, cache=Path("x"), shuffle=False)
    ).dataset


def test_counts_for_the_oracle_are_the_librarys_rouge():
    scorer = RougeScorer(["rouge1", "rouge2"], use_stemmer=True)
    from rouge_score.tokenizers import DefaultTokenizer

    tokenize = DefaultTokenizer(use_stemmer=True).tokenize
    for some in itertools.combinations(SENTENCES, 2):
        scores = scorer.score_multi(DOCUMENT.references, " ".join(some))
        for n in (1, 2):
            ours = best_f1(tokenize(" ".join(some)), [tokenize(r) for r in DOCUMENT.references], n)
            assert ours == pytest.approx(scores[f"rouge{n}"].fmeasure)


def test_the_oracle_takes_the_best_sentence_first_and_stops_when_none_helps():
    one = oracle(DOCUMENT, 1)
    value = {i: sum(list(rouge([s], [DOCUMENT.references]).values())[:2]) for i, s in enumerate(SENTENCES)}
    assert one == [max(value, key=value.get)] == [2]
    both = Document(SENTENCES, ("the cat sleeps and the dog runs under the tree",))
    assert oracle(both, 1) == [2] and oracle(both, 2) == [0, 2]
    assert oracle(Document(["something else"], ("the dog",)), 3) == []


def test_rows_mark_where_sentences_begin_and_which_are_right(data: ExtractiveSummary, tokenizer: Tokenizer):
    for packed in (False, True):
        made = rows(dataclasses.replace(data, seq_len=128, packed=packed), tokenizer)
        assert len(made) == (1 if packed else 2)
        for document, ids, marks in zip(
            made.examples,
            made.by_example(made.tables["input_ids"]),
            made.by_example(made.tables["target_mask"]),
            strict=True,
        ):
            begins = np.flatnonzero(marks)
            assert np.all(ids[begins] == tokenizer.vocab.cls) and np.all(ids[begins[1:] - 1] == tokenizer.vocab.sep)
            parts = [tokenizer.decode(part.tolist()) for part in np.split(ids, begins[1:])]
            assert [p.replace(" ", "") for p in parts] == [s.lower().replace(" ", "") for s in document.sentences]
            assert np.flatnonzero(marks[begins] == 2).tolist() == oracle(document, 2)


def test_the_sentences_with_the_highest_probability_are_the_summary(data: ExtractiveSummary, tokenizer: Tokenizer):
    made = rows(data, tokenizer)
    marks = made.tables["target_mask"]
    probabilities = np.where(marks == 2, 0.9, np.where(marks == 1, 0.1, 0.99))  # elsewhere it does not count
    found = list(data.describe(made, {"probabilities": probabilities}))
    for answer, document in zip(found, data.examples("test"), strict=True):
        chosen = [part["sentence"] for part in answer["sentences"]]
        assert set(oracle(document, 2)) <= set(chosen) and chosen == sorted(chosen) and len(chosen) == 2
        assert answer["summary"] == " ".join(document.sentences[i] for i in chosen)
    references = [document.references for document in data.examples("test")]
    assert data.evaluate(made, {"probabilities": probabilities}).values == rouge(
        [answer["summary"] for answer in found], references
    )
    train = Batches(made, 2, 0, shuffle=False)
    lead, best = (baseline.fit(data, train)(HeldOut(data, "test", train)).values for baseline in (Lead(), Oracle()))
    assert lead == rouge([" ".join(d.sentences[:2]) for d in data.examples("test")], references)
    assert best["rouge1"] > lead["rouge1"]


def test_new_documents_need_no_summary(data: ExtractiveSummary, tokenizer: Tokenizer):
    batches = data.predict_batches([{"document": SENTENCES}, {"document": "One cat. Two dogs."}], 2, tokenizer)
    assert [len(document.sentences) for document in batches.dataset.examples] == [4, 2]
    assert batches[0]["target_mask"].max() == 1
    with pytest.raises(UserError, match="document 1 is empty"):
        data.predict_batches([{"document": " "}], 2, tokenizer)


def test_sentences_beyond_the_row_are_counted(data: ExtractiveSummary, tokenizer: Tokenizer):
    notes = rows(dataclasses.replace(data, seq_len=24), tokenizer).warnings
    assert "sentences are beyond 24 tokens and cannot be selected" in notes[0].text
    short = rows(dataclasses.replace(data, seq_len=8), tokenizer)
    assert np.all((short.tables["target_mask"] > 0).sum(axis=1) == 1)  # the first sentence is cut


@pytest.mark.parametrize(
    "record, message",
    [
        ({"document": "A cat."}, "documents.jsonl:1: no column 'summary'; it has 'document'"),
        ({"document": [], "summary": "x"}, "documents.jsonl:1: 'document' is empty"),
        ({"document": "A cat.", "summary": ""}, "documents.jsonl:1: 'summary' is empty"),
    ],
)
def test_a_record_without_document_or_summary_is_named(tmp_path: Path, record: dict, message: str):
    with pytest.raises(UserError, match=message):
        write(tmp_path, [record]).examples("train")


def test_the_loss_is_the_cross_entropy_at_the_beginnings_of_sentences(float64: None):
    mask = jnp.asarray([[1, 0, 2, 0, 0], [2, 0, 0, 1, 0], [0, 0, 0, 0, 0]])
    names = ("input_ids", "segment_ids", "positions", "type_ids")
    batch = {name: jnp.ones((3, 5), jnp.int32) for name in names} | {"target_mask": mask}
    logits = jax.random.normal(jax.random.key(0), (3, 5, 2))

    def apply(params, inputs=None, *, method="__call__", rng=None, **named):
        return logits if method == "tag_logits" else jnp.zeros((3, 5, 4))

    made = SelectSentences().make(Vocab(size=9))
    loss = made.loss(apply, {}, batch, None)
    log_p = scipy.special.log_softmax(np.asarray(logits), axis=-1)
    expected = -(log_p[0, 0, 0] + log_p[0, 2, 1] + log_p[1, 0, 1] + log_p[1, 3, 0])
    np.testing.assert_allclose(loss.terms["cross_entropy"].sum, expected, rtol=1e-12)
    assert loss.terms["cross_entropy"].weight == 4
    np.testing.assert_allclose(made.predict(apply, {}, batch)["probabilities"], np.exp(log_p[..., 1]), rtol=1e-12)
