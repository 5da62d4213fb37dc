"""Tokenizers read texts as the file has them, held-out files are scored whole, and what does not fit is counted."""

import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from conftest import fast

from bertgpt.data.examples import encode_texts
from bertgpt.data.packing import template_of
from bertgpt.data.tokenizer import ByteBPE, SentencePiece, Tokenizer, WordPiece
from bertgpt.tasks.classification import TextClassification
from bertgpt.tasks.dialogue import Dialogue
from bertgpt.tasks.generation import Pair, TextToText
from bertgpt.tasks.multiple_choice import MultipleChoice
from bertgpt.tasks.question_answering import QuestionAnswering
from bertgpt.tasks.similarity import TextPairs
from bertgpt.tasks.summarization import ExtractiveSummary
from bertgpt.tasks.tagging import TokenTagging
from bertgpt.types import DataRequest, GenerationTask, UserError

TEXTS = [
    "two\nlines here\n\nand more",
    "windows\r\nline ends\r\n",
    "\tdef f(x):\n\t\treturn  x  # two spaces\n",
    " a blank before and after ",
    "一段\u3000中文\n第二行",
    "a no\u00a0break, a line\u2028separator, a zero\u200bwidth space",
    "plain text",
]
MAKERS = {
    "wordpiece": WordPiece(vocab_size=400, min_frequency=1),
    "gpt2": ByteBPE(vocab_size=300, style="gpt2"),
    "roberta": ByteBPE(vocab_size=300),
    "t5": SentencePiece(style="t5", vocab_size=200, sentinels=10, character_coverage=1.0),
    "albert": SentencePiece(style="albert", vocab_size=100, character_coverage=1.0),
}


@pytest.fixture(scope="module", params=MAKERS)
def any_tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return MAKERS[request.param].make(lambda: iter(TEXTS))


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def request(tokenizer: Tokenizer, split: str = "train") -> DataRequest:
    return DataRequest(split=split, batch_size=len(TEXTS), tokenizer=tokenizer)


def real_ids(ids: np.ndarray, segments: np.ndarray) -> list[list[int]]:
    return [row[real > 0].tolist() for row, real in zip(ids, segments, strict=True)]


def test_every_token_of_a_text_is_that_of_the_tokenizer_in_training_and_in_prediction(
    tmp_path: Path, any_tokenizer: Tokenizer
):
    template = template_of(any_tokenizer.vocab)
    expected = [[*template.start, *ids, template.end] for ids in any_tokenizer.encode(TEXTS)]
    if any_tokenizer.spiece is None and any_tokenizer.vocab.cls is None:
        assert [any_tokenizer.decode(ids) for ids in any_tokenizer.encode(TEXTS)] == TEXTS  # nothing is lost
    path = write(tmp_path / "a.jsonl", [{"text": text, "label": "ab"[i % 2]} for i, text in enumerate(TEXTS)])
    data = TextClassification(path, labels=("a", "b"), seq_len=256, validation=0.0, test=0.0)
    pairs = TextPairs(path, first_field="text", second_field="text", label_field=None, seq_len=256)
    pairs = dataclasses.replace(pairs, validation=0.0, test=0.0)
    for batches in (
        data.make(request(any_tokenizer)),
        data.predict_batches([{"text": text} for text in TEXTS], len(TEXTS), any_tokenizer),
    ):
        assert real_ids(batches[0]["input_ids"], batches[0]["segment_ids"]) == expected
        assert not batches.dataset.warnings
    batch = pairs.make(request(any_tokenizer))[0]
    assert real_ids(batch["input_ids"][:, 0], batch["segment_ids"][:, 0]) == expected


