"""Reading labelled texts, and the mistakes in them."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from bertgpt.data.examples import Example
from bertgpt.data.loader import Batches
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.prepare.corpus import Corpus
from bertgpt.tasks.classification import TextClassification
from bertgpt.types import DataRequest, UserError


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
    return data.make(
        DataRequest(split=split, seed=0, batch_size=size, tokenizer=tokenizer, cache=Path("unused"), shuffle=False)
    )


def test_every_text_is_in_one_split_with_its_label(tmp_path: Path):
    data = write(tmp_path, rows(100) + rows(10))  # the last ten are duplicates
    found = {split: data.examples(split) for split in ("train", "validation", "test")}
    texts = [example.texts[0] for split in found.values() for example in split]
    assert sorted(texts) == sorted(row["text"] for row in rows(100))
    for split in found.values():
        assert [int(example.texts[0].split()[-1]) % 2 for example in split] == [example.label for example in split]
    assert len(found["train"]) > 45 and min(len(found[s]) for s in ("validation", "test")) > 8


def test_where_selects_records(tmp_path: Path):
    data = dataclasses.replace(write(tmp_path, rows(60)), where="source=b")
    assert all(int(example.texts[0].split()[-1]) % 3 == 0 for example in data.examples("train"))
    with pytest.raises(UserError, match="zero train examples where source=zzz"):
        dataclasses.replace(data, where="source=zzz").examples("train")
    with pytest.raises(UserError, match=r"data.jsonl:1: no column 'colour'; it has 'text', 'label', 'source'"):
        dataclasses.replace(data, where="colour=red").examples("train")


def test_scarce_labels_are_a_fixed_random_part_of_the_training_texts(tmp_path: Path):
    data = write(tmp_path, rows(200))
    few = dataclasses.replace(data, max_examples=20)
    some = few.examples("train")
    assert len(some) == 20 and set(some) < set(data.examples("train")) and 0 < sum(e.label for e in some) < 20
    assert few.examples("train") == some
    assert few.examples("test") == data.examples("test")


def test_rows_are_framed_texts_with_labels(tmp_path: Path, tokenizer: Tokenizer):
    data = write(tmp_path, rows(50))
    batch = batches(data, tokenizer)[0]
    ids = tokenizer.encode([data.examples("train")[0].texts[0]])[0]
    expected = [tokenizer.vocab.cls, *ids, tokenizer.vocab.sep]
    assert batch["input_ids"][0, : len(expected)].tolist() == expected
    assert batch["segment_ids"][0].tolist() == [1] * len(expected) + [0] * (16 - len(expected))
    assert batch["label"].tolist() == [example.label for example in data.examples("train")[:4]]


def test_of_a_text_longer_than_any_row_the_beginning_is_used(tmp_path: Path, tokenizer: Tokenizer):
    long = "cat dog house " * 500
    data = write(tmp_path, [{"text": long + str(i), "label": "pos"} for i in range(30)])
    batch = batches(data, tokenizer)[0]
    ids = tokenizer.encode(["cat dog house " * 5])[0]
    assert batch["input_ids"][0].tolist() == [tokenizer.vocab.cls, *ids[:14], tokenizer.vocab.sep]
    assert (batch["segment_ids"][0] == 1).all()


def test_an_unknown_label_names_file_and_line(tmp_path: Path):
    data = write(tmp_path, [*rows(3), {"text": "so so", "label": "meh"}])
    data = dataclasses.replace(data, validation=0.0, test=0.0)
    with pytest.raises(UserError, match=r"data.jsonl:4: unknown label 'meh'; labels are 'neg', 'pos'"):
        data.examples("train")


def test_a_missing_column_names_file_line_and_those_there_are(tmp_path: Path):
    data = write(tmp_path, [*rows(2), {"body": "text", "label": "pos"}])
    with pytest.raises(UserError, match=r"data.jsonl:3: no column 'text'; it has 'body', 'label'"):
        data.examples("train")


def test_new_texts_come_in_order_without_labels(tmp_path: Path, tokenizer: Tokenizer):
    data = write(tmp_path, rows(3))
    new = data.predict_batches([{"text": text} for text in ("cat", "dog", "", "bird")], 3, tokenizer)
    assert [new[i]["label"].tolist() for i in range(len(new))] == [[-1] * 3, [-1] * 3]
    assert new[0]["input_ids"][1, 1] == tokenizer.encode(["dog"])[0][0]
    assert new[0]["input_ids"][2, :2].tolist() == [tokenizer.vocab.cls, tokenizer.vocab.sep]


def test_predictions_carry_names_and_probabilities(tmp_path: Path, tokenizer: Tokenizer):
    data = dataclasses.replace(write(tmp_path, rows(3)), names=("bad", "good"))
    rows_ = data.predict_batches([{"text": "cat"}], 1, tokenizer).dataset
    described = list(data.describe(rows_, {"probabilities": np.array([[0.25, 0.75]])}))
    assert described == [{"label": "good", "probability": 0.75, "probabilities": {"bad": 0.25, "good": 0.75}}]


def test_labels_are_those_of_the_training_split_in_order(tmp_path: Path):
    stars = [{"text": f"text {i}", "label": i % 11} for i in range(60)]
    data = dataclasses.replace(write(tmp_path, stars), labels=())
    settled = data.infer()
    assert settled.labels == tuple(map(str, range(11)))  # by number, not 0, 1, 10, 2
    other = dataclasses.replace(data, label_field="nothing").infer(settled)
    assert other.labels == settled.labels  # another file takes the labels that the model was trained for
    with pytest.raises(UserError, match="every training text has the label 'pos'; there is nothing to learn"):
        dataclasses.replace(write(tmp_path, [{"text": f"t{i}", "label": "pos"} for i in range(9)]), labels=()).infer()
    numbers = [{"text": f"text {i}", "label": i / 7} for i in range(60)]
    with pytest.raises(UserError, match="if they name classes, list them in data.labels; for numbers set data.target"):
        dataclasses.replace(write(tmp_path, numbers), labels=()).infer()


def test_splits_may_have_files_of_their_own(tmp_path: Path):
    data = write(tmp_path, rows(20))
    (tmp_path / "test.csv").write_text("so good,pos\nso bad,neg\n")
    data = dataclasses.replace(data, validation=0.25, test_path=str(tmp_path / "test.csv"), columns=("text", "label"))
    assert data.examples("test") == [Example(("so good",), 1), Example(("so bad",), 0)]
    assert len(data.examples("train")) + len(data.examples("validation")) == 20
    (tmp_path / "test.csv").write_text("so good,pos\nso bad,neg,really\n")
    with pytest.raises(UserError, match=r"test.csv:2: has 3 columns, `columns` names 2"):
        data.examples("test")


def test_empty_and_long_texts_are_counted(tmp_path: Path, tokenizer: Tokenizer):
    some = [*rows(8), {"text": " ", "label": "pos"}, {"text": "cat dog " * 20, "label": "pos"}]
    data = dataclasses.replace(write(tmp_path, some), validation=0.0, test=0.0)
    assert tuple(w.text for w in batches(data, tokenizer).dataset.warnings) == (
        "1 empty texts are skipped",
        "1 of 9 texts are truncated to 16 tokens",
    )


def test_repeated_texts_count_once_and_are_told(tmp_path: Path, tokenizer: Tokenizer):
    some = rows(8)
    other = {"pos": "neg", "neg": "pos"}
    again = [some[0], some[1], some[1], some[2] | {"label": other[some[2]["label"]]}]
    data = dataclasses.replace(write(tmp_path, some + again), validation=0.0, test=0.0)
    examples = data.examples("train")
    assert len(examples) == 8 and examples[2].label == data.labels.index(some[2]["label"])
    assert tuple(w.text for w in batches(data, tokenizer).dataset.warnings) == (
        "3 texts repeat earlier ones with the same label and are skipped",
        "1 texts repeat earlier ones with another label and are skipped",
    )


def test_pairs_share_the_room_and_are_told_apart(tmp_path: Path, tokenizer: Tokenizer):
    pairs = [{"text": "cat dog", "b": "house", "label": "pos"}, {"text": "cat " * 30, "b": "dog " * 9, "label": "neg"}]
    data = dataclasses.replace(write(tmp_path, pairs), second_field="b", validation=0.0, test=0.0)
    batch = batches(data, tokenizer, size=2)[0]
    cls, sep = tokenizer.vocab.cls, tokenizer.vocab.sep
    (cat,), (dog,), (house,) = tokenizer.encode(["cat", "dog", "house"])
    assert batch["input_ids"].tolist() == [
        [cls, cat, dog, sep, house, sep] + [tokenizer.vocab.pad] * 10,
        [cls, *[cat] * 7, sep, *[dog] * 6, sep],
    ]
    assert batch["type_ids"].tolist() == [[0] * 4 + [1] * 2 + [0] * 10, [0] * 9 + [1] * 7]
    record = {"text": "cat dog", "b": "house"}
    assert data.predict_batches([record], 1, tokenizer)[0]["input_ids"].tolist() == batch["input_ids"][:1].tolist()


def test_packed_rows_hold_every_text_once_in_a_segment_of_its_own(tmp_path: Path, tokenizer: Tokenizer):
    data = dataclasses.replace(write(tmp_path, rows(40)), validation=0.0, test=0.0)
    apart = batches(data, tokenizer, size=40)[0]
    packed = batches(dataclasses.replace(data, packed=True, seq_len=32), tokenizer).dataset
    batch = packed.gather(np.arange(len(packed)))
    found = {}
    for row in range(len(packed)):
        for place, number in enumerate(batch["text"][row]):
            inside = batch["segment_ids"][row] == place + 1
            assert (number < 0) == (not inside.any())
            if number >= 0:
                assert batch["positions"][row][inside].tolist() == list(range(inside.sum()))
                found[int(number)] = batch["input_ids"][row][inside].tolist(), int(batch["label"][row, place])
    assert [found[i] for i in range(40)] == [
        (ids[real > 0].tolist(), label)
        for ids, real, label in zip(apart["input_ids"], apart["segment_ids"], apart["label"], strict=True)
    ]
    assert packed.by_text(batch["text"]).tolist() == list(range(40))
    assert packed.padding < 0.5 and "40 texts packed into" in packed.warnings[-1].text


def test_texts_and_labels_may_be_lists(tmp_path: Path, tokenizer: Tokenizer):
    some = [{"text": ["How are you?", "Fine."], "label": [3, 1, 3]}, {"text": ["Bye."], "label": []}]
    data = dataclasses.replace(write(tmp_path, some), labels=(), target="labels", validation=0.0, test=0.0).infer()
    assert data.labels == ("1", "3")
    assert data.examples("train") == [Example(("How are you?\nFine.",), (0, 1)), Example(("Bye.",), ())]
    new = data.predict_batches([{"text": ["cat", "dog"]}, {"text": "cat dog"}], 2, tokenizer)[0]
    assert new["input_ids"][0].tolist() == new["input_ids"][1].tolist()


def test_several_labels_and_numbers_are_judged_as_such(tmp_path: Path, tokenizer: Tokenizer):
    some = [{"text": f"t {i}", "label": ("a", "a, b", "", "b")[i % 4], "number": i / 8} for i in range(16)]
    data = dataclasses.replace(write(tmp_path, some), labels=(), target="labels", validation=0.0, test=0.0).infer()
    assert data.labels == ("a", "b")
    rows_ = batches(data, tokenizer).dataset
    assert rows_.extra["label"][:4].tolist() == [[1, 0], [1, 1], [0, 0], [0, 1]]
    judged = data.evaluate(rows_, {"probabilities": np.full((16, 2), [0.9, 0.1])})
    # a: 8 of 16 right, recall 1; b: never given.
    assert judged.values == pytest.approx({"micro_f1": 2 * 8 / (16 + 16), "macro_f1": (2 / 3) / 2, "exact_match": 0.25})
    data = dataclasses.replace(data, labels=(), target="number", label_field="number").infer()
    rows_ = batches(data, tokenizer).dataset
    judged = data.evaluate(rows_, {"value": np.exp(rows_.extra["label"])})
    assert judged.values["spearman"] == pytest.approx(1.0) and 0.9 < judged.values["pearson"] < 1.0
    with pytest.raises(UserError, match=r"data.jsonl:1: 'label' is 'a', not a number"):
        dataclasses.replace(data, label_field="label").examples("train")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"labels": ("a",)}, "two or more different ones"),
        ({"labels": ("a", "a")}, "two or more different ones"),
        ({"labels": ("a", "b"), "names": ("x",)}, "1 names for 2 labels"),
        ({"labels": ("a", "b"), "validation": 0.6, "test": 0.4}, "must leave records to train on"),
        ({"labels": ("a", "b"), "max_examples": 0}, "max_examples=0 must be at least 1"),
        ({"labels": ("a", "b"), "where": "x"}, "must read column=value"),
        ({"labels": ("a", "b"), "seq_len": 4}, "seq_len=4 must be at least 8"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings: dict, message: str):
    with pytest.raises(UserError, match=message):
        TextClassification("x.csv", **settings)


def test_labels_are_stripped_and_records_without_one_are_counted(tmp_path: Path, tokenizer: Tokenizer):
    some = [*rows(6), {"text": "meh", "label": ""}, {"text": "fine", "label": "pos "}]
    data = dataclasses.replace(write(tmp_path, some), labels=(), validation=0.0, test=0.0).infer()
    assert data.labels == ("neg", "pos") and len(data.examples("train")) == 7
    assert tuple(w.text for w in batches(data, tokenizer).dataset.warnings) == ("1 texts without a label are skipped",)


def test_labels_that_differ_in_other_white_space_are_different(tmp_path: Path):
    labels = ["a", "a ", "\ta", "a\u00a0", "\u3000a", "b"]
    data = write(tmp_path, [{"text": f"t{i}", "label": label} for i, label in enumerate(labels)])
    for target in ("label", "labels"):
        made = dataclasses.replace(data, labels=(), validation=0.0, test=0.0, target=target).infer()
        assert made.labels == ("a", "a\u00a0", "b", "\u3000a")
        found = [example.label for example in made.examples("train")]
        assert found == ([0, 0, 0, 1, 3, 2] if target == "label" else [(0,), (0,), (0,), (1,), (3,), (2,)])


def test_many_classes_may_be_numbered_from_0(tmp_path: Path):
    some = [{"text": f"text {i}", "label": i % 40} for i in range(200)]
    assert dataclasses.replace(write(tmp_path, some), labels=()).infer().labels == tuple(map(str, range(40)))


def test_evaluations_on_other_data_have_the_labels_of_training(tmp_path: Path):
    data = write(tmp_path, rows(20))
    other = dataclasses.replace(data, labels=("pos", "neg"))
    with pytest.raises(UserError, match="labels pos, neg are not those of training, neg, pos"):
        other.infer(data)
    assert other.infer(Corpus("unused")) == other  # trained on text without labels


def test_no_training_text_at_all_is_named(tmp_path: Path):
    data = dataclasses.replace(write(tmp_path, rows(1)), labels=(), validation=0.98, test=0.0)
    with pytest.raises(UserError, match="zero train examples"):
        data.infer()
