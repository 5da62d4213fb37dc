"""The texts of tokens: together they are the text, in one answer and in the pieces of a stream."""

import pytest
import tokenizers
from tokenizers import decoders, models

from bertgpt.data.tokenizer import ByteBPE, Tokenizer
from bertgpt.data.tokenizer_rules import BERT
from bertgpt.serving.logprobs import Alternative, name_alternatives, token_texts

WORDS = [*BERT.values(), "it", "'", "s", "slee", "##p", "##ping", ".", "n", "do"]


def wordpiece() -> Tokenizer:
    backend = tokenizers.Tokenizer(models.WordPiece({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece(cleanup=True)
    backend.add_special_tokens(list(BERT.values()))
    return Tokenizer(backend, BERT)


@pytest.mark.parametrize("kind", ["wordpiece", "bytes"])
def test_texts_of_tokens_are_the_text_whole_or_in_parts(kind: str):
    if kind == "wordpiece":
        tokenizer, ids = wordpiece(), [WORDS.index(w) for w in ("it", "'", "s", "slee", "##ping", ".", "slee", "##p")]
    else:
        tokenizer = ByteBPE(vocab_size=300).make(lambda: iter(["ab ab", "ab"]))
        (ids,) = tokenizer.encode(["ab é 漢字 ab"])
    text, texts = tokenizer.decode(ids), token_texts(tokenizer, ids)
    assert "".join(texts) == text and len(texts) == len(ids) and token_texts(tokenizer, []) == []
    if kind == "wordpiece":
        assert texts == ["it", " '", " s", " slee", "ping", ".", " slee", "p"]
    for cut in range(1, len(ids)):
        first = token_texts(tokenizer, ids[:cut], complete=False)
        then = token_texts(tokenizer, ids[cut:], ids[:cut])
        assert len(first) == cut and "".join([*first, *then]) == text


def test_alternatives_are_called_by_the_text_that_they_would_add():
    tokenizer = wordpiece()
    ids = [WORDS.index(w) for w in ("do", "slee", "##p")]
    rows = [[Alternative(WORDS.index(w), -1.0) for w in ("##ping", "##p", "slee", "[SEP]")]] * 3
    named = name_alternatives(tokenizer, ids, token_texts(tokenizer, ids), rows)
    assert list(named[2]) == ["ping", "p", " slee", "[SEP]"] and list(named[1]) == ["ping", "p", " slee", "[SEP]"]
