"""Byte-level BPE, SentencePiece, and WordPiece of Chinese, trained here: the same each time, the libraries' own ids."""

import json
import random
import unicodedata
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from conftest import make_text

from bertgpt.config import from_json, to_json
from bertgpt.data.tokenizer import ByteBPE, SentencePiece, Tokenizer, WordPiece, load_tokenizer
from bertgpt.prepare.corpus import Corpus
from bertgpt.types import UserError

LINES = (Path(__file__).parent / "multilingual.txt").read_text(encoding="utf-8").split("\n")
CHINESE = [
    "天地玄黄，宇宙洪荒。日月盈昃，辰宿列张。寒来暑往，秋收冬藏。闰余成岁，律吕调阳。",
    "我们训练一个语言模型，共12层。语言模型学习文字，文字来自书本。",
    "臺灣與香港使用繁體字。模型也學習繁體字，一個字一個字地讀。",
]
BPE = {
    "roberta": ByteBPE(600, "roberta"),
    "gpt2": ByteBPE(600, "gpt2"),
}
SPM = {
    f"{style}-{kind}": SentencePiece(kind, style, 1000, sentinels=20, character_coverage=1.0)
    for style in ("t5", "albert")
    for kind in ("unigram", "bpe")
}
ALL = BPE | SPM | {"fallback": SentencePiece("bpe", "t5", 800, character_coverage=0.98, byte_fallback=True)}


def fold_as_albert(text: str) -> str:
    text = unicodedata.normalize("NFKD", text.replace("``", '"').replace("''", '"'))
    return "".join(c for c in text if not unicodedata.category(c).startswith("M")).lower()


def trained(config, texts=LINES) -> Tokenizer:
    return config.make(lambda: iter(texts))


@pytest.mark.parametrize("name", ALL)
def test_the_same_texts_give_the_same_tokenizer(name):
    first = trained(ALL[name])
    assert {trained(ALL[name]).hash for _ in range(3)} == {first.hash}
    assert first.vocab.size <= ALL[name].vocab_size
    assert trained(ALL[name], LINES[:8]).hash != first.hash


@pytest.mark.parametrize("name", BPE)
def test_byte_bpe_has_the_ids_of_the_library(name, tmp_path: Path):
    tokenizer = trained(BPE[name])
    tokenizer.save(tmp_path / "t")
    reference = tokenizers.ByteLevelBPETokenizer(str(tmp_path / "t" / "vocab.json"), str(tmp_path / "t" / "merges.txt"))
    own = tokenizers.ByteLevelBPETokenizer()
    own.train_from_iterator(iter(LINES), 600, 2, special_tokens=list(BPE[name].special), show_progress=False)
    ids = tokenizer.encode(LINES)
    assert ids == [reference.encode(line).ids for line in LINES] and own.get_vocab() == tokenizer.backend.get_vocab()
    assert [tokenizer.decode(row) for row in ids] == LINES
    assert load_tokenizer(tmp_path / "t").hash == tokenizer.hash
    assert load_tokenizer(tmp_path / "t" / "vocab.json").encode(LINES) == ids


def test_byte_bpe_has_the_special_tokens_of_its_style():
    roberta, gpt2 = (trained(config) for config in BPE.values())
    assert roberta.tokens(list(range(5))) == ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    assert roberta.template == ([0], [2]) and (roberta.vocab.pad, roberta.vocab.mask, roberta.vocab.eos) == (1, 4, 2)
    assert roberta.encode(["a <mask>"], parse_special=True)[0][1:] == [4]  # without a token for the space
    assert gpt2.template == ([], []) and gpt2.tokens([0]) == ["<|endoftext|>"]
    assert (gpt2.vocab.bos, gpt2.vocab.eos, gpt2.vocab.pad, gpt2.vocab.special) == (0, 0, None, (0,))


@pytest.mark.parametrize("name", SPM)
def test_sentencepiece_has_the_ids_of_the_library(name, tmp_path: Path):
    tokenizer = trained(SPM[name])
    tokenizer.save(tmp_path / "t")
    library = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "t" / "spiece.model"))
    fold = fold_as_albert if name.startswith("albert") else str
    assert tokenizer.encode(LINES) == [library.encode(fold(line)) for line in LINES]
    for path in (tmp_path / "t", tmp_path / "t" / "spiece.model"):
        again = load_tokenizer(path)
        assert again.hash == tokenizer.hash and again.vocab == tokenizer.vocab and again.template == tokenizer.template
    ids = tokenizer.encode(["a </s><extra_id_3>[MASK] b"])[0]
    assert not set(ids) & set(tokenizer.vocab.special)


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_sentencepiece_has_the_special_tokens_of_its_style(kind):
    t5, albert = (trained(SPM[f"{style}-{kind}"]) for style in ("t5", "albert"))
    size = t5.vocab.size
    assert t5.tokens([0, 1, 2]) == ["<pad>", "</s>", "<unk>"] and t5.template == ([], [1])
    assert t5.vocab.sentinels == tuple(range(size - 1, size - 21, -1))
    assert t5.tokens([size - 1, size - 20]) == ["<extra_id_0>", "<extra_id_19>"]
    marked = t5.encode(["a <extra_id_3> b</s>"], parse_special=True)[0]
    assert marked == [*t5.encode(["a"])[0], t5.vocab.sentinels[3], *t5.encode(["b"])[0], 1]
    assert albert.tokens(list(range(5))) == ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
    assert albert.template == ([2], [3]) and albert.vocab.mask == 4 and not albert.vocab.sentinels
    assert albert.encode(["Café ``KŮŇ''"]) == albert.encode(['cafe "kun"'])
    assert t5.encode(["Café"]) != t5.encode(["cafe"])
    assert t5.decode(t5.encode(["Zwölf große Kähne."])[0]) == "Zwölf große Kähne."


