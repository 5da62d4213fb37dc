"""Questions and answers: reading, windows, decoding, official scores, and a whole run."""

import collections
import dataclasses
import json
import random
import re
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bertgpt.config import Eval, Experiment, Mesh
from bertgpt.data.loader import Batches
from bertgpt.data.tokenizer import ByteBPE, SentencePiece, Tokenizer
from bertgpt.inference.model import load
from bertgpt.inference.predict import predict
from bertgpt.models.bert import BertConfig
from bertgpt.models.gpt import GptConfig
from bertgpt.objectives.qa import ExtractSpan
from bertgpt.tasks.answers import best_threshold, exact_match, f1, normalize_answer, score_answers
from bertgpt.tasks.question_answering import NoAnswer, OverlapSentence, QuestionAnswering
from bertgpt.tasks.squad import Span, find_answer
from bertgpt.tasks.windows import Question, WindowDataset, central, window_starts
from bertgpt.training.evaluate import evaluate
from bertgpt.training.loop import train
from bertgpt.training.optim import AdamW
from bertgpt.types import DataRequest, UserError

CONTEXT = "The big cat sleeps under the green tree. A small bird sings in the river house."
FACTS = [
    ("what sleeps", "The big cat", 0),
    ("what sings", "A small bird", 41),
    ("where is the cat", "under the green tree", 19),
    ("who eats the dog", None, 0),
]


def squad(version: str = "v2.0") -> dict[str, Any]:
    qas = [
        {
            "id": str(i),
            "question": question,
            "answers": [] if answer is None else [{"text": answer, "answer_start": start}],
            "is_impossible": answer is None,
        }
        for i, (question, answer, start) in enumerate(FACTS)
    ]
    qas[-1]["plausible_answers"] = [{"text": "river", "answer_start": 68}]
    return {"version": version, "data": [{"title": "Animals", "paragraphs": [{"context": CONTEXT, "qas": qas}]}]}


def write(path: Path, content: Any) -> str:
    if path.suffix == ".json":
        path.write_text(json.dumps(content))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
    else:
        path.write_text(content)
    return str(path)


def data_at(path: str, **settings: Any) -> QuestionAnswering:
    return QuestionAnswering(
        path, **{"seq_len": 32, "stride": 6, "max_question": 8, "validation": 0.0, "test": 0.0} | settings
    )


def make(data: QuestionAnswering, tokenizer: Tokenizer, split: str = "train", batch_size: int = 4) -> Batches:
    return data.make(
        DataRequest(
            split=split, seed=0, batch_size=batch_size, tokenizer=tokenizer, cache=Path("unused"), shuffle=False
        )
    )


# -- reading ----------------------------------------------------------------------------------------------------------


def test_squad_lists_and_tables_say_the_same(tmp_path: Path):
    flat = [{"question": q, "context": CONTEXT, "answer": a or "", "start": s} for q, a, s in FACTS]
    lists = [
        {"question": q, "context": CONTEXT, "answers": {"text": [a] * bool(a), "answer_start": [s] * bool(a)}}
        for q, a, s in FACTS
    ]
    table = "question,context,answer\n" + "".join(f'{q},"{CONTEXT}",{a or ""}\n' for q, a, _ in FACTS)
    expected, warnings = data_at(write(tmp_path / "squad.json", squad())).load("train")
    assert warnings == () and [item.span for item in expected][:2] == [Span(0, 11), Span(41, 53)]
    assert expected[3].answers == () and expected[3].span is None  # what is only plausible is no answer
    assert data_at(write(tmp_path / "hf.jsonl", lists)).examples("train") == expected
    assert data_at(write(tmp_path / "hf.json", lists)).examples("train") == expected
    fields = {"answer_field": "answer", "start_field": "start"}
    assert data_at(write(tmp_path / "flat.jsonl", flat), **fields).examples("train") == expected
    assert data_at(write(tmp_path / "flat.csv", table), answer_field="answer").examples("train") == expected
    null = [dict(row, answers=row["answers"]["text"] or None) for row in lists]
    assert data_at(write(tmp_path / "null.jsonl", null)).examples("train") == expected


