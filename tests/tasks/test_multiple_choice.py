"""Multiple choice: reading, rows, answers, baselines, and a whole run."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bertgpt.config import Eval, Experiment, Mesh
from bertgpt.data.loader import Batches
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.inference.model import load
from bertgpt.inference.predict import predict
from bertgpt.models.bert import BertConfig
from bertgpt.objectives.qa import ChooseOne
from bertgpt.tasks.multiple_choice import LongestChoice, MultipleChoice, OverlapChoice
from bertgpt.training.loop import train
from bertgpt.training.optim import AdamW
from bertgpt.types import DataRequest, HeldOut, UserError

ROWS = [
    {"question": "the cat", "choices": ["sleeps under a tree", "runs"], "label": 0},
    {"question": "the dog", "choices": ["sings", "eats", "of"], "label": 1},
    {"question": "a bird", "choices": ["in the river", "sings", "and a house"], "label": 1},
]
DREAM = [
    [
        ["M: the cat runs .", "W: big dog ?"],
        [{"question": "who runs", "choice": ["dog", "cat"], "answer": "cat"}],
        "1-1",
    ],
    [
        ["W: a bird sings"],
        [
            {"question": "what sings", "choice": ["bird", "cat", "dog"], "answer": "bird"},
            {"question": "who", "choice": ["tree", "bird", "cat"], "answer": "bird"},
        ],
        "1-2",
    ],
]


def write(path: Path, content: Any, **settings: Any) -> MultipleChoice:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return MultipleChoice(str(path), **{"seq_len": 16, "validation": 0.0, "test": 0.0} | settings)


def make(data: MultipleChoice, tokenizer: Tokenizer, split: str = "train", batch_size: int = 4) -> Batches:
    return data.make(
        DataRequest(
            split=split, seed=0, batch_size=batch_size, tokenizer=tokenizer, cache=Path("unused"), shuffle=False
        )
    )


def test_lists_columns_numbers_names_and_texts_say_the_same(tmp_path: Path):
    rows = [dict(row, choices=row["choices"][:2]) for row in ROWS]
    expected = write(tmp_path / "a.jsonl", rows).examples("train")
    assert [item.label for item in expected] == [0, 1, 1] and expected[1].choices == ("sings", "eats")
    table = "question,one,two,label\n" + "".join(
        f"{row['question']},{','.join(row['choices'])},{'AB'[row['label']]}\n" for row in rows
    )
    columns = {"choice_fields": ("one", "two"), "label_names": ("A", "B")}
    assert write(tmp_path / "a.csv", table, **columns).examples("train") == expected
    named = [dict(row, label=row["choices"][row["label"]]) for row in rows]
    assert write(tmp_path / "b.jsonl", named, label_as="text").examples("train") == expected


def test_dream_is_read_as_it_comes(tmp_path: Path):
    data = write(tmp_path / "a.json", DREAM, context_field="context", label_field="answer", label_as="text")
    first, second, third = data.examples("train")
    assert first.text == "M: the cat runs .\nW: big dog ?" and first.answers == ("dog", "cat") and first.label == 1
    assert first.choices == ("who runs dog", "who runs cat")
    assert (second.label, third.label) == (0, 1) and second.text == third.text
    many = [[[f"a bird sings {i}"], DREAM[1][1], str(i)] for i in range(20)]
    split = dataclasses.replace(write(tmp_path / "many.json", many, validation=0.5), context_field="context")
    split = dataclasses.replace(split, label_field="answer", label_as="text")
    found = [[item.text for item in split.examples(name)] for name in ("train", "validation")]
    assert not set(found[0]) & set(found[1])  # questions of a dialogue stay together
    assert len(found[0]) + len(found[1]) == 40


def test_rows_are_pairs_and_missing_choices_are_padding(tmp_path: Path, tokenizer: Tokenizer):
    batches = make(write(tmp_path / "a.jsonl", ROWS), tokenizer)
    batch, vocab = batches[0], tokenizer.vocab
    assert batch["input_ids"].shape == (4, 3, 16) and batch["label"].tolist() == [0, 1, 1, -1]
    a, b = tokenizer.encode(["the dog", "eats"])
    row = [vocab.cls, *a, vocab.sep, *b, vocab.sep]
    assert batch["input_ids"][1, 1, : len(row)].tolist() == row
    assert batch["type_ids"][1, 1].tolist() == [0] * (len(a) + 2) + [1] * (len(b) + 1) + [0] * (16 - len(row))
    assert not batch["segment_ids"][0, 2].any() and batch["segment_ids"][0, :2, 0].all()
    assert not batch["segment_ids"][3].any()  # the row that fills up the batch
    assert tuple(w.text for w in batches.dataset.warnings) == (
        "1 sequences are padding, because questions have 2 to 3 choices",
    )
    real = sum(int((batch["segment_ids"][i] > 0).sum()) for i in range(3))
    assert batches.dataset.padding == pytest.approx(1 - real / (3 * 3 * 16))


def test_pairs_that_are_too_long_are_cut_and_counted(tmp_path: Path, tokenizer: Tokenizer):
    rows = [{"question": "who", "context": "cat dog " * 30, "choices": ["cat", "dog"], "label": 1}]
    batches = make(write(tmp_path / "a.jsonl", rows, context_field="context"), tokenizer, batch_size=1)
    ids = batches[0]["input_ids"][0]
    tail = [tokenizer.vocab.sep, *tokenizer.encode(["who dog"])[0], tokenizer.vocab.sep]
    assert ids[1, -len(tail) :].tolist() == tail
    assert tuple(w.text for w in batches.dataset.warnings) == (
        "2 of 2 pairs of text and choice are truncated to 16 tokens",
    )


@pytest.mark.parametrize(
    "row, message",
    [
        ({"choices": ["a"]}, r"a.jsonl:2: 'choices' has 1 of the two or more choices it needs"),
        ({"choices": []}, r"a.jsonl:2: 'choices' has 0 of the two or more choices it needs"),
        ({"choices": "a"}, r"a.jsonl:2: 'choices' is 'a', not a list of choices"),
        ({"choices": ["a", " "]}, r"a.jsonl:2: a choice is empty"),
        ({"choices": [["a"], ["b"]]}, r"a.jsonl:2: 'choices' is of type list, not text"),
        ({"label": 2}, r"a.jsonl:2: 'label' is '2', none of '0', '1'"),
        ({"label": -1}, r"a.jsonl:2: 'label' is '-1', none of '0', '1'"),
        ({"label": None}, r"a.jsonl:2: 'label' is null, not text"),
        ({"question": " "}, r"a.jsonl:2: 'question' is empty"),
        ({"question": None}, r"a.jsonl:2: 'question' is null"),
    ],
)
def test_mistakes_name_file_and_line(tmp_path: Path, row: dict, message: str):
    data = write(tmp_path / "a.jsonl", [ROWS[0], ROWS[0] | row])
    with pytest.raises(UserError, match=message):
        data.examples("train")


def test_what_is_not_of_dreams_form_is_named(tmp_path: Path):
    for content, place in (([DREAM[0], ["turns"]], 2), ({"data": []}, 1), ([[["x"], [{"question": "q"}], "1"]], 1)):
        with pytest.raises(UserError, match=f"a.json: item {place} is not in DREAM's format"):
            write(tmp_path / "a.json", content, label_field="answer", label_as="text").examples("train")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"choice_fields": ("a",)}, "must be two or more columns"),
        ({"label_names": ("A", "A")}, "must be different ones"),
        ({"label_names": ("A", "B"), "label_as": "text"}, "have no use"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings: dict, message: str):
    with pytest.raises(UserError, match=message):
        MultipleChoice("x.jsonl", **settings)


def test_an_evaluation_says_how_good_guessing_is_and_which_places_are_favoured(tmp_path: Path, tokenizer: Tokenizer):
    data = write(tmp_path / "a.jsonl", ROWS)
    rows = make(data, tokenizer).dataset
    probabilities = np.array([[0.9, 0.1, 0.0], [0.5, 0.2, 0.3], [0.1, 0.8, 0.1]])
    result = data.evaluate(rows, {"probabilities": probabilities})
    assert result.values == {"accuracy": pytest.approx(2 / 3), "chance": pytest.approx((1 / 2 + 2 / 3) / 3)}
    assert result.tables[0].rows == [["1", "1.000", "1", "2"], ["2", "0.500", "2", "1"]]


def test_baselines_are_those_counted_by_hand(tmp_path: Path, tokenizer: Tokenizer):
    data = write(tmp_path / "a.jsonl", ROWS)
    train = make(data, tokenizer)
    assert LongestChoice().fit(data, train)(HeldOut(data, "train", train)).values == {"accuracy": pytest.approx(1 / 3)}
    # Shares: a of 4 words, 0 of 1 → neither is in “the cat”; all 0; 0 of 3, 0 of 1, “a” of 3.
    overlap = OverlapChoice().fit(data, train)(HeldOut(data, "train", train)).values
    assert overlap == {"accuracy": pytest.approx((1 / 2 + 1 / 3 + 0) / 3)}


def test_a_few_choices_are_learnt(tmp_path: Path, tokenizer_dir: Path):
    data = write(tmp_path / "a.jsonl", ROWS, tokenizer=str(tokenizer_dir), validation_path=str(tmp_path / "a.jsonl"))
    experiment = Experiment(
        name="choices",
        model=BertConfig(200, 16, 2, 4, 32, max_len=32, dropout=0.0, attention_dropout=0.0, stddev=0.1, scan=True),
        objective=ChooseOne(),
        data=data,
        optim=AdamW(lr=3e-3, warmup_steps=5),
        steps=40,
        batch_size=8,
        mesh=Mesh(data=8),
        evals=(Eval("seen", "validation", final_only=True),),
        baselines=(LongestChoice(),),
        log_every=20,
    )
    results = train(experiment, tmp_path / "runs")
    assert results["evals"]["seen"]["accuracy"] == 1.0
    assert results["baselines"]["longest choice"]["seen"]["accuracy"] == pytest.approx(1 / 3)
    run = load(tmp_path / "runs" / "choices", arrange="training")
    answers = list(predict(run, [{k: row[k] for k in ("question", "choices")} for row in ROWS], batch_size=2))
    assert [answer["choice"] for answer in answers] == ["sleeps under a tree", "eats", "sings"]
    assert [len(answer["probabilities"]) for answer in answers] == [2, 3, 3]
    assert all(answer["probability"] == max(answer["probabilities"]) for answer in answers)
    with pytest.raises(UserError, match="record:1: 'choices' has 1 of the two or more"):
        list(predict(run, [{"question": "the cat", "choices": ["runs"]}]))
