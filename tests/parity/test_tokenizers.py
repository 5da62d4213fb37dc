"""Ids equal transformers' own, from the same directory and from the one that we save."""

import json
from pathlib import Path

import pytest
from data.test_tokenizer_added import KINDS, LAYOUTS, MARKED, add, entry, write_kind
from data.test_tokenizer_files import ALBERT, LINES, ROBERTA, T5, byte_level, sentence_piece
from data.test_tokenizer_spiece import mt5_model

from bertgpt.data.tokenizer import ByteBPE, SentencePiece, Tokenizer, WordPiece, load_tokenizer

# Needs neither torch nor the models, unlike the other tests here.
transformers = pytest.importorskip("transformers", reason="parity needs the extra [peers]")
transformers.logging.set_verbosity_error()

CLASSES = {
    "wordpiece": "BertTokenizer", "roberta": "RobertaTokenizer", "gpt2": "GPT2Tokenizer", "t5": "T5Tokenizer",
    "albert": "AlbertTokenizer",
}  # fmt: skip
# transformers leaves Korean taken apart by ALBERT's normalisation; sentencepiece, and we, put it together again.
KOREAN = next(line for line in LINES if "한국어" in line)


def encoded(tokenizer: Tokenizer, lines: list[str]) -> list[list[int]]:
    before, after = tokenizer.template
    return [before + row + after for row in tokenizer.encode(lines, parse_special=True)]


@pytest.mark.parametrize("kind", CLASSES)
def test_ids_are_those_of_transformers(kind, tmp_path: Path):
    if kind == "wordpiece":
        WordPiece(1200, limit_alphabet=600).make(lambda: iter(LINES)).save(tmp_path / "a")
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            (tmp_path / "a" / name).unlink()
    elif kind in ("roberta", "gpt2"):
        byte_level(tmp_path / "a", ROBERTA if kind == "roberta" else ["<|endoftext|>"])
    else:
        sentence_piece(tmp_path / "a", **(T5 if kind == "t5" else ALBERT))
    if kind in ("roberta", "albert"):  # as released ones say; transformers 5 has forgotten it as the default
        mask = {"content": "<mask>" if kind == "roberta" else "[MASK]", "lstrip": True, "__type": "AddedToken"}
        flags = {"rstrip": False, "single_word": False, "normalized": False}
        (tmp_path / "a" / "tokenizer_config.json").write_text(json.dumps({"mask_token": mask | flags}))
    reference = getattr(transformers, CLASSES[kind]).from_pretrained(tmp_path / "a")
    ours = load_tokenizer(tmp_path / "a")
    lines = [line for line in LINES if kind != "albert" or line != KOREAN]
    ids = encoded(ours, lines)
    assert ids == reference(lines).input_ids
    assert [ours.decode(row) for row in ids] == reference.batch_decode(
        ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    ours.save(tmp_path / "b")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "b")
    assert again(LINES).input_ids == encoded(ours, LINES)
    for role, token in ours.roles.items():
        assert getattr(again, f"{role}_token") == token


@pytest.mark.parametrize(
    "config, name",
    [
        (WordPiece(1200, limit_alphabet=600), "BertTokenizer"),
        (ByteBPE(600), "RobertaTokenizer"),
        (ByteBPE(600, "gpt2"), "GPT2Tokenizer"),
        (SentencePiece("unigram", "t5", 900, character_coverage=1.0), "T5Tokenizer"),
        (SentencePiece("unigram", "albert", 900, character_coverage=1.0), "AlbertTokenizer"),
        # The classes of T5 and ALBERT in transformers know unigram models alone.
        (SentencePiece("bpe", "t5", 900, character_coverage=1.0), None),
        (SentencePiece("bpe", "albert", 900, character_coverage=1.0), None),
        (SentencePiece("bpe", "t5", 900, character_coverage=0.98, byte_fallback=True), None),
    ],
)
def test_transformers_loads_what_is_trained_here(config, name, tmp_path: Path):
    ours = config.make(lambda: iter(LINES))
    ours.save(tmp_path)
    ids = encoded(ours, LINES)
    for loader in ("AutoTokenizer", "PreTrainedTokenizerFast", name or "AutoTokenizer"):
        reference = getattr(transformers, loader).from_pretrained(tmp_path)
        lines = [line for line in LINES if loader != "AlbertTokenizer" or line != KOREAN]
        assert reference(lines).input_ids == encoded(ours, lines) and len(reference) == ours.vocab.size
        for role, token in ours.roles.items():
            assert getattr(reference, f"{role}_token") == token
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert [ours.decode(row) for row in ids] == again.batch_decode(
        ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_added_tokens_have_the_ids_of_transformers(kind, layout, tmp_path: Path):
    directory = write_kind(kind, tmp_path / "a")
    add(layout, directory, load_tokenizer(directory).vocab.size)
    reference = getattr(transformers, CLASSES[kind]).from_pretrained(directory)
    ours = load_tokenizer(directory)
    assert encoded(ours, MARKED) == reference(MARKED).input_ids and ours.vocab.size == len(reference)
    ours.save(tmp_path / "b")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "b")(MARKED).input_ids == encoded(ours, MARKED)