@pytest.mark.parametrize(
    "answer, start, expected",
    [
        ("cat", None, "cat"),
        ("cat", 8, "cat"),
        ("the", None, "the"),  # not the capital one
        ("sing", None, "sing"),  # only part of a word
        ("GREEN  tree", None, "green tree"),
        ("tree", 5, "tree"),  # it starts elsewhere
        ("dog", None, None),
        ("sleep under", None, None),
    ],
)
def test_an_answer_is_found_in_its_context(answer: str, start: int | None, expected: str | None):
    span = find_answer(CONTEXT, answer, start)
    assert (None if span is None else CONTEXT[span.start : span.end]) == expected


def test_whole_words_and_the_nearest_place_come_first():
    text = "cats scatter, a cat, the cat; two - thirds"
    assert find_answer(text, "cat") == Span(16, 19)
    assert find_answer(text, "cat", 24) == Span(25, 28)
    assert find_answer(text, "cat", 0) == Span(0, 3)  # as the file says
    assert text[slice(*find_answer(text, "two-thirds"))] == "two - thirds"
    for context, answer in (("15 euros", "1.5"), ("a c b", "C++"), ("score 21", "2-1"), ("about 5", "-5"), ("5", "$5")):
        assert find_answer(context, answer) is None  # signs are not punctuation
    assert find_answer("he likes c++ .", "C++") == Span(9, 12)
    assert find_answer("the Rock 'n' Roll", "rock n roll.") == Span(4, 17)


def test_starts_that_count_bytes_or_units_of_utf16_name_the_answer_they_mean(tmp_path: Path):
    context = "é" * 20 + " cat \U0001f600 dog, and a cat or a cat."
    places = [match.start() for match in re.finditer("cat", context)]
    for encoding, unit in (("utf-8", 1), ("utf-16-le", 2), ("utf-32-le", 4)):
        for place in places:
            start = len(context[:place].encode(encoding)) // unit
            assert find_answer(context, "cat", start) == Span(place, place + 3), (encoding, place)
    starts = [places[0], len(context[: places[0]].encode()), places[2] - 1]
    texts = ["cat", "cat", " cat"]
    answers = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
    rows = [{"question": f"q{i}", "context": context, "answers": [answer]} for i, answer in enumerate(answers)]
    loaded = QuestionAnswering(write(tmp_path / "a.jsonl", rows), validation=0, test=0).load("train")
    assert [item.span.start for item in loaded.examples] == [places[0], places[0], places[2]]
    assert [(w.kind, w.count) for w in loaded.warnings] == [("repaired", 1)]


def test_answers_that_are_not_there_are_counted_and_scored_but_not_trained_on(tmp_path: Path, tokenizer: Tokenizer):
    rows = [
        {"question": "what sleeps", "context": CONTEXT, "answers": ["cat"]},
        {"question": "what runs", "context": CONTEXT, "answers": ["a dog of blue"]},
        {"question": "what sings", "context": CONTEXT, "answers": [{"text": "bird", "answer_start": 3}]},
        {"question": " ", "context": CONTEXT, "answers": []},
    ]
    path = write(tmp_path / "a.jsonl", rows)
    batches = make(data_at(path), tokenizer)
    assert {item.question for item in batches.dataset.examples} == {"what sleeps", "what sings"}
    assert tuple(w.text for w in batches.dataset.warnings)[:3] == (
        "1 questions are skipped: they or their contexts are empty",
        "1 of 3 questions have answers that are not in their context: not trained on",
        "1 of 3 answers do not start where the file says: the nearest occurrence is used, or the one at that byte",
    )
    held_out = make(data_at(path, test_path=path), tokenizer, "test")
    owner = held_out.dataset.owner
    assert len(held_out.dataset.examples) == 4 and "scored, but have no loss" in held_out.dataset.warnings[1].text
    assert (held_out.dataset.extra["start"][owner == 1] == -1).all() and (
        held_out.dataset.extra["start"][owner != 1] >= 0
    ).all()


