"""The token store: what goes in comes out, damage is noticed, and a killed prepare leaves nothing."""

import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import make_text

from bertgpt.config import UserError
from bertgpt.data import store as store_module
from bertgpt.data.store import open_store, prepare
from bertgpt.data.text import clean, sentences, split_of
from bertgpt.data.tokenizer import SPECIAL, Tokenizer, WordPiece

SETTINGS = dict(text_field="text", strip_html=False, validation=0.2, test=0.1)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    documents = make_text(60)
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join([*documents, documents[0], "\u200b"]))  # one duplicate, one without any token
    return path


def test_every_document_is_stored_once_in_its_split(source: Path, tokenizer: Tokenizer, tmp_path: Path):
    facts = prepare(str(source), tokenizer, tmp_path / "store", **SETTINGS)
    assert facts["dropped"] == {"duplicate": 1, "empty": 1}
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


def test_two_bytes_a_token_until_they_do_not_suffice(source: Path, tokenizer: Tokenizer, tmp_path: Path):
    prepare(str(source), tokenizer, tmp_path / "small", **SETTINGS)
    assert open_store(tmp_path / "small", "train", tokenizer).tokens.dtype == np.uint16
    backend = WordPiece(200).make(lambda: iter(make_text(60))).backend
    backend.add_tokens([f"unused{i}" for i in range(70_000)])
    large = Tokenizer(backend, SPECIAL)
    prepare(str(source), large, tmp_path / "large", **SETTINGS)
    assert open_store(tmp_path / "large", "train", large).tokens.dtype == np.uint32


def test_a_prepare_that_fails_leaves_nothing(source: Path, tokenizer: Tokenizer, tmp_path: Path):
    source.write_bytes(source.read_bytes() + b"\n\n\xff\n")
    with pytest.raises(UserError, match="not valid UTF-8"):
        prepare(str(source), tokenizer, tmp_path / "store", **SETTINGS)
    assert [p.name for p in tmp_path.iterdir()] == ["text.txt"]


def _prepare_and_die(source: Path, tokenizer_json: str, path: Path) -> None:
    import tokenizers

    store_module.sentences = lambda text: os._exit(9)  # as if killed in the middle
    prepare(str(source), Tokenizer(tokenizers.Tokenizer.from_str(tokenizer_json), SPECIAL), path, **SETTINGS)


def test_what_a_killed_prepare_left_is_removed_by_the_next(source: Path, tokenizer: Tokenizer, tmp_path: Path):
    spawn = multiprocessing.get_context("spawn")
    process = spawn.Process(target=_prepare_and_die, args=(source, tokenizer.backend.to_str(), tmp_path / "store"))
    process.start()
    process.join()
    assert process.exitcode == 9
    assert not (tmp_path / "store").exists() and len(list(tmp_path.glob(".store.*.partial"))) == 1
    prepare(str(source), tokenizer, tmp_path / "store", **SETTINGS)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["store", "text.txt"]


def test_an_existing_store_is_not_overwritten(source: Path, tokenizer: Tokenizer, tmp_path: Path):
    prepare(str(source), tokenizer, tmp_path / "store", **SETTINGS)
    with pytest.raises(UserError, match="store: exists already"):
        prepare(str(source), tokenizer, tmp_path / "store", **SETTINGS)


def damage_json(path: Path, **changes) -> None:
    facts = json.loads((path / "store.json").read_text())
    (path / "store.json").write_text(json.dumps(facts | changes))


@pytest.mark.parametrize(
    "harm, message",
    [
        (lambda s: (s / "store.json").unlink(), "cannot be read"),
        (lambda s: (s / "store.json").write_text("{"), "cannot be read"),
        (lambda s: damage_json(s, version=99), "has version 99"),
        (lambda s: damage_json(s, tokenizer="0" * 16), "was prepared with tokenizer 0000000000000000, but this one is"),
        (lambda s: (s / "train" / "tokens.bin").unlink(), "train/tokens.bin is missing"),
        (lambda s: os.truncate(s / "train" / "tokens.bin", 10), "train/tokens.bin has 10 bytes"),
        (lambda s: (s / "train" / "sentence_ends.npy").write_bytes(b"x" * 4), "sentence_ends.npy has 4 bytes"),
    ],
)
def test_a_damaged_store_is_refused(source: Path, tokenizer: Tokenizer, tmp_path: Path, harm, message: str):
    prepare(str(source), tokenizer, tmp_path / "store", **SETTINGS)
    harm(tmp_path / "store")
    with pytest.raises(UserError, match=message) as caught:
        open_store(tmp_path / "store", "train", tokenizer)
    assert "\n" not in str(caught.value)


def test_one_flipped_bit_is_noticed(source: Path, tokenizer: Tokenizer, tmp_path: Path):
    prepare(str(source), tokenizer, tmp_path / "store", **SETTINGS)
    path = tmp_path / "store" / "train" / "tokens.bin"
    content = bytearray(path.read_bytes())
    content[7] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"train/tokens.bin is corrupt \(checksum differs\)"):
        open_store(tmp_path / "store", "train", tokenizer)


def test_ids_outside_the_vocabulary_are_refused(source: Path, tokenizer: Tokenizer, tmp_path: Path):
    prepare(str(source), tokenizer, tmp_path / "store", **SETTINGS)
    path = tmp_path / "store" / "train" / "tokens.bin"
    ids = np.fromfile(path, np.uint16)
    ids[3] = tokenizer.vocab.size
    ids.tofile(path)
    facts = json.loads((tmp_path / "store" / "store.json").read_text())
    facts["splits"]["train"]["files"]["tokens.bin"]["crc32"] = store_module._crc(path)
    (tmp_path / "store" / "store.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match=f"token id {tokenizer.vocab.size} in 'train' is not below vocabulary size"):
        open_store(tmp_path / "store", "train", tokenizer)


def test_an_empty_split_is_refused(source: Path, tokenizer: Tokenizer, tmp_path: Path):
    prepare(str(source), tokenizer, tmp_path / "store", **SETTINGS | {"test": 0.0})
    with pytest.raises(UserError, match="split 'test' has no documents; raise data.test or give more text"):
        open_store(tmp_path / "store", "test", tokenizer)