def test_tasks_of_text_to_text_read_texts_as_they_are(tmp_path: Path):
    tokenizer = MAKERS["gpt2"].make(lambda: iter(TEXTS))
    path = write(tmp_path / "a.jsonl", [{"source": text, "target": text} for text in TEXTS])
    data = TextToText(path, seq_len=256, target_len=128, validation=0.0, test=0.0)
    batch = data.make(request(tokenizer))[0]
    for side in ("", "target_"):
        ids = real_ids(batch["input_ids" if not side else "target_ids"], batch[f"{side}segment_ids"])
        assert [tokenizer.decode(row[:-1]) for row in ids] == TEXTS
    assert [tokenizer.decode(ids[:-1]) for ids in data.prompts_of([{"source": t} for t in TEXTS], tokenizer)] == TEXTS
    path = write(tmp_path / "b.jsonl", [{"question": TEXTS[0], "choices": TEXTS, "label": 3}])
    item = MultipleChoice(path, validation=0.0, test=0.0).examples("train")[0]
    assert item.text == TEXTS[0] and item.choices == tuple(TEXTS)
    path = write(tmp_path / "c.jsonl", [{"turns": TEXTS}])
    assert Dialogue(path, validation=0.0, test=0.0).examples("train") == [TEXTS]


def test_lines_of_parallel_files_lose_their_line_ends_alone(tmp_path: Path, tokenizer: Tokenizer):
    (tmp_path / "de").write_bytes("ein  Satz \r\nein\u2028anderer\r\n".encode())
    (tmp_path / "en").write_bytes(b"a  sentence \nanother\n")
    data = TextToText(str(tmp_path / "{}"), source_field="de", target_field="en", validation=0.0, test=0.0)
    assert data.examples("train") == [Pair("ein  Satz ", ("a  sentence ",)), Pair("ein\u2028anderer", ("another",))]
    assert list(data.digests(tokenizer, tmp_path)) == [str(tmp_path / "de"), str(tmp_path / "en")]