def test_questions_of_a_context_stay_together(tmp_path: Path):
    rows = [
        {"question": f"question {q}", "context": f"the cat {c}", "answers": ["cat"]}
        for c in range(40)
        for q in range(3)
    ]
    data = data_at(write(tmp_path / "a.jsonl", rows), validation=0.3, test=0.3)
    contexts = [{item.context for item in data.examples(split)} for split in ("train", "validation", "test")]
    assert sum(map(len, contexts)) == 40 == len(set.union(*contexts))


def paragraph(**values: Any) -> dict[str, Any]:
    return {"data": [{"paragraphs": [values]}]}


def row(answers: Any) -> list[dict[str, Any]]:
    return [{"question": "q", "context": "c", "answers": answers}]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.json", paragraph(context="x"), "a.json: after question 0: there is no list 'qas'"),
        ("a.json", paragraph(qas=[{"question": "q", "answers": []}]), "a.json:1: 'context' is null"),
        ("a.json", paragraph(context="c", qas=[{"question": "q"}]), "a.json:1: there is no list 'answers'"),
        ("a.json", {"version": "2"}, "a.json: must be .* in SQuAD's format, or a list of objects"),
        ("a.jsonl", [{"question": "q"}], "a.jsonl:1: no column 'context'; it has 'question'"),
        (
            "a.jsonl",
            [{"question": "q", "context": "c"}],
            "a.jsonl:1: no column 'answers'; it has 'question', 'context'",
        ),
        ("a.jsonl", row([3]), "a.jsonl:1: 'answers' must hold texts, or objects"),
        ("a.jsonl", row([{"text": "c", "answer_start": "x"}]), "a.jsonl:1: an answer starts at 'x'"),
        ("a.jsonl", row(["d"]), "zero train examples: no answer is in its context"),
        ("a.jsonl", [{"question": "", "context": "c", "answers": ["c"]}], "zero train examples"),
    ],
)
def test_mistakes_in_files_are_named(tmp_path: Path, name: str, content: Any, message: str):
    with pytest.raises(UserError, match=message):
        data_at(write(tmp_path / name, content)).examples("train")


def test_what_is_not_json_is_named(tmp_path: Path):
    (tmp_path / "a.json").write_text('{"data":\n [}')
    with pytest.raises(UserError, match=r"a.json: cannot be read as JSON: .* line 2 column 3"):
        data_at(str(tmp_path / "a.json")).examples("train")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"seq_len": 15}, "must exceed max_question=8 by at least 8"),
        ({"stride": 0}, "stride=0 must be at least 1"),
        ({"strip_html": True}, "would shift the answers"),
        ({"n_best": 0}, "n_best=0"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings: dict, message: str):
    with pytest.raises(UserError, match=message):
        data_at("x.json", **settings)


# -- windows ----------------------------------------------------------------------------------------------------------


def test_each_token_is_central_in_the_window_that_sees_it_most_widely():
    rng = random.Random(0)
    for _ in range(300):
        length, room, stride = rng.randint(0, 60), rng.randint(2, 20), rng.randint(1, 20)
        starts = window_starts(length, room, stride)
        assert starts[-1] + room >= length and all(a + room < length for a in starts[:-1])
        ends = [min(start + room, length) for start in starts]
        ranges = central(starts, room, length)
        for token in range(length):
            seen = [min(token - a, b - 1 - token) if a <= token < b else -1 for a, b in zip(starts, ends, strict=True)]
            assert max(seen) >= 0, "no token is lost"
            owners = [i for i, (a, b) in enumerate(ranges) if a <= token < b]
            assert owners == [seen.index(max(seen))]


