"""SentencePiece models in the layouts of XLM-RoBERTa, CamemBERT and mT5: ids counted by hand from the model's own."""

import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from data.test_tokenizer_files import LINES, T5, sentence_piece

from bertgpt.data.offsets import locate_tokens
from bertgpt.data.tokenizer import load_tokenizer
from bertgpt.types import UserError

FAIRSEQ = {"unk_id": 0, "bos_id": 1, "eos_id": 2}


def fairseq_model(directory: Path, kind: str = "unigram", **settings: object) -> sentencepiece.SentencePieceProcessor:
    reference = sentence_piece(directory, model_type=kind, **FAIRSEQ)
    (directory / "spiece.model").rename(directory / "sentencepiece.bpe.model")
    if settings:
        (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return reference


def mt5_model(directory: Path) -> sentencepiece.SentencePieceProcessor:
    """A model with bytes and with its sentinels, and the settings of mT5."""
    names = ",".join(f"▁<extra_id_{i}>" for i in reversed(range(5)))
    reference = sentence_piece(directory, **T5, byte_fallback=True, user_defined_symbols=names, vocab_size=1100)
    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "additional_special_tokens": None}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return reference


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
@pytest.mark.parametrize(
    "family, told_by",  # the file of CamemBERT has the same name
    [("xlm-roberta", "name"), ("xlm-roberta", "class"), ("camembert", "class"), ("camembert", "model")],
)
def test_ids_of_fairseq_are_shifted_and_end_with_the_mask(family, told_by, kind, tmp_path: Path):
    reference = fairseq_model(tmp_path / "a", kind)
    name = {"xlm-roberta": "XLMRobertaTokenizer", "camembert": "CamembertTokenizerFast"}[family]
    if told_by == "class":
        (tmp_path / "a" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
    if told_by == "model":
        (tmp_path / "a" / "config.json").write_text(json.dumps({"model_type": family}))
    tokenizer = load_tokenizer(tmp_path / "a")
    size = reference.get_piece_size()
    shift = 1 if family == "xlm-roberta" else 4
    expected = [[3 if i == 0 else i + shift for i in reference.encode(line)] for line in LINES]
    assert tokenizer.encode(LINES) == expected
    vocab, first, last = tokenizer.vocab, *((0, 2) if family == "xlm-roberta" else (5, 6))
    assert vocab.size == size + shift + 1 and vocab.mask == size + shift
    assert (vocab.pad, vocab.unk, vocab.cls, vocab.sep, vocab.bos, vocab.eos) == (1, 3, first, last, first, last)
    assert tokenizer.template == ([first], [last]) and tokenizer.separator == [last, last]
    assert tokenizer.encode(["a <mask>"], parse_special=True)[0][-1] == vocab.mask
    assert vocab.mask not in tokenizer.encode(["a <mask>"])[0]
    located = locate_tokens(tokenizer, LINES)
    assert [item.ids for item in located] == expected
    text = "Übergrößenträger sehen"
    bounds = locate_tokens(tokenizer, [text])[0].bounds
    assert text[bounds[-1][0] : bounds[-1][1]] and int(np.max(bounds)) == len(text)
    tokenizer.save(tmp_path / "b")
    content = (tmp_path / "a" / "sentencepiece.bpe.model").read_bytes()
    assert (tmp_path / "b" / "sentencepiece.bpe.model").read_bytes() == content
    again = load_tokenizer(tmp_path / "b")
    assert again.hash == tokenizer.hash and again.encode(LINES) == expected and again.spiece == content
    assert [tokenizer.decode(row) for row in expected] == [reference.decode(reference.encode(line)) for line in LINES]


def test_a_model_of_fairseq_begins_as_theirs_do(tmp_path: Path):
    sentence_piece(tmp_path, **T5)
    (tmp_path / "spiece.model").rename(tmp_path / "sentencepiece.bpe.model")
    with pytest.raises(
        UserError, match=r"bpe.model: begins with the pieces <pad>, </s>, <unk>, but a model of xlm-rob"
    ):
        load_tokenizer(tmp_path)


def test_mt5_has_its_sentinels_in_the_model_and_bytes_for_unknown_characters(tmp_path: Path):
    reference = mt5_model(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.vocab.size == reference.get_piece_size()
    assert tokenizer.vocab.sentinels == tuple(reference.piece_to_id(f"▁<extra_id_{i}>") for i in range(5))
    lines = [*LINES, "a <extra_id_0> b", "unseen ꙮ"]
    assert tokenizer.encode(lines) == [reference.encode(line) for line in lines]
    assert (
        "<0xEA>" in tokenizer.tokens(tokenizer.encode(["ꙮ"])[0]) and tokenizer.decode(tokenizer.encode(["ꙮ"])[0]) == "ꙮ"
    )
    (tmp_path / "tokenizer_config.json").unlink()  # without settings none is added a second time
    assert load_tokenizer(tmp_path).vocab == tokenizer.vocab


@pytest.mark.parametrize("extra", [-1, 10**9, "many", 1.5, True])
def test_a_senseless_number_of_sentinels_is_refused(extra, tmp_path: Path):
    sentence_piece(tmp_path, **T5)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"extra_ids": extra}))
    with pytest.raises(UserError, match="spiece.model: its settings name extra_ids=.*, which must be a number up to"):
        load_tokenizer(tmp_path)
