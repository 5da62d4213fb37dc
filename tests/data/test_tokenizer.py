"""WordPiece: the same bytes every time, the library's own ids, files that others read."""

from pathlib import Path

import pytest
import tokenizers
from conftest import make_text

from bertgpt.data.tokenizer import SPECIAL, Tokenizer, WordPiece, load_tokenizer
from bertgpt.types import UserError

TEXTS = [*make_text(50), "Ünïcode café № 7", "你好世界，这是测试。", "naïve"]


def trained(**settings) -> Tokenizer:
    return WordPiece(**{"vocab_size": 200, "min_frequency": 1} | settings).make(lambda: iter(TEXTS))


def test_the_same_texts_give_the_same_vocabulary_in_any_order():
    first = trained()
    assert [trained().hash for _ in range(3)] == [first.hash] * 3
    assert WordPiece(200, min_frequency=1).make(lambda: reversed(TEXTS)).hash == first.hash


def test_special_tokens_come_first_and_the_size_is_kept():
    tokenizer = trained()
    assert [
        tokenizer.vocab.pad,
        tokenizer.vocab.unk,
        tokenizer.vocab.cls,
        tokenizer.vocab.sep,
        tokenizer.vocab.mask,
    ] == list(range(5))
    assert tokenizer.vocab.size <= 200


def test_chinese_characters_stand_alone_and_accents_fold():
    tokenizer = trained(limit_alphabet=200)
    assert tokenizer.tokens(tokenizer.encode(["你好"])[0]) == ["你", "好"]
    assert tokenizer.encode(["CAFÉ"]) == tokenizer.encode(["cafe"])


def test_text_that_spells_a_special_token_is_only_text():
    tokenizer = trained()
    ids = tokenizer.encode(["the [MASK] [PAD]"])[0]
    assert not {tokenizer.vocab.mask, tokenizer.vocab.pad} & set(ids)
    assert tokenizer.encode(["the [MASK]"], parse_special=True)[0][-1] == tokenizer.vocab.mask


def test_saved_and_loaded_it_is_the_same_and_the_library_agrees(tmp_path: Path):
    tokenizer = trained()
    tokenizer.save(tmp_path / "t")
    again = load_tokenizer(tmp_path / "t")
    assert again.hash == tokenizer.hash and again.encode(TEXTS) == tokenizer.encode(TEXTS)
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "t" / "tokenizer.json"))
    assert [library.encode(text, add_special_tokens=False).ids for text in TEXTS] == tokenizer.encode(TEXTS)
    encoded = library.encode(TEXTS[0])
    assert encoded.tokens[0] == "[CLS]" and encoded.tokens[-1] == "[SEP]"


def test_a_vocab_txt_alone_is_enough_wherever_its_special_tokens_are(tmp_path: Path):
    pieces = ["[PAD]", *(f"[unused{i}]" for i in range(20)), "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode(["The cats"]) == [[25, 26, 27]] and tokenizer.vocab.mask == 24
    assert tokenizer.decode([25, 26, 27]) == "the cats"


def test_a_vocabulary_smaller_than_what_it_must_hold_is_refused():
    with pytest.raises(UserError, match="vocab_size=5 is too small for 5 special tokens"):
        WordPiece(vocab_size=5)
    with pytest.raises(UserError, match="vocab_size=20 is too small for the text's characters"):
        trained(vocab_size=20)


def test_unusable_files_are_refused_by_name(tmp_path: Path):
    with pytest.raises(UserError, match="no such tokenizer"):
        load_tokenizer(tmp_path / "missing")
    with pytest.raises(UserError, match="holds neither tokenizer.json nor vocab.txt"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{broken")
    with pytest.raises(UserError, match="tokenizer.json: cannot be read as a tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nword\n")
    with pytest.raises(UserError, match=r"vocab.txt: has no \[MASK\] token"):
        load_tokenizer(tmp_path)
    assert set(SPECIAL) == {"pad", "unk", "cls", "sep", "mask"}