@pytest.mark.parametrize("kind", ["wordpiece", "byte_bpe", "albert"])
def test_labels_lead_back_to_the_answer_in_every_window_that_has_it(kind: str, tokenizer: Tokenizer):
    if kind != "wordpiece":
        trainer = ByteBPE(300) if kind == "byte_bpe" else SentencePiece(vocab_size=60, style="albert")
        tokenizer = trainer.make(lambda: iter([CONTEXT] * 3))
    rng, questions = random.Random(1), []
    for _ in range(20):
        words = re.findall(r"\S+", CONTEXT) * 3
        rng.shuffle(words)
        context, first = " ".join(words), rng.randrange(len(words) - 3)
        span = Span(len(" ".join([*words[:first], ""])), len(" ".join(words[: first + rng.randint(1, 3)])))
        span = span if span.end > span.start else Span(span.start, len(context))
        questions.append(Question("what is it", context, (context[span.start : span.end],), span))
    rows = WindowDataset(questions, tokenizer, seq_len=40, stride=7, max_question=10)
    found = collections.Counter()
    batch = rows.gather(np.arange(len(rows)))
    for row, number in enumerate(rows.owner):
        item, start, end = questions[number], batch["start"][row], batch["end"][row]
        ids = batch["input_ids"][row, batch["context_start"][row] : batch["context_end"][row]].tolist()
        assert (batch["type_ids"][row] == 1).nonzero()[0][0] == batch["context_start"][row]
        shift = rows.shift[row]
        assert ids == tokenizer.encode([item.context])[0][batch["context_start"][row] - shift :][: len(ids)]
        if start > 0:
            bounds = rows.bounds[number]
            assert item.context[bounds[start - shift, 0] : bounds[end - shift, 1]] == item.answers[0]
            found[number] += 1
        else:
            assert start == end == 0
    assert len(found) == len(questions) and max(found.values()) > 1


def test_what_is_cut_is_counted(tokenizer: Tokenizer):
    item = Question("what " * 12, CONTEXT * 3, (CONTEXT[200:210],), Span(200, 210))
    rows = WindowDataset([item], tokenizer, seq_len=32, stride=None, max_question=8)
    assert len(rows) == 1 and rows.extra["start"].tolist() == [0]
    assert tuple(w.text for w in rows.warnings) == (
        "1 of 1 questions are truncated to 8 tokens",
        "1 of 1 contexts are truncated to 32 tokens with their question, because stride is None",
        "1 answers are not completely in any window",
    )
    assert rows.gather(np.arange(1))["segment_ids"].all()


def test_an_answer_without_a_token_is_counted_as_lost(tokenizer: Tokenizer):
    context = "the cat \u200b sleeps"
    item = Question("what", context, ("\u200b",), Span(8, 9))
    rows = WindowDataset([item], tokenizer, seq_len=32, stride=None, max_question=8)
    assert rows.extra["start"].tolist() == [-1]  # it has no loss
    assert [w.text for w in rows.warnings] == ["1 answers are not completely in any window"]


# -- decoding ---------------------------------------------------------------------------------------------------------


def outputs_for(
    rows: WindowDataset, wanted: list[tuple[int, int, int, float]], null: list[float]
) -> dict[str, np.ndarray]:
    """(row, first token of the context, last token, score) of each span a model might give, best first in each row."""
    starts, ends, scores = (np.full((len(rows), 4), fill, kind) for fill, kind in ((0, int), (0, int), (-1e30, float)))
    used: collections.Counter = collections.Counter()
    for row, first, last, score in wanted:
        place = row, used[row]
        starts[place], ends[place], scores[place] = first + rows.shift[row], last + rows.shift[row], score
        used[row] += 1
    return {"span_start": starts, "span_end": ends, "span_score": scores, "null_score": np.array(null)}


@pytest.fixture
def two(tokenizer: Tokenizer) -> WindowDataset:
    """A question over two windows, and one that has no answer."""
    long = Question("what sings", " ".join(f"w{i}" for i in range(30)), ("w1", "w2 w3"), Span(3, 5))
    rows = WindowDataset([long, Question("what", "big cat")], tokenizer, seq_len=32, stride=10, max_question=8)
    assert rows.owner.tolist() == [0, 0, 1]
    return rows


def test_answers_are_the_best_spans_over_all_windows(two: WindowDataset):
    token = [int(np.flatnonzero(two.bounds[0][:, 0] == start)[0]) for start in (0, 3, 6)]  # of w0, w1, w2
    spans = [(0, token[0], token[1] - 1, 3.0), (0, token[1], token[2] - 1, 1.0), (1, token[1], token[2] - 1, 2.0)]
    first, second = two.answers(outputs_for(two, spans, [5.0, -2.0, 4.0]), 5)
    assert [(span.text, span.start, span.end, span.score) for span in first.spans] == [
        ("w0", 0, 2, 3.0),
        ("w1", 3, 5, 2.0),
    ]
    assert (first.null_score, second.spans, second.null_score) == (-2.0, [], 4.0)