def test_unknown_characters_fall_back_to_bytes_if_asked():
    texts = ["the cat sat on the mat " * 40]
    plain = trained(SentencePiece("bpe", vocab_size=500), texts)
    falling = trained(SentencePiece("bpe", vocab_size=500, byte_fallback=True), texts)
    assert plain.encode(["猫"])[0][-1] == plain.vocab.unk
    assert falling.tokens(falling.encode(["猫"])[0])[-3:] == ["<0xE7>", "<0x8C>", "<0xAB>"]
    assert falling.decode(falling.encode(["the 猫 sat"])[0]) == "the 猫 sat"


def test_sentencepiece_reads_documents_longer_than_the_library_would():
    long = " ".join(f"word{i}" for i in range(3000)) + " zebra" * 50
    tokenizer = trained(SentencePiece(vocab_size=200, character_coverage=1.0), [long])
    assert tokenizer.vocab.unk not in tokenizer.encode(["zebra"])[0]


def test_wordpiece_knows_every_chinese_character_that_it_keeps():
    tokenizer = trained(WordPiece(2000, min_frequency=1, limit_alphabet=500), CHINESE)
    ids = tokenizer.encode(CHINESE)
    assert not any(tokenizer.vocab.unk in row for row in ids)
    for text, row in zip(CHINESE, ids, strict=True):
        chinese = [c for c in text if "\u4e00" <= c <= "\u9fff"]
        assert [piece for piece in tokenizer.tokens(row) if "\u4e00" <= piece[0] <= "\u9fff"] == chinese
        assert not {i for i in row if not tokenizer.tokens([i])[0][-1].isdigit()} & set(tokenizer.vocab.continuation)
    few = trained(WordPiece(2000, min_frequency=1, limit_alphabet=20), CHINESE)
    kept = {piece for piece in few.backend.get_vocab() if len(piece) == 1}
    assert len(kept) == 20
    for text in CHINESE:
        for character in text:
            assert (few.encode([character])[0] == [few.vocab.unk]) == (character not in kept)


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_coverage_decides_which_chinese_characters_are_known(kind):
    texts = CHINESE * 200 + ["龘"]  # 1 of more than 20,000 characters
    most = trained(SentencePiece(kind, vocab_size=600, character_coverage=0.9995), texts)
    every = trained(SentencePiece(kind, vocab_size=600, character_coverage=1.0), texts)
    assert not any(most.vocab.unk in row for row in most.encode(CHINESE))
    assert most.vocab.unk in most.encode(["龘"])[0] and every.vocab.unk not in every.encode(["龘"])[0]


def test_a_run_of_characters_without_spaces_is_cut_for_training():
    run = "".join(random.Random(0).choices("".join(CHINESE).replace(" ", ""), k=2500))
    cut = " ".join((run[:1000], run[1000:2000], run[2000:]))
    for config in (SentencePiece(vocab_size=400), SentencePiece("bpe", vocab_size=400)):
        assert trained(config, [run]).spiece == trained(config, [cut]).spiece


@pytest.mark.parametrize("name", ALL)
def test_a_config_goes_through_json_and_trains_in_a_corpus(name, tmp_path: Path):
    assert from_json(json.loads(json.dumps(to_json(ALL[name])))) == ALL[name]
    (tmp_path / "text.txt").write_text("\n\n".join([*make_text(40), *LINES]), encoding="utf-8")
    corpus = Corpus(str(tmp_path / "text.txt"), ALL[name], validation=0.0, test=0.0)
    assert corpus.train_tokenizer().vocab.size > 300


@pytest.mark.parametrize("config", [WordPiece(), ByteBPE(), SentencePiece(), SentencePiece("bpe", "albert")])
def test_no_text_is_refused_by_name(config):
    for texts in ([], ["", " \n"]):
        with pytest.raises(UserError, match=f"{type(config).__name__}: there is no text to train a tokenizer on"):
            trained(config, texts)


def test_settings_that_cannot_work_are_refused_by_name():
    with pytest.raises(UserError, match="ByteBPE: vocab_size=260 is too small for the 256 bytes and 5 special tokens"):
        ByteBPE(260)
    assert trained(ByteBPE(261)).vocab.size == 261 and trained(ByteBPE(257, "gpt2")).vocab.size == 257
    with pytest.raises(UserError, match="SentencePiece: vocab_size=103 is too small for the 103 special tokens"):
        SentencePiece(vocab_size=103)
    for kind in ("unigram", "bpe"):
        config = SentencePiece(kind, vocab_size=300, character_coverage=1.0)
        with pytest.raises(UserError, match="vocab_size=300 is too small for the text's characters, which need") as e:
            trained(config)
        least = int(str(e.value).split("which need ")[1].split(";")[0])
        assert trained(SentencePiece(kind, vocab_size=least, character_coverage=1.0)).vocab.size == least
    for bad, message in [
        ({"character_coverage": 0.9}, r"character_coverage=0.9 must lie in \[0.98, 1\]"),
        ({"sentinels": -1}, "sentinels=-1 must not be negative"),
    ]:
        with pytest.raises(UserError, match=f"SentencePiece: {message}"):
            SentencePiece(**bad)
