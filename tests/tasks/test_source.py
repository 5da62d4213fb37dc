"""What the data of all tasks share: files read once, splits by hash, declared fields of batches."""

import builtins
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, WORDS

from bertgpt.config import TEST, VALIDATION, Experiment
from bertgpt.data.sources.text import split_of
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.objectives.classify import Classify
from bertgpt.tasks.baselines import Majority, NGram, TfidfLogisticRegression
from bertgpt.tasks.classification import TextClassification
from bertgpt.tasks.dialogue import Dialogue
from bertgpt.tasks.generation import FirstWords, Nearest, TextToText
from bertgpt.tasks.multiple_choice import LongestChoice, MultipleChoice, OverlapChoice
from bertgpt.tasks.question_answering import NoAnswer, OverlapSentence, QuestionAnswering
from bertgpt.tasks.similarity import TextPairs
from bertgpt.tasks.source import TaskFiles
from bertgpt.tasks.summarization import ExtractiveSummary, Lead, Oracle
from bertgpt.tasks.tagging import MostFrequentTag, TokenTagging
from bertgpt.training.loop import train
from bertgpt.training.optim import AdamW
from bertgpt.types import DataRequest, Dataset, DataWarning, HeldOut

SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Records that every task can read."""
    rng, lines = np.random.default_rng(0), []
    for number in range(60):
        words = [str(word) for word in rng.choice(WORDS, 6)]
        text = " ".join(words)
        record = {
            "text": text, "label": "ab"[number % 2], "number": number, "second": " ".join(words[::-1]),
            "tokens": words, "tags": ["B-X" if word == "dog" else "O" for word in words],
            "question": words[0], "context": text, "answer": words[1], "choices": words[:3], "right": 1,
            "source": text, "target": words[0], "turns": [text, words[0]],
            "document": [text, words[0]], "summary": words[0],
        }  # fmt: skip
        lines.append(json.dumps(record) + "\n")
    file = tmp_path_factory.mktemp("source") / "records.jsonl"
    file.write_text("".join(lines))
    return str(file)


SHORT = {"seq_len": 32, "validation": 0.2, "test": 0.2}
TASKS = {
    "classification": (TextClassification("", **SHORT), (Majority(), TfidfLogisticRegression())),
    "packed": (TextClassification("", packed=True, **SHORT), (Majority(),)),
    "pairs": (TextClassification("", second_field="second", **SHORT), (Majority(), TfidfLogisticRegression())),
    "several labels": (TextClassification("", label_field="choices", target="labels", **SHORT), ()),
    "similarity": (TextPairs("", first_field="text", second_field="second", label_field="number", **SHORT), ()),
    "choice": (MultipleChoice("", label_field="right", **SHORT), (LongestChoice(), OverlapChoice())),
    "tagging": (TokenTagging("", **SHORT), (MostFrequentTag(),)),
    "questions": (
        QuestionAnswering("", answer_field="answer", max_question=8, **SHORT),
        (NoAnswer(), OverlapSentence()),
    ),
    "text to text": (TextToText("", target_len=8, **SHORT), (NGram(1), FirstWords(2), Nearest())),
    "conditional": (TextToText("", target_len=8, architecture="decoder", packed=True, **SHORT), (FirstWords(),)),
    "dialogue": (Dialogue("", **SHORT), (NGram(2),)),
    "summaries": (ExtractiveSummary("", count=1, **SHORT), (Lead(), Oracle())),
}


@pytest.fixture(params=list(TASKS))
def task(request: pytest.FixtureRequest, path: str) -> tuple[TaskFiles, tuple]:
    """A data config and its baselines."""
    data, baselines = TASKS[request.param]
    return dataclasses.replace(data, path=path), baselines


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every path that is opened."""
    paths: list[str] = []

    def counting(really: Callable[..., Any]) -> Callable[..., Any]:
        def open_file(file: Any, *args: Any, **kwargs: Any) -> Any:
            paths.append(str(file))
            return really(file, *args, **kwargs)

        return open_file

    for module in (builtins, os):
        monkeypatch.setattr(module, "open", counting(module.open))
    return paths