def test_the_answer_is_none_where_that_scores_higher_by_more_than_the_threshold(two: WindowDataset):
    data = data_at("x.json", n_best=1)
    outputs = outputs_for(two, [(0, 0, 0, 3.0)], [4.0, 6.0, 0.0])
    assert [row["answer"] for row in data.describe(two, outputs)] == ["", ""]
    close, none = dataclasses.replace(data, null_threshold=1.0).describe(two, outputs)
    assert (close["answer"], close["start"], close["end"], close["score"], close["null_score"]) == (
        "w0",
        0,
        2,
        3.0,
        4.0,
    )
    assert close["probability"] == pytest.approx(1 / (1 + np.e), abs=1e-4)  # against “no answer”
    assert (none["answer"], none["start"], none["n_best"], none["probability"]) == ("", None, [], 1.0)
    always = dataclasses.replace(data, null_threshold=None)
    assert next(iter(always.describe(two, outputs)))["probability"] == 1.0


def test_an_evaluation_tells_the_two_kinds_of_questions_apart(two: WindowDataset):
    w1 = int(np.flatnonzero(two.bounds[0][:, 0] == 3)[0])
    w2 = int(np.flatnonzero(two.bounds[0][:, 0] == 6)[0])
    outputs = outputs_for(two, [(0, w1, w2 - 1, 3.0), (2, 1, 1, 5.0)], [4.0, 4.0, 8.0])
    result = data_at("x.json").evaluate(two, outputs)
    tuned = {"best_f1": 1.0, "best_null_threshold": pytest.approx(2.0)}  # halfway between 4 − 3 and 8 − 5
    assert result.values == {"exact_match": 0.5, "f1": 0.5} | tuned
    assert [row[0] for row in result.tables[0].rows] == ["all", "with an answer", "without an answer"]
    assert [row[2:] for row in result.tables[0].rows] == [["0.500", "2"], ["0.000", "1"], ["1.000", "1"]]
    assert data_at("x.json", null_threshold=2.0).evaluate(two, outputs).values["f1"] == 1.0
    assert data_at("x.json", null_threshold=None).evaluate(two, outputs).values == {
        "exact_match": 0.5,
        "f1": 0.5,
    }


# -- scores -----------------------------------------------------------------------------------------------------------


def official_normalize(s: str) -> str:
    """As in the script that SQuAD publishes (evaluate-v2.0.py)."""
    s = "".join(ch for ch in s.lower() if ch not in set(string.punctuation))
    return " ".join(re.sub(re.compile(r"\b(a|an|the)\b", re.UNICODE), " ", s).split())


def official_f1(gold: str, pred: str) -> float:
    gold_toks, pred_toks = official_normalize(gold).split(), official_normalize(pred).split()
    num_same = sum((collections.Counter(gold_toks) & collections.Counter(pred_toks)).values())
    if len(gold_toks) == 0 or len(pred_toks) == 0:
        return int(gold_toks == pred_toks)
    if num_same == 0:
        return 0
    precision, recall = num_same / len(pred_toks), num_same / len(gold_toks)
    return (2 * precision * recall) / (precision + recall)


def official_best_threshold(scores: list[float], na_probs: list[float], has_ans: list[bool], preds: list[str]) -> float:
    cur_score = best_score = sum(not has for has in has_ans)
    for i in sorted(range(len(scores)), key=lambda i: na_probs[i]):
        cur_score += scores[i] if has_ans[i] else (-1 if preds[i] else 0)
        best_score = max(best_score, cur_score)
    return best_score / len(scores)


