"""Every layout of a tokenizer directory, against the library that defines it, on text in many languages."""

import json
import unicodedata
from pathlib import Path

import pytest
import sentencepiece
import tokenizers

from bertgpt.data.tokenizer import ByteBPE, WordPiece, load_tokenizer
from bertgpt.types import UserError

FILE = Path(__file__).parent / "multilingual.txt"
LINES = FILE.read_text(encoding="utf-8").split("\n")


def byte_level(path: Path, special: list[str]) -> None:
    """vocab.json and merges.txt of a byte-level BPE trained on the lines."""
    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train([str(FILE)], vocab_size=600, special_tokens=special, show_progress=False)
    path.mkdir(exist_ok=True)
    trained.save_model(str(path))


def sentence_piece(path: Path, **options) -> sentencepiece.SentencePieceProcessor:
    path.mkdir(exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        input=str(FILE), model_prefix=str(path / "spiece"), character_coverage=1.0, minloglevel=2,
        hard_vocab_limit=False, **({"vocab_size": 700} | options),
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_file=str(path / "spiece.model"))


ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
T5 = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "pad_piece": "<pad>"}
ALBERT = {"pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1, "control_symbols": "[CLS],[SEP],[MASK]"}


@pytest.mark.parametrize("special", [ROBERTA, ["<|endoftext|>"]], ids=["roberta", "gpt2"])
def test_byte_level_bpe_from_vocab_and_merges(special, tmp_path: Path):
    byte_level(tmp_path, special)
    tokenizer = load_tokenizer(tmp_path)
    reference = tokenizers.ByteLevelBPETokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    assert tokenizer.encode(LINES) == [reference.encode(line).ids for line in LINES]
    assert [tokenizer.decode(ids) for ids in tokenizer.encode(LINES)] == LINES  # no byte is lost
    if special is ROBERTA:
        assert tokenizer.template == ([0], [2]) and tokenizer.vocab.mask == 4 and tokenizer.vocab.eos == 2
        assert tokenizer.encode(["a <mask> b"], parse_special=True)[0][1] == 4
    else:
        assert tokenizer.template == ([], []) and tokenizer.vocab.eos == 0 and tokenizer.vocab.pad is None


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_sentencepiece_of_t5_gets_its_sentinels(kind, tmp_path: Path):
    reference = sentence_piece(tmp_path, model_type=kind, **T5)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode(LINES) == [reference.encode(line) for line in LINES]
    size = reference.get_piece_size()
    assert tokenizer.vocab.size == size + 100 and tokenizer.template == ([], [1])
    assert tokenizer.vocab.sentinels == tuple(range(size + 99, size - 1, -1))  # <extra_id_0> is the last
    assert tokenizer.encode(["a <extra_id_0>"], parse_special=True)[0][-1] == size + 99


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_sentencepiece_of_albert_folds_case_and_accents(kind, tmp_path: Path):
    sentence_piece(tmp_path, model_type=kind, **ALBERT)
    folding = load_tokenizer(tmp_path)
    assert folding.encode(["Café ``déçu''"]) == folding.encode(['cafe "decu"'])
    assert folding.template == ([2], [3]) and folding.vocab.mask == 4
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false, "keep_accents": true}')
    keeping = load_tokenizer(tmp_path)
    assert keeping.encode(["Café"]) != keeping.encode(["cafe"])


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_what_others_read_in_tokenizer_json_gives_the_same_ids(kind, tmp_path: Path):
    reference = sentence_piece(tmp_path, model_type=kind, **T5)
    backend = load_tokenizer(tmp_path).backend
    backend.encode_special_tokens = True
    # Not where the text spells special tokens, which the Unigram of the tokenizers library cannot tell from text.
    lines = [line for line in LINES if "</s>" not in line]
    lines += [unicodedata.normalize("NFD", line) for line in lines] + [
        "-" * 17 + " hahahahah aaaaaaa",
        "ﾊﾟｿｺﾝ ｶﾞ",
        "",
        " ",
    ]
    assert [backend.encode(line, add_special_tokens=False).ids for line in lines] == reference.encode(lines)


def test_a_tokenizer_json_made_from_another_model_is_read_without_it(tmp_path: Path):
    sentence_piece(tmp_path / "a", **T5)
    sentence_piece(tmp_path / "b", model_type="bpe", **T5)
    load_tokenizer(tmp_path / "a").save(tmp_path / "c")
    assert load_tokenizer(tmp_path / "c").spiece == (tmp_path / "a" / "spiece.model").read_bytes()
    (tmp_path / "c" / "spiece.model").write_bytes((tmp_path / "b" / "spiece.model").read_bytes())
    alone = load_tokenizer(tmp_path / "c")
    assert alone.spiece is None and alone.backend.get_vocab() == load_tokenizer(tmp_path / "a").backend.get_vocab()


