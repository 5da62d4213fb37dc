"""Dialogues: which words are asked for, long dialogues, prompts and perplexity."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from bertgpt.data.tokenizer import ByteBPE, Tokenizer
from bertgpt.tasks.dialogue import Dialogue, split_turns
from bertgpt.types import DataRequest, UserError

TALKS = [["hi there", "hello", "how are you ?", "fine , thanks"], ["what time is it ?", "it is noon ."]]


@pytest.fixture
def data(tmp_path: Path) -> Dialogue:
    path = tmp_path / "talks.jsonl"
    path.write_text("".join(json.dumps({"turns": turns}) + "\n" for turns in TALKS))
    return Dialogue(str(path), test_path=str(path), validation=0.0, seq_len=96)


@pytest.fixture(scope="module")
def bytes_only() -> Tokenizer:
    return ByteBPE(257, style="gpt2").make(lambda: iter(["a"]))


def rows(data: Dialogue, tokenizer: Tokenizer):
    return data.make(
        DataRequest(split="train", seed=0, batch_size=2, tokenizer=tokenizer, cache=Path("x"), shuffle=False)
    ).dataset


def asked(data: Dialogue, tokenizer: Tokenizer) -> list[str]:
    """The text of each run of words asked for, end marks as |."""
    table = rows(data, tokenizer).tables
    found = []
    for ids, mask in zip(table["input_ids"], table["target_mask"], strict=True):
        text = ["|" if i == tokenizer.vocab.eos else tokenizer.decode([int(i)]) for i in ids]
        found += "".join(c if m else "\n" for c, m in zip(text, mask, strict=True)).split("\n")
    return [run for run in found if run]


def test_replies_and_their_ends_are_asked_for_and_marks_are_not(data: Dialogue, bytes_only: Tokenizer):
    every = ["hello|", "how are you ?|", "fine , thanks|", "it is noon .|"]
    assert asked(data, bytes_only) == every
    assert asked(dataclasses.replace(data, replies=("B: ",)), bytes_only) == [every[0], *every[2:]]
    assert asked(dataclasses.replace(data, speakers=()), bytes_only) == ["hello|how are you ?|fine , thanks|", every[3]]
    packed = dataclasses.replace(data, packed=True)
    assert len(rows(packed, bytes_only)) == 1 and asked(packed, bytes_only) == every


def test_a_prompt_ends_with_the_mark_of_the_one_whose_turn_it_is(data: Dialogue, bytes_only: Tokenizer):
    prompts = [bytes_only.decode(ids) for ids in data.prompts("test", bytes_only)]
    assert prompts == ["A: hi thereB: helloA: how are you ?B: ", "A: what time is it ?B: "]
    new = data.prompts_of([{"turns": "hi\nhello"}, {"turns": ["x" * 90, "yes"]}], bytes_only)
    assert bytes_only.decode(new[0]) == "A: hiB: helloA: "
    assert bytes_only.decode(new[1]) == "B: yesA: "  # of what is too long the last turns are kept
    assert all(len(ids) <= data.seq_len // 2 for ids in new)


def test_a_long_dialogue_goes_on_in_another_row_after_the_turn_before():
    turns = [([n] * 4, [int(n > 1)] * 4) for n in (1, 2, 3)] + [([4] * 12, [1] * 12)]
    found, cut = split_turns(turns, 10)
    assert found == [
        ([1] * 4 + [2] * 4, [0] * 4 + [1] * 4),
        ([2] * 4 + [3] * 4, [0] * 4 + [1] * 4),
        ([4] * 10, [1] * 10),
    ]
    assert cut == 1
    assert split_turns([([1] * 9, [0] * 9), ([2] * 3, [1] * 3)], 10) == ([([1] * 5 + [2] * 3, [0] * 5 + [1] * 3)], 0)


def test_long_dialogues_are_counted(data: Dialogue, bytes_only: Tokenizer):
    notes = rows(dataclasses.replace(data, seq_len=24), bytes_only).warnings
    assert notes[0].text == "1 turns are truncated to 24 tokens" or "of 2 dialogues are split" in notes[-1].text


def test_perplexity_is_that_of_all_words_together(data: Dialogue, bytes_only: Tokenizer):
    nll, weights = np.array([[0.0, 1.0], [3.0, 2.0]]), np.array([[0, 1], [1, 1]])
    metrics = data.evaluate(rows(data, bytes_only), {"nll": nll, "weights": weights}).values
    assert metrics == {"perplexity": pytest.approx(np.exp(2.0))}


@pytest.mark.parametrize(
    "turns, message",
    [
        (["hi"], "talks.jsonl:1: 'turns' has 1 turns; a dialogue has two or more"),
        (["hi", "  "], "talks.jsonl:1: turn 2 of 'turns' is empty"),
        ([None, 2], "talks.jsonl:1: 'turns' is of type list, not text"),
    ],
)
def test_a_record_that_is_no_dialogue_is_named(tmp_path: Path, turns: list, message: str):
    path = tmp_path / "talks.jsonl"
    path.write_text(json.dumps({"turns": turns}) + "\n")
    with pytest.raises(UserError, match=message):
        Dialogue(str(path), validation=0.0, test=0.0).examples("train")
    with pytest.raises(UserError, match="replies names 'C: ', which is not among speakers"):
        Dialogue("x", replies=("C: ",))


def test_written_replies_are_judged_by_the_last_turns_and_by_how_varied_they_are(data: Dialogue):
    truth = [turns[-1] for turns in data.examples("train")]
    assert data.evaluate_texts("train", truth).values["chrf"] == pytest.approx(100.0)
    same = data.evaluate_texts("train", ["yes yes"] * len(truth)).values
    assert same["distinct_1"] == pytest.approx(1 / (2 * len(truth)))