def test_scores_are_those_of_the_official_script():
    rng = random.Random(0)
    words = ["the", "The", "a", "cat", "Cat.", "an", "U.S.", "dog", "dog!", "l'état", "“q”", "-", "a-b", "", "5%"]
    texts = [" ".join(rng.choice(words) for _ in range(rng.randint(0, 5))) for _ in range(200)]
    for pred, gold in zip(texts, reversed(texts), strict=True):
        assert normalize_answer(pred) == official_normalize(pred)
        assert exact_match(pred, gold) == float(official_normalize(pred) == official_normalize(gold))
        assert f1(pred, gold) == pytest.approx(official_f1(gold, pred))


def test_of_several_answers_the_best_counts_and_none_is_the_empty_text():
    scores = score_answers(["the cat", "cat", "", "x", ""], [("dog", "cat"), (), (), ("The",), ("The",)])
    assert scores.exact.tolist() == [1.0, 0.0, 1.0, 0.0, 1.0] and scores.f1.tolist() == [1.0, 0.0, 1.0, 0.0, 1.0]


def test_the_best_threshold_is_that_of_the_official_script():
    rng = np.random.default_rng(0)
    for _ in range(50):
        count = int(rng.integers(1, 12))
        has_answer, surplus = rng.random(count) < 0.6, rng.normal(size=count)
        answered = np.where(has_answer, rng.random(count), 0.0)
        threshold, best = best_threshold(surplus, answered, ~has_answer)
        expected = official_best_threshold(answered.tolist(), surplus.tolist(), has_answer.tolist(), ["x"] * count)
        assert best == pytest.approx(expected)
        assert np.mean(np.where(surplus <= threshold, answered, ~has_answer)) == pytest.approx(best)


# -- a run ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def experiment(tmp_path: Path, tokenizer_dir: Path) -> Experiment:
    path = write(tmp_path / "squad.json", squad())
    return Experiment(
        name="spans",
        model=BertConfig(200, 32, 2, 4, 64, max_len=32, dropout=0.0, attention_dropout=0.0, stddev=0.1, scan=True),
        objective=ExtractSpan(max_answer=12, n_best=5),
        data=data_at(path, tokenizer=str(tokenizer_dir), validation_path=path, n_best=2),
        optim=AdamW(lr=3e-3, warmup_steps=10),
        steps=120,
        batch_size=8,
        mesh=Mesh(data=8),
        evals=(Eval("seen", "validation", final_only=True),),
        baselines=(NoAnswer(), OverlapSentence()),
        log_every=40,
    )


@pytest.mark.slow
def test_a_few_answers_are_learnt_and_found_again_with_their_places(experiment: Experiment, tmp_path: Path):
    results = train(experiment, tmp_path / "runs")
    assert results["evals"]["seen"]["exact_match"] == 1.0
    assert results["baselines"]["no answer"]["seen"] == {"exact_match": 0.25, "f1": 0.25}
    assert 0.0 < results["baselines"]["sentence with most words of the question"]["seen"]["f1"] < 0.5
    run = load(tmp_path / "runs" / "spans", arrange="training")
    answers = list(predict(run, [{"question": question, "context": CONTEXT} for question, _, _ in FACTS], batch_size=3))
    for answer, (_, expected, start) in zip(answers, FACTS, strict=True):
        assert answer["answer"] == (expected or "") and len(answer["n_best"]) == 2
        if expected is not None:
            assert CONTEXT[answer["start"] : answer["end"]] == expected and answer["start"] == start
            assert answer["score"] > answer["null_score"] and answer["n_best"][0]["answer"] == expected
    judged = evaluate(run, tmp_path / "cache")["seen"]
    assert judged.values["f1"] == 1.0 and judged.tables[0].rows[2][0] == "without an answer"
    with pytest.raises(UserError, match="record:1: 'context' is empty"):
        list(predict(run, [{"question": "what", "context": " "}]))


def test_a_decoder_is_refused_by_name(experiment: Experiment, tmp_path: Path):
    gpt = dataclasses.replace(
        experiment, model=GptConfig(vocab_size=200, d_model=16, num_layers=1, num_heads=2, max_len=32)
    )
    with pytest.raises(UserError, match="ExtractSpan is for a model of architecture encoder, but GptConfig"):
        train(gpt, tmp_path / "runs")
