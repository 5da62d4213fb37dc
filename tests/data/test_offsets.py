"""Tokens and the characters they stand for, whatever the tokenizer does to the text before."""

from pathlib import Path

import pytest

from bertgpt.data.offsets import locate_tokens
from bertgpt.data.tokenizer import ByteBPE, SentencePiece, Tokenizer, WordPiece
from bertgpt.types import UserError

TEXTS = [
    "The ``quick'' brown fox ﬁne café naïve ½ jumps over Ⅳ dogs 日本語 İstanbul.",
    "dogs and cats of the world",
] * 4
HARD = "  The ``quick''  bröwn 😀 ﬁne\tcafé ½ ķ e\u0301a 한국어 İstanbul\n\tdogs "
KINDS = {
    "WordPiece": WordPiece(300, min_frequency=1),
    "byte BPE": ByteBPE(vocab_size=300),
    "unigram": SentencePiece(vocab_size=120, sentinels=2),
    "folding": SentencePiece(vocab_size=120, style="albert"),
    "bytes": SentencePiece(kind="bpe", vocab_size=400, sentinels=2, byte_fallback=True),
}


@pytest.fixture(scope="module", params=KINDS)
def trained(request: pytest.FixtureRequest) -> Tokenizer:
    return KINDS[request.param].make(lambda: iter(TEXTS))


def test_ids_are_those_of_encode(trained: Tokenizer):
    texts = [HARD, "", "   ", "``a''", "[SEP] </s>"]
    assert [item.ids for item in locate_tokens(trained, texts)] == trained.encode(texts)


def test_added_tokens_are_found_as_encode_finds_them(trained: Tokenizer):
    backend = Tokenizer(trained.backend, trained.roles, trained.spiece).backend
    backend.add_tokens(["<user>"])
    tokenizer = Tokenizer(backend, trained.roles, trained.spiece)
    text = "The <user>.<user>dogs  <user>"
    [item] = locate_tokens(tokenizer, [text])
    assert item.ids == tokenizer.encode([text])[0]
    found = [item.bounds[i].tolist() for i, token in enumerate(item.ids) if token == backend.token_to_id("<user>")]
    assert found == [[4, 10], [11, 17], [23, 29]]


def test_bounds_go_forward_and_leave_out_only_white_space_and_combining_marks(trained: Tokenizer):
    bounds = locate_tokens(trained, [HARD])[0].bounds
    assert (bounds[:, 0] <= bounds[:, 1]).all() and (bounds[1:] >= bounds[:-1]).all()
    covered = set().union(*(range(start, end) for start, end in bounds))
    assert {character for i, character in enumerate(HARD) if i not in covered} <= set(" \t\n\u0301")
    assert not any(HARD[start:end] != HARD[start:end].strip() for start, end in bounds)


@pytest.mark.parametrize("word", ["quick", "bröwn", "😀", "ﬁne", "café", "한국어", "İstanbul", "dogs"])
def test_a_word_is_found_again_in_the_text_as_it_was_given(trained: Tokenizer, word: str):
    start = HARD.index(word)
    bounds = locate_tokens(trained, [HARD])[0].bounds
    tokens = [(a, b) for a, b in bounds.tolist() if a < start + len(word) and b > start and a < b]
    assert HARD[tokens[0][0] : tokens[-1][1]] == word


# e + accent, virama, Hebrew points, nukta and vowel sign, Thai tone, keycap, kana + voicing mark, two accents, joiner
MARKED = ["cafe\u0301", "राम्", "שָׁלֹ", "ड़ु", "บ้", "1\ufe0f\u20e3", "か\u3099", "e\u0323\u0301", "क्\u200d"]


@pytest.mark.parametrize("lowercase", [True, False])
def test_a_word_keeps_the_combining_marks_at_its_end(trained: Tokenizer, lowercase: bool):
    texts = [" ".join(MARKED), "".join(f"({word}), " for word in MARKED), "x\u0301" * 3 + " \u0301 \u0301"]
    tokenizer = trained
    if trained.spiece is None and trained.vocab.cls is not None:
        tokenizer = WordPiece(300, min_frequency=1, lowercase=lowercase).make(lambda: iter(texts))
    for text in texts[:2]:
        bounds = locate_tokens(tokenizer, [text])[0].bounds.tolist()
        for word in MARKED:
            start = text.index(word)
            hit = [(a, b) for a, b in bounds if a < start + len(word) and b > start and a < b]
            found = text[hit[0][0] : hit[-1][1]]
            assert word in found and (found == word or trained.spiece is not None)  # whose <unk> takes what is beside
    bounds = locate_tokens(tokenizer, texts[2:])[0].bounds
    assert (bounds[1:] >= bounds[:-1]).all() and bounds.max() <= len(texts[2])


def test_changes_that_cannot_be_traced_back_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    tokenizer = KINDS["folding"].make(lambda: iter(TEXTS))
    processor, _, special = tokenizer._sentencepiece
    tokenizer.__dict__["_sentencepiece"] = processor, lambda text: text[::-1], special
    with pytest.raises(UserError, match="changes the text 'some text' in a way that cannot be traced back"):
        locate_tokens(tokenizer, ["some text"])