def test_markup_is_removed_only_where_that_is_asked_for(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", [{"text": "<b>fine</b>  &amp;<br>good", "label": "a"}])
    data = TextClassification(path, labels=("a", "b"), validation=0.0, test=0.0)
    assert data.examples("train")[0].texts == ("<b>fine</b>  &amp;<br>good",)
    assert dataclasses.replace(data, strip_html=True).examples("train")[0].texts == ("fine  &\ngood",)


def test_words_without_tokens_do_not_hide_the_words_after_them():
    tokenizer = WordPiece(vocab_size=200, min_frequency=1).make(lambda: iter(["your order has shipped and arrives"]))
    padded = "Your order" + "\u200c\u00a0" * 150 + "has shipped and arrives"
    for text in (padded, "\ufffd " * 150 + "Your order has shipped and arrives"):
        encoded = encode_texts(tokenizer, [(text,)], 16)
        words = tokenizer.encode(["your order has shipped and arrives"])[0]
        assert encoded.ids == [[tokenizer.vocab.cls, *words, tokenizer.vocab.sep]] and encoded.truncated == 0
    short = encode_texts(tokenizer, [(padded,)], 8)
    assert short.ids[0][1:-1] == words[:6] and short.truncated == (len(words) > 6)


def test_pairs_are_truncated_as_the_tokenizers_library_truncates_them():
    words = [f"w{i}" for i in range(40)]
    tokenizer = WordPiece(vocab_size=300, min_frequency=1).make(lambda: iter([" ".join(words)] * 3))
    pairs = [(" ".join(words[:a]), " ".join(words[:b])) for a in range(0, 21) for b in range(0, 21)]
    for seq_len in (8, 13, 14):
        ours = encode_texts(tokenizer, pairs, seq_len)
        theirs = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
        theirs.enable_truncation(seq_len, strategy="longest_first")
        encoded = theirs.encode_batch(pairs)
        assert ours.ids == [item.ids for item in encoded]
        assert ours.first.tolist() == [item.type_ids.count(0) for item in encoded]
        assert ours.truncated == sum(bool(item.overflowing) for item in encoded)


def test_what_is_cut_from_prompts_is_reported(caplog: pytest.LogCaptureFixture):
    tokenizer = ByteBPE(vocab_size=257, style="gpt2").make(lambda: iter(TEXTS))
    data = TextToText("x", seq_len=16)
    data.prompts_of([{"source": "s" * n} for n in (5, 40, 50)], tokenizer)
    turns = [["a" * 9, "b" * 9, "c" * 4], ["d" * 40, "e"], ["f" * 40]]
    Dialogue("x", seq_len=40, speakers=()).prompts_of([{"turns": some} for some in turns], tokenizer)
    assert [record.getMessage() for record in caplog.records] == [
        "2 of 3 sources are truncated to 16 tokens",
        "2 earlier turns are left out of the prompts, which leave half to the reply",
        "1 last turns are truncated to 20 tokens with their prefixes",
    ]


# -- held-out files ---------------------------------------------------------------------------------------------------

REPEATED = [("fine", "a"), ("fine", "a"), ("fine  ", "b"), ("", "b"), ("fine\n", "a"), ("bad", "b")]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_held_out_file_is_scored_record_by_record(tmp_path: Path, split: str):
    path = write(tmp_path / "a.jsonl", [{"text": text, "label": label} for text, label in REPEATED])
    data = TextClassification(path, labels=("a", "b"), validation=0.0, test=0.0, seq_len=16)
    held_out = dataclasses.replace(data, **{f"{split}_path": path})
    found, warnings = held_out.load(split)
    assert [(e.texts[0], "ab"[e.label]) for e in found] == REPEATED
    assert [w.text for w in warnings] == ["1 empty texts are scored too"]
    found, warnings = held_out.load("train")
    assert [(e.texts[0], "ab"[e.label]) for e in found] == [("fine", "a"), ("bad", "b")]
    assert [(w.kind, w.count) for w in warnings] == [("empty", 1), ("repeated", 2), ("contradictory", 1)]
    every = dataclasses.replace(held_out, deduplicate=False)
    assert [(e.texts[0], "ab"[e.label]) for e in every.examples("train")] == [r for r in REPEATED if r[0]]


def test_held_out_pairs_and_questions_are_scored_one_by_one(tmp_path: Path, tokenizer: Tokenizer):
    rows = [
        {"text1": a, "text2": b, "label": s} for a, b, s in [("x", "y", 1), ("x", "y", 1), ("x", "y", 2), ("", "y", 0)]
    ]
    path = write(tmp_path / "a.jsonl", rows)
    data = TextPairs(path, test_path=path, validation=0.0)
    assert [(e.texts, e.label) for e in data.examples("test")] == [((r["text1"], r["text2"]), r["label"]) for r in rows]
    assert len(data.examples("train")) == 1
    one = {"question": "who sleeps", "context": "the cat sleeps", "answers": ["cat"]}
    rows = [one, one, one | {"question": " "}, one | {"context": ""}]
    path = write(tmp_path / "b.jsonl", rows)
    asked = QuestionAnswering(path, test_path=path, validation=0.0, seq_len=32, max_question=8, stride=4)
    assert [(q.question, q.context) for q in asked.examples("test")] == [(r["question"], r["context"]) for r in rows]
    assert len(asked.examples("train")) == 2
    dataset = asked.make(request(tokenizer, "test")).dataset
    assert len(dataset) == 4 and dataset.extra["context_start"][3] == dataset.extra["context_end"][3]


# -- types of values --------------------------------------------------------------------------------------------------

QUESTION = {"question": "who", "context": "the cat", "answers": [{"text": "cat", "answer_start": 4}]}
CHOICE = {"question": "who", "choices": ["cat", "dog"], "label": 0}
WRONG = [
    (TextClassification, {"text": "x", "label": "a"}, "text", [5, True, None, 1.5, {"a": 1}, ["x", 5], float("nan")]),
    (TextClassification, {"text": "x", "label": "a"}, "label", [None, ["a"], {"a": 1}, float("nan"), "c"]),
    (TextPairs, {"text1": "x", "text2": "y", "label": 1}, "label", [None, True, "high", "nan", float("inf"), [1]]),
    (TextPairs, {"text1": "x", "text2": "y", "label": 1}, "text2", [2, False, None, [1]]),
    (MultipleChoice, CHOICE, "label", [None, True, 1.5, 2, -1, "x", [0]]),
    (MultipleChoice, CHOICE, "choices", ["cat", 3, None, ["cat", 3], ["cat", None], [True, False], ["cat"]]),
    (MultipleChoice, CHOICE, "question", [3, None, "", ["who"]]),
    (QuestionAnswering, QUESTION, "question", [3, None, True, ["who"]]),
    (QuestionAnswering, QUESTION, "context", [3, None, True]),
    (QuestionAnswering, QUESTION, "answers", [3, True, [3], [{"text": 3}], [{"text": "cat", "answer_start": True}]]),
    (QuestionAnswering, QUESTION, "is_impossible", ["false", "true", 0, 1, None]),
    (TextToText, {"source": "x", "target": "y"}, "source", [3, None, True, [3]]),
    (TextToText, {"source": "x", "target": "y"}, "target", [3, None, True, ["y", 3], [], [""]]),
    (Dialogue, {"turns": ["x", "y"]}, "turns", [3, None, True, ["x", 3], ["x", None], {"a": "x"}, ["x", " "]]),
]


@pytest.mark.parametrize(
    ("task", "record", "name", "value"),
    [(task, record, name, value) for task, record, name, values in WRONG for value in values],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_a_value_of_another_type_is_refused_with_its_line(
    tmp_path: Path, task: type, record: dict, name: str, value: Any
):
    path = write(tmp_path / "a.jsonl", [record, record | {name: value}])
    options = {"labels": ("a", "b")} if task is TextClassification else {}
    with pytest.raises(UserError, match=r"a\.jsonl:2: "):
        task(path, validation=0.0, test=0.0, **options).examples("train")


def test_whether_a_question_of_squad_is_impossible_must_be_a_boolean(tmp_path: Path):
    def of(**more: Any) -> QuestionAnswering:
        item = {"id": "1", "question": "who", "answers": [{"text": "cat", "answer_start": 4}]} | more
        path = tmp_path / "a.json"
        path.write_text(json.dumps({"data": [{"paragraphs": [{"context": "the cat", "qas": [item]}]}]}))
        return QuestionAnswering(str(path), validation=0.0, test=0.0)

    assert of(is_impossible=False).examples("train")[0].answers == ("cat",)
    assert of(is_impossible=True).examples("train")[0].answers == ()
    for value in ("false", "true", 0, 1, None, [], "no"):
        with pytest.raises(UserError, match=r"a\.json:1: 'is_impossible' is .*must be true or false"):
            of(is_impossible=value).examples("train")
    bad = ("[" * 20_000, "nested more than 100 deep"), ('{"data": "\\ud800"}', "half of a surrogate pair")
    for content, message in bad:
        (tmp_path / "b.json").write_text(content)
        with pytest.raises(UserError, match=rf"b\.json: .*{message}"):
            QuestionAnswering(str(tmp_path / "b.json"), validation=0.0, test=0.0).examples("train")
    rows = [QUESTION | {"is_impossible": True}, QUESTION | {"is_impossible": False}, QUESTION]
    path = write(tmp_path / "a.jsonl", rows)
    found = QuestionAnswering(path, validation=0.0, test=0.0).examples("train")
    assert [item.answers for item in found] == [(), ("cat",), ("cat",)]


TEXT = "the cat sleeps"
SHORT = dict(validation=0.0, test=0.0, seq_len=24)
RECORDS = {
    "label": (TextClassification("", labels=("a", "b"), **SHORT), {"text": TEXT, "label": "a"}),
    "labels": (TextClassification("", labels=("a", "b"), target="labels", **SHORT), {"text": TEXT, "label": ["a"]}),
    "number": (TextClassification("", target="number", **SHORT), {"text": TEXT, "label": 1.5}),
    "pairs": (TextPairs("", **SHORT), {"text1": TEXT, "text2": "x", "label": 0.5}),
    "choice": (MultipleChoice("", context_field="context", **SHORT), CHOICE | {"context": TEXT}),
    "questions": (QuestionAnswering("", max_question=8, stride=4, **SHORT), QUESTION | {"is_impossible": False}),
    "starts": (
        QuestionAnswering("", max_question=8, start_field="start", **SHORT),
        {"question": "who", "context": TEXT, "answers": "cat", "start": 4},
    ),
    "text to text": (TextToText("", target_len=8, **SHORT), {"source": TEXT, "target": "x"}),
    "dialogue": (Dialogue("", **SHORT), {"turns": ["x", "y"]}),
    "summary": (ExtractiveSummary("", **SHORT), {"document": [TEXT, "x y"], "summary": "the cat"}),
    "tags": (TokenTagging("", labels=("O", "B-A"), **SHORT), {"tokens": ["the", "cat"], "tags": ["O", "B-A"]}),
    "spans": (
        TokenTagging("", labels=("O", "B-A", "I-A"), words_field="text", spans_field="label", **SHORT),
        {"text": TEXT, "label": {"A": {"cat": [[4, 6]]}}},
    ),
    "roles": (
        TokenTagging("", labels=("O", "B-A"), predicate_field="verb", frames_field="frames", **SHORT),
        {"tokens": ["the", "cat"], "frames": [{"tags": ["O", "B-A"], "verb": 1}], "verb": 1},
    ),
}  # fmt: skip
VALUES = [
    None, True, 0, 1, -1, 1.5, 1e308, 10**400, float("nan"), float("inf"), "", "  ", "a", "1.0", "\u200b", "x" * 5000,
    [], {}, [None], ["a"], [["a"]], {"a": 1}, [{"text": "cat"}], [{"text": "cat", "answer_start": -1}],
    {"text": ["cat"], "answer_start": 4}, {"text": "cat", "answer_start": "x"}, ["a", ""], [0, 1], [True], [1.5, "a"],
    {"A": {"cat": [[4, 6, 7]]}}, {"A": {"cat": [[4.0, 6]]}}, {"A": {"cat": [[True, 6]]}}, {"A": None},
    [{"tags": ["O", "O"], "verb": True}], [{"tags": ["O"], "verb": 0}], [5],
]  # fmt: skip


@pytest.mark.parametrize("kind", fast(RECORDS, "labels", "questions", "dialogue"))
def test_whatever_a_field_holds_a_record_is_read_or_refused_in_one_line(
    tmp_path: Path, tokenizer: Tokenizer, kind: str
):
    task, record = RECORDS[kind]
    outcomes = {"read": 0, "refused": 0}

    def attempt(read: Callable[[], object]) -> None:
        try:
            read()
            outcomes["read"] += 1
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 500
            assert str(error).startswith((f"{tmp_path}/a.jsonl:2: ", "record:1: ", "record 1: ", "document 1 "))
            outcomes["refused"] += 1

    def read(changed: dict[str, Any]) -> None:
        data = dataclasses.replace(task, path=write(tmp_path / "a.jsonl", [record, changed]))
        attempt(lambda: data.examples("train"))
        if isinstance(data, GenerationTask):
            attempt(lambda: data.prompts_of([changed], tokenizer))
        else:
            attempt(lambda: data.predict_batches([changed], 2, tokenizer)[0])

    for name, value in itertools.product(record, VALUES):
        read(record | {name: value})
    assert min(outcomes.values()) > 0 and sum(outcomes.values()) == 2 * len(record) * len(VALUES)
