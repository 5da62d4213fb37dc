"""`bertgpt tokenizer train` and `inspect`: flags that fit the kind, figures that are right."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import make_text

from bertgpt.cli.main import main
from bertgpt.data.tokenizer import ByteBPE, SentencePiece, WordPiece, load_tokenizer
from bertgpt.data.tokenizer_inspect import describe, measure, readable
from bertgpt.io.locks import lock
from bertgpt.prepare.corpus import Corpus
from bertgpt.types import UserError

FILE = Path(__file__).parents[1] / "data" / "multilingual.txt"
LINES = FILE.read_text(encoding="utf-8").split("\n")


def run(capsys: pytest.CaptureFixture, *args: object) -> tuple[int, str, str]:
    code = main([str(arg) for arg in args])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize(
    "flags, config",
    [
        (
            "--vocab_size 900 --limit_alphabet 300 --lowercase False",
            WordPiece(900, lowercase=False, limit_alphabet=300),
        ),
        ("--kind byte_bpe --vocab_size 500 --min_frequency 3", ByteBPE(500, min_frequency=3)),
        ("--kind byte_bpe --style gpt2 --vocab_size 500", ByteBPE(500, "gpt2")),
        ("--kind unigram --vocab_size 900 --sentinels 9", SentencePiece(vocab_size=900, sentinels=9)),
        (
            "--kind bpe --style albert --vocab_size 800 --character_coverage 0.98 --byte_fallback",
            SentencePiece("bpe", "albert", 800, character_coverage=0.98, byte_fallback=True),
        ),
    ],
)
def test_each_kind_is_trained_as_its_config_says(flags, config, tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "text.txt").write_text("\n\n".join([*make_text(40), *LINES]), encoding="utf-8")
    code, out, err = run(
        capsys, "tokenizer", "train", tmp_path / "text.txt", "--out", tmp_path / "t", *flags.split()
    )  # fmt: skip
    assert code == 0, err
    expected = Corpus(str(tmp_path / "text.txt"), config, validation=0.0, test=0.0).train_tokenizer()
    assert load_tokenizer(tmp_path / "t").hash == expected.hash and expected.hash in out


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--limit_alphabet 9 --kind unigram", "--limit_alphabet is not for --kind unigram"),
        ("--lowercase False --kind byte_bpe", "--lowercase is not for --kind byte_bpe"),
        ("--character_coverage 0.99", "--character_coverage is not for --kind wordpiece"),
        ("--byte_fallback --kind byte_bpe", "--byte_fallback is not for --kind byte_bpe"),
        ("--style roberta", "--style is not for --kind wordpiece"),
        ("--style roberta --kind bpe", "--style roberta: must be t5 or albert"),
        ("--style albert --kind bpe --sentinels 9", "--sentinels is not for --style albert"),
        ("--kind bpe --vocab_size 150", "vocab_size=150 is too small for the text's characters, which need"),
        ("--kind char", "--kind char: must be wordpiece or byte_bpe or unigram or bpe"),
    ],
)
def test_flags_that_do_not_fit_are_refused_by_name(flags, message, tmp_path: Path, capsys: pytest.CaptureFixture):
    code, _, err = run(capsys, "tokenizer", "train", FILE, "--out", tmp_path / "t", *flags.split())
    assert code == 2 and message in err and err.count("\n") == 1
    assert not (tmp_path / "t").exists()


def test_inspect_prints_what_it_is_and_how_it_takes_texts_apart(tmp_path: Path, capsys: pytest.CaptureFixture):
    tokenizer = SentencePiece(vocab_size=900, character_coverage=1.0).make(lambda: iter(LINES))
    tokenizer.save(tmp_path / "run" / "tokenizer")  # as runs have it
    code, out, err = run(
        capsys, "tokenizer", "inspect", tmp_path / "run", FILE, "--text", "Zwölf 你好", "--text", "a <extra_id_1>"
    )
    assert code == 0, err
    size = tokenizer.vocab.size
    for part in (tokenizer.hash, "SentencePiece unigram", "<pad> 0", "</s> 1", "<unk> 2", "… </s>"):
        assert part in out
    assert f"100: <extra_id_0> {size - 1} to <extra_id_99> {size - 100}" in out
    lines = out.splitlines()
    ids = tokenizer.encode(["Zwölf 你好"])[0]
    assert f"tokens: {' '.join(tokenizer.tokens(ids))}" in lines and f"ids:    {' '.join(map(str, ids))}" in lines
    assert any(line.startswith("tokens: ") and line.endswith(" <extra_id_1>") for line in lines)
    for row in ("tokens per word", "characters per token", "unknown tokens", "vocabulary used", "longest tokens"):
        assert row in out
    code, _, err = run(capsys, "tokenizer", "inspect", tmp_path / "run", tmp_path / "no.txt")
    assert code == 2 and "no.txt: no such file" in err
    code, _, err = run(capsys, "tokenizer", "inspect", tmp_path / "none")
    assert code == 2 and "none: no such tokenizer" in err


def test_the_figures_are_those_of_a_text_counted_by_hand():
    tokenizer = WordPiece(60, min_frequency=1).make(lambda: iter(["the cat sat", "the cats sit"] * 5))
    texts = ["the cat", "", "the cats Ж the"]
    ids = [i for row in tokenizer.encode(texts) for i in row]
    fit = measure(tokenizer, texts, "here")
    assert tokenizer.tokens(ids) == ["the", "cat", "the", "cats", "[UNK]", "the"]
    assert (fit.texts, fit.words, fit.characters, fit.tokens, fit.unknown) == (3, 6, 21, 6, 1)
    assert fit.counts[tokenizer.encode(["the"])[0][0]] == 3
    assert fit.longest(tokenizer, 1) == [("cats", 1)] and sorted(fit.longest(tokenizer)[1:]) == [("cat", 1), ("the", 3)]
    assert fit.rows() == {
        "texts": "3", "words": "6", "characters": "21", "tokens": "6", "tokens per word": "1.000",
        "characters per token": "3.500", "unknown tokens": "16.6667 %",
        "vocabulary used": f"{100 * 4 / tokenizer.vocab.size:.2f} %",
    }  # fmt: skip
    many = measure(tokenizer, iter(["the cat"] * 2500), "here")  # more than are encoded at once
    assert (many.texts, many.tokens) == (2500, 5000) and np.count_nonzero(many.counts) == 2
    with pytest.raises(UserError, match="here: there is no text to tokenise"):
        measure(tokenizer, ["", "  "], "here")


def test_bytes_are_shown_as_characters_where_they_make_some():
    tokenizer = ByteBPE(700).make(lambda: iter(["für Übergrößenträger"] * 2))
    ids = tokenizer.encode([" Übergrößenträger <mask>"], parse_special=True)[0]
    pieces = readable(tokenizer, ids)
    assert "".join(pieces) == "ĠÜbergrößenträger<mask>" and "Ã" in "".join(tokenizer.tokens(ids))
    half = readable(tokenizer, tokenizer.encode(["😀"])[0][:1])
    assert half == tokenizer.tokens(tokenizer.encode(["😀"])[0][:1])  # a part of a character stays as it is
    assert measure(tokenizer, LINES, "here").unknown == 0


def test_kinds_are_named():
    kinds = {
        "WordPiece, lower case": WordPiece(900, limit_alphabet=300),
        "WordPiece": WordPiece(900, lowercase=False, limit_alphabet=300),
        "byte-level BPE": ByteBPE(400),
        "SentencePiece BPE": SentencePiece("bpe", vocab_size=900),
        "SentencePiece unigram, lower case": SentencePiece("unigram", "albert", vocab_size=900),
    }
    for name, config in kinds.items():
        facts = describe(config.make(lambda: iter(LINES)))
        assert facts["kind"] == name and ("sentinels" in facts) == (name == "SentencePiece BPE")


def train_into(out: Path, capsys: pytest.CaptureFixture) -> tuple[int, str]:
    code, _, err = run(capsys, "tokenizer", "train", FILE, "--out", out, "--kind", "byte_bpe", "--vocab_size", 300)
    return code, err


def contents(directory: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(directory)): p.read_bytes() if p.is_file() else None for p in directory.rglob("*")}


def of_others(kind: str, out: Path) -> None:
    """A directory or file that `tokenizer train` did not write."""
    if kind == "a file":
        out.write_text("mine")
        return
    ByteBPE(300).make(lambda: iter(LINES)).save(out)
    if kind == "a tokenizer and a file":
        (out / "thesis.tex").write_text("mine")
    elif kind == "a tokenizer and a hidden file":
        (out / ".notes").write_text("mine")
    elif kind == "a tokenizer and a folder":
        (out / "special_tokens_map.json").unlink()
        (out / "special_tokens_map.json").mkdir()
    elif kind == "a tokenizer from elsewhere":
        settings = json.loads((out / "tokenizer_config.json").read_text())
        del settings["written_by"]
        (out / "tokenizer_config.json").write_text(json.dumps(settings))
    elif kind == "a word list":
        for file in out.iterdir():
            file.unlink()
        (out / "vocab.txt").write_text("mine")
    elif kind == "a linked vocabulary":
        (out / "vocab.json").rename(out.parent / "vocab.json")
        (out / "vocab.json").symlink_to(out.parent / "vocab.json")


@pytest.mark.parametrize(
    "kind",
    [
        "a file", "a tokenizer and a file", "a tokenizer and a hidden file", "a tokenizer and a folder",
        "a tokenizer from elsewhere", "a word list", "a linked vocabulary",
    ],
)  # fmt: skip
def test_a_directory_that_is_not_a_tokenizer_of_ours_is_refused(kind, tmp_path: Path, capsys: pytest.CaptureFixture):
    of_others(kind, tmp_path / "t")
    before = contents(tmp_path)
    code, err = train_into(tmp_path / "t", capsys)
    assert code == 2 and err.count("\n") == 1 and f"{tmp_path / 't'}: exists " in err
    assert contents(tmp_path) == before


def test_an_earlier_tokenizer_of_ours_is_replaced_also_through_a_link(tmp_path: Path, capsys: pytest.CaptureFixture):
    WordPiece(900, limit_alphabet=300).make(lambda: iter(LINES)).save(tmp_path / "t")
    (tmp_path / "link").symlink_to(tmp_path / "t")
    assert train_into(tmp_path / "link", capsys)[0] == 0
    assert (tmp_path / "link").is_symlink() and not (tmp_path / "t" / "vocab.txt").exists()
    assert load_tokenizer(tmp_path / "t").vocab.size == 300
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["link", "t"]


@pytest.mark.parametrize("out", [".", "..", "/", ""])
def test_no_directory_above_the_working_directory_is_written(out, tmp_path, monkeypatch, capsys):
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    code, err = train_into(out, capsys)
    assert code == 2 and err.count("\n") == 1 and contents(tmp_path) == {"inner": None}


def test_two_trainings_do_not_share_a_directory(tmp_path: Path, capsys: pytest.CaptureFixture):
    with lock(tmp_path / ".t.lock", "busy", wait=False):
        code, err = train_into(tmp_path / "t", capsys)
    assert code == 3 and err.count("\n") == 1 and "t: another process is training a tokenizer there" in err
    assert train_into(tmp_path / "t", capsys)[0] == 0
    assert [entry.name for entry in tmp_path.iterdir()] == ["t"]
