"""A corpus as the data of an experiment: what each layout hands out, and words to fill in."""

import dataclasses
import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from small_stores import check_spec

from bertgpt.config import Experiment
from bertgpt.data.sources.text import split_of
from bertgpt.data.tokenizer import Tokenizer, WordPiece
from bertgpt.prepare.corpus import Corpus, Layout
from bertgpt.types import DataRequest, Dataset, TokenSource, UserError


def make(data: Corpus, tokenizer: Tokenizer, cache: Path, split: str = "train", shuffle: bool = True):
    return data.make(DataRequest(split=split, seed=0, batch_size=8, tokenizer=tokenizer, cache=cache, shuffle=shuffle))


@pytest.mark.parametrize("rows", get_args(Layout))
def test_every_layout_gives_the_same_kind_of_batch(tiny: Experiment, tokenizer: Tokenizer, tmp_path: Path, rows: str):
    data = dataclasses.replace(tiny.data, layout=rows)
    for shuffle, split in ((True, "train"), (False, "test")):
        batches = make(data, tokenizer, tmp_path, split, shuffle)
        check_spec(batches)
        assert isinstance(batches.dataset, Dataset) and isinstance(batches.dataset, TokenSource)
        for index in range(batches.steps_per_epoch):
            batch = batches[index]
            for name in ("input_ids", "segment_ids", "positions", "type_ids"):
                assert batch[name].shape == (8, 32) and batch[name].dtype == np.int32
            for name in ("row", "epoch"):
                assert batch[name].shape == (8,) and batch[name].dtype == np.int32
            assert ("pair_label" in batch) == (rows in ("pairs", "swapped_pairs"))
            assert batch["input_ids"].max() < tokenizer.vocab.size and batch["positions"].max() < 32
            assert ((batch["input_ids"] == tokenizer.vocab.pad) == (batch["segment_ids"] == 0)).all()


def test_padding_waste_is_logged(
    tiny: Experiment, tokenizer: Tokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level("INFO", "bertgpt.prepare.corpus"):
        batches = make(dataclasses.replace(tiny.data, layout="doc_sentences"), tokenizer, tmp_path)
    expected = f"train, doc_sentences: {len(batches.dataset)} sequences, {100 * batches.dataset.padding:.1f} % padding"
    assert expected in caplog.messages and 0.1 < batches.dataset.padding < 0.9


def test_tokens_left_over_are_evaluated_but_not_trained_on(tiny: Experiment, tokenizer: Tokenizer, tmp_path: Path):
    data = dataclasses.replace(tiny.data, layout="tokens")
    train, held_out = (make(data, tokenizer, tmp_path, shuffle=shuffle) for shuffle in (True, False))
    assert len(held_out.dataset) == len(train.dataset) + 1 and train.dataset.padding == 0.0 < held_out.dataset.padding


def test_the_store_is_prepared_once_and_again_when_the_text_changes(tokenizer: Tokenizer, tmp_path: Path):
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(f"The cat eats. The dog sleeps {i}." for i in range(20)))
    data = Corpus(str(path), seq_len=16, validation=0.1, test=0.1)
    first = data.store(tokenizer, tmp_path / "cache")
    written = (first / "store.json").stat().st_mtime_ns
    assert data.store(tokenizer, tmp_path / "cache") == first
    assert (first / "store.json").stat().st_mtime_ns == written
    path.write_text(path.read_text() + "\n\nA bird sings.")
    assert data.store(tokenizer, tmp_path / "cache") != first
    assert dataclasses.replace(data, test=0.2).store(tokenizer, tmp_path / "cache") != first


def test_the_tokenizer_sees_the_training_split_only(tmp_path: Path):
    path = tmp_path / "text.jsonl"
    lines = [json.dumps({"text": f"alpha beta{chr(0x3B1 + i % 20)} {i}"}) for i in range(400)]
    path.write_text("\n".join(lines))
    data = Corpus(str(path), WordPiece(100), validation=0.3, test=0.3)
    train = [json.loads(line)["text"] for line in lines if split_of(json.loads(line)["text"], 0.3, 0.3) == "train"]
    assert 100 < len(train) < 220
    assert data.train_tokenizer().hash == WordPiece(100).make(lambda: iter(train)).hash