@pytest.mark.parametrize("kind", ["wordpiece", "roberta", "gpt2", "t5", "albert"])
def test_saved_it_is_the_same_tokenizer(kind, tmp_path: Path):
    if kind == "wordpiece":
        WordPiece(1200, lowercase=False, limit_alphabet=300).make(lambda: iter(LINES)).save(tmp_path / "a")
    elif kind in ("roberta", "gpt2"):
        byte_level(tmp_path / "a", ROBERTA if kind == "roberta" else ["<|endoftext|>"])
    else:
        sentence_piece(tmp_path / "a", **(T5 if kind == "t5" else ALBERT))
    tokenizer = load_tokenizer(tmp_path / "a")
    tokenizer.save(tmp_path / "b")
    again = load_tokenizer(tmp_path / "b")
    assert again.hash == tokenizer.hash and again.roles == tokenizer.roles and again.vocab == tokenizer.vocab
    assert again.encode(LINES) == tokenizer.encode(LINES) and again.template == tokenizer.template


def test_settings_beside_a_vocabulary_count(tmp_path: Path):
    pieces = ["<pad>", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Caf", "##é", "cafe"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false, "pad_token": {"content": "<pad>"}}')
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode(["Café"]) == [[5, 6]] and tokenizer.vocab.pad == 0
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true, "pad_token": "<pad>"}')
    assert load_tokenizer(tmp_path).encode(["Café"]) == [[7]]


def test_what_is_missing_is_named(tmp_path: Path):
    sentence_piece(tmp_path, model_type="char", **T5)
    with pytest.raises(UserError, match="spiece.model: is neither a unigram nor a BPE model"):
        load_tokenizer(tmp_path)
    sentence_piece(tmp_path)
    with pytest.raises(UserError, match="spiece.model: has no <pad> piece"):
        load_tokenizer(tmp_path)
    (tmp_path / "spiece.model").write_bytes(b"\x01\x02broken")
    with pytest.raises(UserError, match="spiece.model: cannot be read as a tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0}))
    with pytest.raises(UserError, match="vocab.json: needs merges.txt beside it"):
        load_tokenizer(tmp_path)
    WordPiece(1200).make(lambda: iter(LINES)).save(tmp_path / "t")
    (tmp_path / "t" / "tokenizer_config.json").write_text('{"mask_token": "<mask>"}')
    with pytest.raises(UserError, match="has no <mask> token, which its settings name as mask_token"):
        load_tokenizer(tmp_path / "t")
    (tmp_path / "t" / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(UserError, match="tokenizer_config.json: does not hold a JSON object"):
        load_tokenizer(tmp_path / "t")


def test_an_objective_says_which_token_it_lacks(tmp_path: Path):
    from bertgpt.objectives.mlm import MaskedLM

    byte_level(tmp_path, ["<|endoftext|>"])
    with pytest.raises(UserError, match="MaskedLM needs a mask token, which the tokenizer does not have"):
        MaskedLM().make(load_tokenizer(tmp_path).vocab)


def test_a_word_begins_with_the_line_break_before_it():
    """Whole-word masking must not join the last word of a line with the first of the next."""
    text = "Roses are red.\nViolets are\tblue.\r\n\r\nSo"
    tokenizer = ByteBPE(400).make(lambda: iter([text] * 9))
    ids = tokenizer.encode([text])[0]
    words = [[]]
    for i in ids:
        if i not in tokenizer.vocab.continuation:
            words.append([])
        words[-1].append(i)
    found = [tokenizer.decode(word).strip() for word in words]
    assert [word for word in found if word] == ["Roses", "are", "red.", "Violets", "are", "blue.", "So"]


def test_pieces_that_continue_a_word_are_known(tmp_path: Path):
    wordpiece = WordPiece(1200, limit_alphabet=600).make(lambda: iter(LINES))
    byte_level(tmp_path / "roberta", ROBERTA)
    sentence_piece(tmp_path / "t5", **T5)
    sentence_piece(tmp_path / "albert", **ALBERT)
    loaded = [load_tokenizer(tmp_path / name) for name in ("roberta", "t5", "albert")]
    for tokenizer, word in [(wordpiece, "übergrößenträger"), *((other, " Übergrößenträger") for other in loaded)]:
        first, *others = tokenizer.encode([word])[0]
        inside = set(tokenizer.vocab.continuation)
        assert others and first not in inside and set(others) <= inside
        assert not inside & set(tokenizer.vocab.special)
    inside = set(wordpiece.vocab.continuation)
    assert all(piece.startswith("##") == (i in inside) for piece, i in wordpiece.backend.get_vocab().items())
    assert not set(wordpiece.encode(["天地玄黄，(No!)"])[0]) & inside