SETTINGS = [
    {"do_lower_case": False}, {"do_lower_case": True}, {"do_lower_case": True, "strip_accents": False},
    {"do_lower_case": False, "strip_accents": True}, {"tokenize_chinese_chars": False}, {},
]  # fmt: skip


@pytest.mark.parametrize(
    "name", ["BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "PreTrainedTokenizerFast"]
)
@pytest.mark.parametrize("stored", [False, True])
def test_settings_beside_tokenizer_json_count_as_in_transformers(stored, name, tmp_path: Path):
    lines = [*LINES, "Café CAFÉ", "中文 中"]
    ours = WordPiece(1200, limit_alphabet=600, lowercase=stored).make(lambda: iter(lines))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    for settings in SETTINGS:
        (tmp_path / "tokenizer.json").write_bytes(ours.files()["tokenizer.json"])
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": name}))
        reference = transformers.AutoTokenizer.from_pretrained(tmp_path)
        assert encoded(load_tokenizer(tmp_path), lines) == reference(lines).input_ids, settings


@pytest.mark.parametrize("name, size", [("XLMRobertaTokenizer", 2), ("CamembertTokenizer", 5)])
def test_sentencepiece_in_the_layout_of_fairseq_has_the_ids_of_transformers(name, size, tmp_path: Path):
    reference = sentence_piece(tmp_path / "a", unk_id=0, bos_id=1, eos_id=2)
    (tmp_path / "a" / "spiece.model").rename(tmp_path / "a" / "sentencepiece.bpe.model")
    settings = {"tokenizer_class": name, "mask_token": entry("<mask>", True, lstrip=True)}
    (tmp_path / "a" / "tokenizer_config.json").write_text(json.dumps(settings))
    theirs = getattr(transformers, name).from_pretrained(tmp_path / "a")
    ours = load_tokenizer(tmp_path / "a")
    lines = [*LINES, "a <mask> b", "<mask>", "a </s> b"]
    assert ours.vocab.size == len(theirs) == reference.get_piece_size() + size
    assert encoded(ours, lines) == theirs(lines).input_ids
    pair = [*ours.template[0], *ours.encode(["a"])[0], *ours.separator, *ours.encode(["b"])[0], *ours.template[1]]
    assert pair == theirs("a", "b").input_ids
    for role, token in ours.roles.items():
        assert (
            getattr(theirs, f"{role}_token_id") == ours.vocab.roles[role] and getattr(theirs, f"{role}_token") == token
        )
    ours.save(tmp_path / "b")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "b")
    assert again(lines).input_ids == encoded(ours, lines)


def test_vocabularies_of_multilingual_bert_and_mt5_have_the_ids_of_transformers(tmp_path: Path):
    ours = WordPiece(1200, limit_alphabet=600, lowercase=False).make(lambda: iter(LINES))
    (tmp_path / "vocab.txt").write_bytes(ours.files()["vocab.txt"])
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false, "model_max_length": 512}')
    theirs = transformers.BertTokenizer.from_pretrained(tmp_path)
    assert encoded(load_tokenizer(tmp_path), LINES) == theirs(LINES).input_ids
    mt5_model(tmp_path / "mt5")
    theirs = transformers.T5Tokenizer.from_pretrained(tmp_path / "mt5")
    ours = load_tokenizer(tmp_path / "mt5")
    lines = [*LINES, "a <extra_id_0> b <extra_id_3>"]
    assert encoded(ours, lines) == theirs(lines).input_ids and ours.vocab.size == len(theirs)