def fresh(data: TaskFiles, folder: Path) -> TaskFiles:
    """The same data in a file that was never read."""
    copy = folder / "fresh.jsonl"
    copy.write_bytes(Path(data.path).read_bytes())
    return dataclasses.replace(data, path=str(copy))


def test_a_file_is_read_once_for_all_splits_labels_texts_and_baselines(
    task: tuple, tmp_path: Path, tokenizer: Tokenizer, opened: list[str]
):
    data, baselines = fresh(task[0], tmp_path), task[1]
    data = data.infer()
    assert list(data.texts("train"))
    made = {split: data.make(DataRequest(split, tokenizer, 8)) for split in SPLITS}
    for baseline in baselines:
        predict = baseline.fit(data, made["train"])
        for split in SPLITS[1:]:
            assert data.examples(split)
            if not isinstance(baseline, NGram):  # which is scored on targets of an objective
                assert predict(HeldOut(data, split, made[split])).values
    assert opened.count(data.path) == 1


def test_a_whole_run_parses_its_file_once(path: str, tmp_path: Path, tokenizer_dir: Path, opened: list[str]):
    data = fresh(TextClassification(path, tokenizer=str(tokenizer_dir), **SHORT), tmp_path)
    experiment = Experiment(
        "once", TINY, Classify(balance=True), data, AdamW(lr=1e-3), steps=2, batch_size=8,
        evals=(VALIDATION, TEST), baselines=(Majority(), TfidfLogisticRegression()),
    )  # fmt: skip
    results = train(experiment, tmp_path / "runs")
    assert set(results["baselines"]["majority class"]) == {"validation", "test"}
    assert opened.count(data.path) == 2  # once to parse it, once for the digest that a resumed run compares


def test_a_file_that_changes_is_read_again(path: str, tmp_path: Path):
    data = fresh(TextClassification(path, **SHORT), tmp_path).infer()
    before = len(data.examples("train"))
    Path(data.path).write_text("".join(Path(path).read_text().splitlines(keepends=True)[:20]))
    assert 0 < len(data.examples("train")) < before


def test_batches_hold_exactly_the_fields_that_datasets_declare(task: tuple, tokenizer: Tokenizer):
    data = task[0].infer()
    batches = data.make(DataRequest("validation", tokenizer, 7))
    assert isinstance(batches.dataset, Dataset)
    assert all(isinstance(warning, DataWarning) and warning.text for warning in batches.dataset.warnings)
    batch = batches.dataset.gather(np.arange(min(3, len(batches.dataset))))
    assert set(batch) == set(batches.dataset.spec)
    for name, declared in batches.dataset.spec.items():
        assert declared.dtype == batch[name].dtype.name, name
        assert len(declared.axes) == batch[name].ndim and declared.axes[0] == "batch", name
    last = batches[len(batches) - 1]
    padding = last["row"] < 0
    assert not last["segment_ids"][padding].any()
    if "label" in last and last["label"].ndim == 1:
        assert np.all(last["label"][padding] == -1)


@pytest.mark.parametrize("texts", [("a",), ("one text", "another"), ("", "x", "y")])
def test_several_texts_have_the_split_of_their_joined_bytes(texts: tuple[str, ...]):
    joined = b"\x1f".join(text.encode() for text in texts)
    place = int.from_bytes(hashlib.blake2b(joined, digest_size=8, person=b"split").digest()) / 2**64
    assert split_of(texts, place - 1e-9, 0.0) == "train" and split_of(texts, place + 1e-9, 0.0) == "validation"
    assert split_of(texts, 0.0, place + 1e-9) == "test"
    assert len(texts) > 1 or split_of(texts[0], 0.5, 0.2) == split_of(texts, 0.5, 0.2)