def test_masks_in_a_text_are_the_positions_to_fill_in(tiny: Experiment, tokenizer: Tokenizer):
    batches = tiny.data.predict_batches([{"text": "the [MASK] sleeps"}, {"text": "[MASK] [MASK] eats"}], 2, tokenizer)
    batch = batches[0]
    mask = tokenizer.vocab.mask
    assert batch["mlm_positions"].tolist() == [[2, 0], [1, 2]]
    assert batch["input_ids"][0, 2] == mask and batch["input_ids"][1, 1:3].tolist() == [mask, mask]


def test_words_to_fill_in_are_described_for_real_masks_only(tiny: Experiment, tokenizer: Tokenizer):
    ids = tokenizer.encode(["cat dog"])[0]
    outputs = {
        "mlm_positions": np.array([[2, 0]]),
        "tokens": np.array([[ids, ids]]),
        "probabilities": np.array([[[0.75, 0.125], [0.5, 0.5]]]),
    }
    rows = tiny.data.predict_batches([{"text": "a [MASK]"}], 1, tokenizer).dataset
    rows.extra["mlm_positions"] = outputs.pop("mlm_positions")
    assert list(tiny.data.describe(rows, outputs)) == [{"masks": [{"cat": 0.75, "dog": 0.125}]}]


def test_a_text_without_a_mask_is_refused(tiny: Experiment, tokenizer: Tokenizer):
    with pytest.raises(UserError, match="no .MASK. to fill in among the first 30 tokens of 'the cat sleeps'"):
        tiny.data.predict_batches([{"text": "a [MASK]"}, {"text": "the cat sleeps"}], 2, tokenizer)
    with pytest.raises(UserError, match="no .MASK. to fill in"):  # it lies beyond the row
        tiny.data.predict_batches([{"text": "cat " * 40 + "[MASK]"}], 2, tokenizer)
    long = tiny.data.predict_batches([{"text": "[MASK] cat " * 20}, {"text": "a [MASK]"}], 2, tokenizer).dataset
    assert [w.text for w in long.warnings] == ["1 of 2 texts are truncated to 32 tokens; 5 masks are lost"]
    assert not tiny.data.predict_batches([{"text": "a [MASK]"}], 2, tokenizer).dataset.warnings


def test_a_table_without_the_named_column_is_refused(tokenizer: Tokenizer, tmp_path: Path):
    path = tmp_path / "text.csv"
    path.write_text("body,stars\nFine film.,4\n")
    with pytest.raises(UserError, match=r"text.csv:2: no column 'text'; it has 'body', 'stars'"):
        make(Corpus(str(path)), tokenizer, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("store-*"))


def test_a_store_of_another_tokenizer_is_refused(tiny: Experiment, tokenizer: Tokenizer, tmp_path: Path):
    path = tiny.data.store(tokenizer, tmp_path)
    other = WordPiece(60).make(lambda: iter(["the cat eats the dog"] * 5))
    with pytest.raises(UserError, match="tokenizer"):
        make(dataclasses.replace(tiny.data, path=str(path)), other, tmp_path)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"seq_len": 7}, "seq_len=7 must be at least 8"),
        ({"duplicates": 0}, "duplicates=0 must be at least 1"),
        ({"short_seq_prob": 1.5}, r"short_seq_prob=1.5 must lie in \[0, 1\]"),
        ({"validation": 0.5, "test": 0.5}, "must leave text to train on"),
        ({"validation": -0.1}, r"validation=-0.1 must lie in \[0, 1\)"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings: dict, message: str):
    with pytest.raises(UserError, match=message):
        Corpus("x.txt", **settings)
