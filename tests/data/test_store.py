"""The token store: several shards are as one, damage is noticed, documents are found without reading others."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import make_text

from bertgpt.data import store as store_module
from bertgpt.data.sources.text import clean, sentences, split_of
from bertgpt.data.store import Sharded, check_store, open_store
from bertgpt.data.tokenizer import SPECIAL, Tokenizer, WordPiece
from bertgpt.prepare.filters import Preparation
from bertgpt.prepare.pipeline import prepare
from bertgpt.types import UserError

SETTINGS = Preparation(validation=0.2, test=0.1)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    documents = make_text(60)
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join([*documents, documents[0], "\u200b"]))  # one duplicate, one without any token
    return path


@pytest.fixture
def path(source: Path, tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """A store of one shard a split."""
    prepare(str(source), tokenizer, tmp_path / "store", SETTINGS)
    return tmp_path / "store"


def test_every_document_is_stored_once_in_its_split(source: Path, tokenizer: Tokenizer, tmp_path: Path):
    facts = prepare(str(source), tokenizer, tmp_path / "store", SETTINGS)
    assert facts["dropped"] == {"duplicate": 1, "empty": 1} and facts["read"] == 62
    total = 0
    for split in ("train", "validation", "test"):
        store = open_store(tmp_path / "store", split, tokenizer)
        expected = [t for t in make_text(60) if split_of(clean(t, False), 0.2, 0.1) == split]
        token_starts = [0, *np.asarray(store.sentence_ends)]
        sentence = 0
        for text, last in zip(expected, store.document_ends, strict=True):
            for part in sentences(text):
                ids = store.tokens[token_starts[sentence] : token_starts[sentence + 1]]
                assert ids.tolist() == tokenizer.encode([part])[0]
                sentence += 1
            assert sentence == last
        total += len(expected)
    assert total == 60


def test_two_bytes_a_token_until_they_do_not_suffice(source: Path, path: Path, tokenizer: Tokenizer, tmp_path: Path):
    assert open_store(path, "train", tokenizer).tokens.dtype == np.uint16
    backend = WordPiece(200).make(lambda: iter(make_text(60))).backend
    backend.add_tokens([f"unused{i}" for i in range(70_000)])
    large = Tokenizer(backend, SPECIAL)
    prepare(str(source), large, tmp_path / "large", SETTINGS)
    assert open_store(tmp_path / "large", "train", large).tokens.dtype == np.uint32


def test_a_store_in_shards_is_the_same_arrays(source: Path, path: Path, tokenizer: Tokenizer, tmp_path: Path):
    shards = Preparation(validation=0.2, test=0.1, shard_tokens=150)
    facts = prepare(str(source), tokenizer, tmp_path / "shards", shards)
    whole, pieces = (open_store(p, "train", tokenizer) for p in (path, tmp_path / "shards"))
    assert isinstance(whole.tokens, np.memmap) and isinstance(pieces.tokens, Sharded)
    assert len(facts["splits"]["train"]["shards"]) == len(pieces.tokens.parts) > 5
    for a, b in zip(whole, pieces, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    np.testing.assert_array_equal(whole.document_starts(), pieces.document_starts())
    assert all(150 - 77 < len(part) < 150 + 77 for part in pieces.tokens.parts[:-1])  # whole documents of ≤ 77 tokens


def test_a_document_longer_than_a_shard_stays_whole(tokenizer: Tokenizer, tmp_path: Path):
    texts = ["The cat eats.", "The dog sleeps. " * 40, "A bird sings.", "The cat sings."]
    (tmp_path / "text.txt").write_text("\n\n".join(texts))
    prepare(str(tmp_path / "text.txt"), tokenizer, tmp_path / "s", Preparation(validation=0, test=0, shard_tokens=5))
    store = open_store(tmp_path / "s", "train", tokenizer)
    assert len(store.tokens.parts) == 3 and len(store.document_ends) == 4
    for number, text in enumerate(texts):
        assert store.document(number).tolist() == sum(tokenizer.encode(sentences(text.strip())), [])
    assert store.document(-1).tolist() == store.document(3).tolist()
    with pytest.raises(IndexError):
        store.document(4)


def test_document_starts_are_where_documents_start(path: Path, tokenizer: Tokenizer):
    store = open_store(path, "train", tokenizer)
    starts = store.document_starts()
    assert starts[0] == 0 and len(starts) == len(store.document_ends)
    for number in (0, 1, len(starts) - 1):
        end = starts[number + 1] if number + 1 < len(starts) else len(store.tokens)
        np.testing.assert_array_equal(store.document(number), store.tokens[starts[number] : end])


INDEXES = {
    "integer": 5,
    "negative": -3,
    "numpy integer": np.int32(11),
    "flat": np.array([0, 29, 3, 3, 12], np.int32),
    "two axes": np.arange(24).reshape(4, 6)[::-1],
    "rows in one shard and across": np.array([[0, 9, 3], [11, 29, 20], [9, 10, 11]]),
    "three axes": np.arange(24).reshape(2, 3, 4),
    "negatives": np.array([[-1, 0], [-30, 7]]),
    "list": [4, 20],
    "empty list": [],
    "empty": np.empty((0, 3), int),
    "slice": slice(2, 17),
    "slice in one shard": slice(12, 14),
    "open slice": slice(None, -1),
    "backwards": slice(25, 3, -2),
    "nothing": slice(9, 9),
    "boolean": np.arange(30) % 7 == 2,
}


@pytest.mark.parametrize("index", INDEXES.values(), ids=INDEXES)
@pytest.mark.parametrize("offsets", [None, (0, 100, 100, 200)], ids=["plain", "shifted"])
def test_shards_are_indexed_as_one_array(index, offsets):
    parts = [np.arange(10, dtype=np.uint16), np.arange(40, 41, dtype=np.uint16), np.empty(0, np.uint16)]
    parts.append(np.arange(60, 79, dtype=np.uint16))
    sharded = Sharded(parts, offsets)
    whole = np.concatenate([part + np.uint16(0 if offsets is None else offsets[i]) for i, part in enumerate(parts)])
    expected = whole[index]
    got = sharded[index]
    np.testing.assert_array_equal(got, expected)
    assert got.dtype == np.uint16 and np.shape(got) == np.shape(expected)
    assert len(sharded) == sharded.size == 30 and sharded.shape == (30,) and sharded.ndim == 1


@pytest.mark.parametrize("index", [30, -31, np.array([0, 30]), np.ones(29, bool), 1.5])
def test_an_index_that_names_no_element_is_an_error(index):
    with pytest.raises(IndexError):
        Sharded([np.arange(10), np.arange(20)])[index]


def test_a_slice_inside_one_shard_is_no_copy():
    parts = [np.arange(10), np.arange(20)]
    assert np.shares_memory(Sharded(parts)[12:18], parts[1])


def damage_json(path: Path, **changes) -> None:
    facts = json.loads((path / "store.json").read_text())
    (path / "store.json").write_text(json.dumps(facts | changes))


@pytest.mark.parametrize(
    "harm, message",
    [
        (lambda s: (s / "store.json").unlink(), "cannot be read"),
        (lambda s: (s / "store.json").write_text("{"), "cannot be read"),
        (lambda s: (s / "store.json").write_text("[]"), "cannot be read"),
        (lambda s: damage_json(s, version=2), "has version 2, this program reads 3; prepare it again"),
        (lambda s: damage_json(s, splits={}), "cannot be read: KeyError"),
        (lambda s: damage_json(s, dtype="float99"), "cannot be read: TypeError"),
        (lambda s: damage_json(s, tokenizer="0" * 16), "was prepared with tokenizer 0000000000000000, but this one is"),
        (lambda s: (s / "train/00000/tokens.bin").unlink(), "train/00000/tokens.bin is missing"),
        (lambda s: os.truncate(s / "train/00000/tokens.bin", 10), "train/00000/tokens.bin has 10 bytes, not"),
        (lambda s: (s / "train/00000/sentence_ends.npy").write_bytes(b"x" * 4), "sentence_ends.npy has 4 bytes"),
    ],
)
def test_a_damaged_store_is_refused(path: Path, tokenizer: Tokenizer, harm, message: str):
    harm(path)
    with pytest.raises(UserError, match=message) as caught:
        open_store(path, "train", tokenizer)
    assert "\n" not in str(caught.value)


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[7] ^= 1
    file.write_bytes(content)


def test_one_flipped_bit_is_noticed_at_once_in_a_small_store(path: Path, tokenizer: Tokenizer):
    flip_a_bit(path / "train/00000/tokens.bin")
    with pytest.raises(UserError, match=r"train/00000/tokens.bin is corrupt \(checksum differs\)"):
        open_store(path, "train", tokenizer)
    open_store(path, "test", tokenizer)


def test_one_flipped_bit_is_noticed_on_request_in_a_large_one(path: Path, tokenizer: Tokenizer, monkeypatch):
    assert check_store(path)["version"] == 3
    flip_a_bit(path / "test/00000/document_ends.npy")
    monkeypatch.setattr(store_module, "CHECK_BELOW", 10)
    open_store(path, "train", tokenizer)
    with pytest.raises(UserError, match=r"test/00000/document_ends.npy is corrupt \(checksum differs\)"):
        check_store(path)


def test_a_store_whose_facts_were_changed_has_another_digest(path: Path):
    damage_json(path, digest="0" * 64)
    with pytest.raises(UserError, match="store.json does not match its own digest"):
        check_store(path)


def test_ids_outside_the_vocabulary_are_refused(path: Path, tokenizer: Tokenizer):
    facts = json.loads((path / "store.json").read_text())
    shard = facts["splits"]["train"]["shards"][0]
    assert shard["largest_id"] == np.fromfile(path / "train/00000/tokens.bin", np.uint16).max()
    shard["largest_id"] = tokenizer.vocab.size
    (path / "store.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match=f"token id {tokenizer.vocab.size} in 'train' is not below vocabulary size"):
        open_store(path, "train", tokenizer)


def test_an_empty_split_is_refused(source: Path, tokenizer: Tokenizer, tmp_path: Path):
    prepare(str(source), tokenizer, tmp_path / "store", Preparation(validation=0.2, test=0.0))
    with pytest.raises(UserError, match="split 'test' has no documents; raise data.test or provide more text"):
        open_store(tmp_path / "store", "test", tokenizer)
