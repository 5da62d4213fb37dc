"""Encoding by distinct words: the ids and sentences are those of whole texts."""

import re
import sys

import numpy as np
import pytest

from bertgpt.data import offsets, words
from bertgpt.data.offsets import Sentences, encode_by_sentence
from bertgpt.data.sources.text import clean, sentence_starts
from bertgpt.data.tokenizer import ByteBPE, Tokenizer, WordPiece

TEXTS = [
    "The quick dogs' café. “Naïve!” “Yes…” dogs, dogs and [MASK] (the others)... Dr. Fox's [SEP] İstanbul? No!",
    "  A line\r\nand\tanother \u3000 one. 你再见！」好。 Dogs ﬁne e\u0301 e\u0323\u0301 \u0301 ½\u200b dogs\xa0and\n",
    "你好，世界。你好吗？ 𠀀㐀\u0301豈",
    "dogs",
    " " * 5,
    "",
]


@pytest.fixture(scope="module", params=[True, False], ids=["uncased", "cased"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return WordPiece(400, lowercase=request.param, min_frequency=1).make(lambda: iter(TEXTS * 2))


def of_whole_texts(tokenizer: Tokenizer, texts: list[str], starts: list[list[int]]) -> list[Sentences]:
    """By the library's ids and offsets: a token belongs to the sentence of its last character."""
    found = []
    for text, places in zip(texts, starts, strict=True):
        item = tokenizer.backend.encode(text, add_special_tokens=False)
        ends = np.array([end for _, end in item.offsets], int)
        sentence = np.searchsorted(np.array(places[1:], int), ends, side="left")
        found.append(Sentences(np.array(item.ids, np.int32), np.unique(sentence, return_counts=True)[1]))
    return found


def assert_same(found: list[Sentences], expected: list[Sentences], texts: list[str]) -> None:
    for text, one, other in zip(texts, found, expected, strict=True):
        assert one.ids.tolist() == other.ids.tolist(), text
        assert one.lengths.tolist() == other.lengths.tolist(), text
        assert (one.ids.dtype, one.lengths.dtype) == (np.int32, np.int32)


def test_texts_are_encoded_as_a_whole(tokenizer: Tokenizer):
    starts = [sentence_starts(text) for text in TEXTS]
    assert list(map(words.is_words, TEXTS, starts)) == [True, True, True, False, True, True]
    assert_same(list(encode_by_sentence(tokenizer, TEXTS, starts)), of_whole_texts(tokenizer, TEXTS, starts), TEXTS)


def test_every_kind_of_character_may_stand_in_and_beside_words(tokenizer: Tokenizer):
    # All code points were compared once. These hold all white space, punctuation and marks of the common scripts.
    texts = [
        f'你{c}好 a {c}dogs{c}and {c} dogs{c}. {c}The !{c} {c}" X e{c}\n{c}\u0301 y' for c in map(chr, range(0x3100))
    ]
    starts = [sentence_starts(text) for text in texts]
    apart = [words.is_words(text, places) for text, places in zip(texts, starts, strict=True)]
    assert {ord(text[1]) for text, by in zip(texts, apart, strict=True) if not by} == {0, 11, 12, 28, 29, 30, 31, 0x85}
    assert_same(list(encode_by_sentence(tokenizer, texts, starts)), of_whole_texts(tokenizer, texts, starts), texts)


def test_a_sentence_that_begins_within_a_word_does_not_divide_it(tokenizer: Tokenizer):
    text, starts = "the others and dogs", [0, 6, 11]
    assert not words.is_words(text, starts)
    assert_same(
        list(encode_by_sentence(tokenizer, [text], [starts])), of_whole_texts(tokenizer, [text], [starts]), [text]
    )


def test_more_words_than_are_encoded_at_once(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch):
    starts = [sentence_starts(text) for text in TEXTS]
    monkeypatch.setattr(words, "_JOINED", 3)
    assert_same(list(encode_by_sentence(tokenizer, TEXTS, starts)), of_whole_texts(tokenizer, TEXTS, starts), TEXTS)


def test_other_rules_and_added_tokens_need_the_whole_text(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch):
    assert words.encodes_words_apart(tokenizer.backend)
    with_added = Tokenizer(tokenizer.backend, tokenizer.roles).backend
    with_added.add_tokens(["dogs and"])
    others = [
        ByteBPE(vocab_size=300).make(lambda: iter(TEXTS)),
        Tokenizer(with_added, tokenizer.roles),
    ]
    monkeypatch.setattr(offsets, "encode_words", lambda backend, texts: iter([None] * len(texts)))
    starts = [sentence_starts(text) for text in TEXTS]
    for other in others:
        assert not words.encodes_words_apart(other.backend)
        assert [item.ids.tolist() for item in encode_by_sentence(other, TEXTS, starts)] == other.encode(TEXTS)


def test_every_white_space_but_the_line_feed_becomes_a_space():
    spaces = [c for c in map(chr, range(sys.maxunicode + 1)) if re.fullmatch(r"[^\S\n]", c)]
    assert len(spaces) == 28
    assert {clean(f"a{space}b", False) for space in spaces} == {"a b"} and clean("a\nb", False) == "a\nb"
