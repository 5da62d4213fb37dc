"""Reading labelled texts, and the mistakes in them."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from bertgpt.config import UserError
from bertgpt.data.loader import Batches
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.tasks.classification import TextClassification


def write(tmp_path: Path, rows: list[dict]) -> TextClassification:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TextClassification(str(path), labels=("neg", "pos"), seq_len=16, validation=0.2, test=0.2)


def rows(count: int) -> list[dict]:
    return [
        {"text": f"the cat sleeps {i}", "label": ("neg", "pos")[i % 2], "source": "ab"[i % 3 == 0]}
        for i in range(count)
    ]


def batches(data: TextClassification, tokenizer: Tokenizer, split: str = "train", size: int = 4) -> Batches:
    return data.make(split=split, seed=0, batch_size=size, tokenizer=tokenizer, cache=Path("unused"), shuffle=False)


def test_every_text_is_in_one_split_with_its_label(tmp_path: Path):
    data = write(tmp_path, rows(100) + rows(10))  # the last ten are duplicates
    found = {split: data.examples(split) for split in ("train", "validation", "test")}
    texts = [text for split in found.values() for text in split[0]]
    assert sorted(texts) == sorted(row["text"] for row in rows(100))
    for texts, labels in found.values():
        assert [int(text.split()[-1]) % 2 for text in texts] == labels
    assert len(found["train"][0]) > 45 and min(len(found[s][0]) for s in ("validation", "test")) > 8


def test_where_selects_records(tmp_path: Path):
    data = dataclasses.replace(write(tmp_path, rows(60)), where="source=b")
    assert all(int(text.split()[-1]) % 3 == 0 for text in data.examples("train")[0])
    with pytest.raises(UserError, match="zero train examples where source=zzz"):
        dataclasses.replace(data, where="source=zzz").examples("train")
    with pytest.raises(UserError, match=r"data.jsonl:1: no column 'colour'; it has 'text', 'label', 'source'"):
        dataclasses.replace(data, where="colour=red").examples("train")


def test_scarce_labels_are_a_fixed_random_part_of_the_training_texts(tmp_path: Path):
    data = write(tmp_path, rows(200))
    few = dataclasses.replace(data, max_examples=20)
    texts, labels = few.examples("train")
    assert len(texts) == 20 and set(texts) < set(data.examples("train")[0]) and 0 < sum(labels) < 20
    assert few.examples("train") == (texts, labels)
    assert few.examples("test") == data.examples("test")


def test_rows_are_framed_texts_with_labels(tmp_path: Path, tokenizer: Tokenizer):
    data = write(tmp_path, rows(50))
    batch = batches(data, tokenizer)[0]
    ids = tokenizer.encode([data.examples("train")[0][0]])[0]
    expected = [tokenizer.vocab.cls, *ids, tokenizer.vocab.sep]
    assert batch["input_ids"][0, : len(expected)].tolist() == expected
    assert batch["segment_ids"][0].tolist() == [1] * len(expected) + [0] * (16 - len(expected))
    assert batch["label"].tolist() == data.examples("train")[1][:4]


def test_of_a_text_longer_than_any_row_the_beginning_is_used(tmp_path: Path, tokenizer: Tokenizer):
    long = "cat dog house " * 500
    data = write(tmp_path, [{"text": long + str(i), "label": "pos"} for i in range(30)])
    batch = batches(data, tokenizer)[0]
    ids = tokenizer.encode(["cat dog house " * 5])[0]
    assert batch["input_ids"][0].tolist() == [tokenizer.vocab.cls, *ids[:14], tokenizer.vocab.sep]
    assert (batch["segment_ids"][0] == 1).all()


def test_an_unknown_label_names_file_and_line(tmp_path: Path):
    data = write(tmp_path, [*rows(3), {"text": "so so", "label": "meh"}])
    with pytest.raises(UserError, match=r"data.jsonl:4: unknown label 'meh'; labels are 'neg', 'pos'"):
        data.examples("train")


def test_a_missing_column_names_file_line_and_those_there_are(tmp_path: Path):
    data = write(tmp_path, [*rows(2), {"body": "text", "label": "pos"}])
    with pytest.raises(UserError, match=r"data.jsonl:3: no column 'text'; it has 'body', 'label'"):
        data.examples("train")


def test_new_texts_come_in_order_without_labels(tmp_path: Path, tokenizer: Tokenizer):
    data = write(tmp_path, rows(3))
    new = data.predict_batches(["cat", "dog", "", "bird"], 3, tokenizer)
    assert [new[i]["label"].tolist() for i in range(len(new))] == [[-1] * 3, [-1] * 3]
    assert new[0]["input_ids"][1, 1] == tokenizer.encode(["dog"])[0][0]
    assert new[0]["input_ids"][2, :2].tolist() == [tokenizer.vocab.cls, tokenizer.vocab.sep]


def test_predictions_carry_names_and_probabilities(tmp_path: Path, tokenizer: Tokenizer):
    data = dataclasses.replace(write(tmp_path, rows(3)), names=("bad", "good"))
    described = list(data.describe({"probabilities": np.array([[0.25, 0.75]])}, tokenizer))
    assert described == [{"label": "good", "probability": 0.75, "probabilities": {"bad": 0.25, "good": 0.75}}]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"labels": ("a",)}, "two or more different ones"),
        ({"labels": ("a", "a")}, "two or more different ones"),
        ({"labels": ("a", "b"), "names": ("x",)}, "1 names for 2 labels"),
        ({"labels": ("a", "b"), "validation": 0.6, "test": 0.4}, "must leave texts to train on"),
        ({"labels": ("a", "b"), "max_examples": 0}, "max_examples=0 must be at least 1"),
        ({"labels": ("a", "b"), "where": "x"}, "must read column=value"),
        ({"labels": ("a", "b"), "seq_len": 4}, "seq_len=4 must be at least 8"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings: dict, message: str):
    with pytest.raises(UserError, match=message):
        TextClassification("x.csv", **settings)
