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


def test_changes_that_cannot_be_traced_back_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    tokenizer = KINDS["folding"].make(lambda: iter(TEXTS))
    processor, _, special = tokenizer._sentencepiece
    tokenizer.__dict__["_sentencepiece"] = processor, lambda text: text[::-1], special
    with pytest.raises(UserError, match="changes the text 'some text' in a way that cannot be traced back"):
        locate_tokens(tokenizer, ["some text"])
