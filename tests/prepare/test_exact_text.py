"""Documents are tokenised as they are: a store, and every layout of it, holds exactly the tokens of each document."""

import inspect
import itertools
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from bertgpt.data import offsets
from bertgpt.data.offsets import encode_by_sentence
from bertgpt.data.packing import ConcatDataset, PackedDataset, StoreDataset
from bertgpt.data.pairs import PairDataset
from bertgpt.data.sources.text import read_documents, sentence_starts, sentences
from bertgpt.data.store import Store, open_store
from bertgpt.data.streams import SentenceDataset, StreamDataset, TokenDataset
from bertgpt.data.tokenizer import ByteBPE, SentencePiece, Tokenizer, WordPiece
from bertgpt.prepare.corpus import Corpus
from bertgpt.prepare.filters import Preparation
from bertgpt.prepare.pipeline import prepare

EMAIL = """From: Ann <ann@example.org>\r
To: Bob <bob@example.org>\r
Subject: Re: Tuesday\r
\r
Hi Bob,\r
\r
> How are you? I am well.\r
>> Fine.  Thanks!\r
\r
See the table:\r
\tMon\t 9:00\r
\tTue\t10:30\r
-- \r
Ann\r
"""
POEM = "Roses are red,\n    violets are blue;\n\n  Sugar is sweet,\n\tand so are you.\n"
CHINESE = "今天天气很好。我们去公园吧！好的？「走。」他说。\n\n　　第二段：１２３。Ａnd English. 完"
DOCUMENTS = [
    "Hello world. How are you?\nRoses",
    inspect.getsource(textwrap.dedent),
    EMAIL,
    POEM,
    CHINESE,
    "  Two  spaces.  And\ttabs,\u00a0hard spaces.\r\rOld lines. \u2028 New lines.\x85\x0b\x0c ",
    "cafe\u0301 ﬁn ½ İstanbul. हिन्दी में। 한국어. \U0001f469\u200d\U0001f52c? \u200b\ufeff. ``Quotes'' \u202e",
    "<|endoftext|> [MASK] </s>. <pad> [CLS] <extra_id_0>",
    "Dear <user>.<user> Bye.\n<user>Hi <user> . \n <user>\n",
    "x" * 300 + ". " + "?!" * 50 + " A." * 20,
    "\n",
]
KEPT = DOCUMENTS[:-1]


def characters() -> Tokenizer:
    """One token for each byte, and eos."""
    return ByteBPE(257, style="gpt2").make(lambda: iter(["a"]))


def metaspace() -> Tokenizer:
    """BPE as in Llama: spaces are characters of the vocabulary, unknown characters are bytes."""
    pieces = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyz.,?!\n"]
    pieces += ["th", "▁th", "▁a"]
    merges = [("t", "h"), ("▁", "th"), ("▁", "a")]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<unk>", "</s>"])
    return Tokenizer(backend, {"unk": "<unk>", "eos": "</s>"})


def words() -> Tokenizer:
    """Words and punctuation; everything else is unknown."""
    backend = tokenizers.Tokenizer(models.WordLevel({"[UNK]": 0, "Hello": 1, ".": 2, "are": 3}, unk_token="[UNK]"))
    backend.normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents()])
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return Tokenizer(backend, {"unk": "[UNK]"})


def with_added_tokens(config) -> Callable[[], Tokenizer]:
    def make() -> Tokenizer:
        tokenizer = config.make(lambda: iter(KEPT * 3))
        tokenizer.backend.add_tokens(["<user>", tokenizers.AddedToken("Hello", normalized=False)])
        return Tokenizer(tokenizer.backend, tokenizer.roles, tokenizer.spiece)

    return make


def trained(config) -> Callable[[], Tokenizer]:
    return lambda: config.make(lambda: iter(KEPT * 3))


LOSSLESS = {
    "gpt2": trained(ByteBPE(600, style="gpt2")),
    "roberta": trained(ByteBPE(600)),
    "characters": characters,
    "metaspace": metaspace,
}
MAKE = LOSSLESS | {
    "wordpiece": trained(WordPiece(400, min_frequency=1)),
    "cased wordpiece": trained(WordPiece(400, lowercase=False, limit_alphabet=50)),
    "t5": trained(SentencePiece(vocab_size=360, sentinels=10, character_coverage=1.0)),
    "sentencepiece bpe": trained(SentencePiece(kind="bpe", vocab_size=400, sentinels=0, character_coverage=0.98)),
    "bytes for unknown": trained(SentencePiece(vocab_size=500, character_coverage=0.98, byte_fallback=True)),
    "albert": trained(SentencePiece(style="albert", vocab_size=300, character_coverage=1.0)),
    "words": words,
    "wordpiece, added": with_added_tokens(WordPiece(400, min_frequency=1)),
    "t5, added": with_added_tokens(SentencePiece(vocab_size=360, sentinels=10, character_coverage=1.0)),
    "albert, added": with_added_tokens(SentencePiece(style="albert", vocab_size=300, character_coverage=1.0)),
}


@pytest.fixture(scope="module", params=MAKE)
def made(request: pytest.FixtureRequest) -> tuple[str, Tokenizer]:
    return request.param, MAKE[request.param]()


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    return LOSSLESS["gpt2"]()


@pytest.fixture(scope="module")
def roberta() -> Tokenizer:
    return LOSSLESS["roberta"]()


def stored(tokenizer: Tokenizer, path: Path, texts: list[str] = DOCUMENTS) -> Store:
    """The store of the texts, in several shards."""
    facts = prepare(texts, tokenizer, path, Preparation(validation=0, test=0, shard_tokens=500, block_documents=3))
    assert facts["dropped"] == {"duplicate": 0, "empty": 1}
    return open_store(path, "train", tokenizer)


def test_the_ids_of_a_document_are_those_of_the_tokenizer(made: tuple[str, Tokenizer], tmp_path: Path):
    name, tokenizer = made
    store = stored(tokenizer, tmp_path / "store")
    assert len(store.document_ends) == len(KEPT)
    for number, text in enumerate(KEPT):
        ids = store.document(number).tolist()
        tokenizer.backend.encode_special_tokens = True
        assert ids == tokenizer.encode([text])[0]
        if tokenizer.spiece is None:
            assert ids == tokenizer.backend.encode(text, add_special_tokens=False).ids
        if name in LOSSLESS:
            assert tokenizer.backend.decode(ids, skip_special_tokens=False) == text
    if "added" in name:
        assert store.document(8).tolist().count(tokenizer.backend.token_to_id("<user>")) == 5
    assert np.diff(np.asarray(store.sentence_ends), prepend=0).min() > 0
    assert np.asarray(store.sentence_ends)[-1] == len(store.tokens)


@pytest.mark.parametrize("name", ["gpt2", "roberta", "characters"])
def test_sentences_end_where_the_text_has_them(name: str):
    tokenizer = LOSSLESS[name]()
    found = encode_by_sentence(tokenizer, KEPT, [sentence_starts(text) for text in KEPT])
    for text, item in zip(KEPT, found, strict=True):
        ends = np.cumsum(item.lengths).tolist()
        parts = [tokenizer.backend.decode(item.ids[a:b].tolist(), skip_special_tokens=False)
                 for a, b in itertools.pairwise([0, *ends])]  # fmt: skip
        assert [part.strip() for part in parts] == [part.strip() for part in sentences(text)]
        assert "".join(parts) == text


def test_a_token_that_spans_a_joint_belongs_to_the_sentence_of_its_last_character():
    text = "a cat.\n the dog"
    [item] = encode_by_sentence(metaspace(), [text], [sentence_starts(text)])
    pieces = metaspace().tokens(item.ids.tolist())
    assert pieces == ["▁a", "▁", "c", "a", "t", ".", "\n", "▁th", "e", "▁", "d", "o", "g"]
    assert sentence_starts(text) == [0, 8] and item.lengths.tolist() == [7, 6]
    text = "A bee. The cow.\tX"
    [item] = encode_by_sentence(characters(), [text], [sentence_starts(text)])
    assert item.lengths.tolist() == [len("A bee. "), len("The cow.\t"), 1]


def test_texts_encoded_in_chunks_have_the_same_tokens_and_sentences(monkeypatch: pytest.MonkeyPatch):
    texts = ["Hm. So", *KEPT[:5], *KEPT[-2:]]
    starts = list(map(sentence_starts, texts))
    for name, make in MAKE.items():
        tokenizer = make()
        whole = list(encode_by_sentence(tokenizer, texts, starts))
        with monkeypatch.context() as patch:
            patch.setattr(offsets, "CHUNK_CHARS", 50)
            chunks = list(encode_by_sentence(tokenizer, texts, starts))
        assert [item.ids.tolist() for item in chunks] == tokenizer.encode(texts), name
        assert [item.lengths.tolist() for item in chunks] == [item.lengths.tolist() for item in whole], name


def test_an_added_token_is_in_the_sentence_of_its_last_character():
    text = "Bye <user>. Hi.\n<user>\nSo <user>\n"
    for name in ("t5, added", "albert, added", "wordpiece, added"):
        tokenizer = MAKE[name]()
        [item] = encode_by_sentence(tokenizer, [text], [sentence_starts(text)])
        user = tokenizer.backend.token_to_id("<user>")
        parts = np.split(item.ids, np.cumsum(item.lengths)[:-1])
        assert [part.tolist().count(user) for part in parts] == [1, 0, 1, 1]
        assert parts[2].tolist() == [user]


def test_a_sentence_without_a_token_is_left_out():
    text = "One.\n\u200b\nTwo.\n\u200b"
    assert len(sentence_starts(text)) == 4
    tokenizer = MAKE["wordpiece"]()
    [item] = encode_by_sentence(tokenizer, [text], [sentence_starts(text)])
    parts = np.split(item.ids, np.cumsum(item.lengths)[:-1])
    assert [tokenizer.decode(part.tolist()).replace(" ", "") for part in parts] == ["one.", "two."]


# -- every layout -----------------------------------------------------------------------------------------------------


def sequences(dataset: StoreDataset) -> list[np.ndarray]:
    """The tokens of each sequence that are not padding."""
    batch = dataset.gather(np.arange(len(dataset)))
    return [ids[segments > 0] for ids, segments in zip(batch["input_ids"], batch["segment_ids"], strict=True)]


def decoded(tokenizer: Tokenizer, ids: list[int], end: int) -> list[str]:
    """The texts between the tokens that end documents."""
    ends = [i for i, token in enumerate(ids) if token == end]
    assert ends[-1] == len(ids) - 1
    parts = [ids[a:b] for a, b in zip([0, *(i + 1 for i in ends)], ends, strict=False)]
    return [tokenizer.backend.decode(part, skip_special_tokens=False) for part in parts]


@pytest.mark.parametrize("apart", [False, True])
def test_streams_decode_to_the_documents(gpt2: Tokenizer, tmp_path: Path, apart: bool):
    dataset = StreamDataset(stored(gpt2, tmp_path / "store"), gpt2.vocab, 64, apart)
    first, *rest = sequences(dataset)
    ids = [*first.tolist(), *(token for row in rest for token in row[1:].tolist())]
    assert decoded(gpt2, ids, gpt2.vocab.eos) == KEPT


def test_concatenated_sequences_decode_to_the_documents(roberta: Tokenizer, tmp_path: Path):
    dataset = ConcatDataset(stored(roberta, tmp_path / "store"), roberta.vocab, 64)
    ids = [token for row in sequences(dataset) for token in row[1:].tolist()]
    assert decoded(roberta, ids, roberta.vocab.sep) == KEPT


@pytest.mark.parametrize("cross", [False, True])
def test_sequences_of_sentences_decode_to_the_documents(roberta: Tokenizer, tmp_path: Path, cross: bool):
    dataset = SentenceDataset(stored(roberta, tmp_path / "store"), roberta.vocab, 64, cross)
    assert all(row[0] == roberta.vocab.cls and row[-1] == roberta.vocab.sep for row in sequences(dataset))
    ids = [i for row in sequences(dataset) for i in row.tolist() if i not in (roberta.vocab.cls, roberta.vocab.sep)]
    assert roberta.backend.decode(ids, skip_special_tokens=False) == "".join(KEPT)


def test_packed_sequences_decode_to_the_documents(roberta: Tokenizer, tmp_path: Path):
    store = stored(roberta, tmp_path / "store")
    dataset = PackedDataset(store, roberta.vocab, 3000)
    batch = dataset.gather(np.arange(len(dataset)))
    texts = []
    for ids, segments in zip(batch["input_ids"], batch["segment_ids"], strict=True):
        for segment in range(1, segments.max() + 1):
            tokens = ids[segments == segment].tolist()
            assert (tokens[0], tokens[-1]) == (roberta.vocab.cls, roberta.vocab.sep)
            texts.append(roberta.backend.decode(tokens[1:-1], skip_special_tokens=False))
    assert sorted(texts) == sorted(KEPT)
    cut = np.concatenate(sequences(PackedDataset(store, roberta.vocab, 64)))
    cut = cut[(cut != roberta.vocab.cls) & (cut != roberta.vocab.sep)]
    np.testing.assert_array_equal(np.sort(cut), np.sort(store.tokens))


def test_token_sequences_decode_to_the_documents(gpt2: Tokenizer, tmp_path: Path):
    store = stored(gpt2, tmp_path / "store")
    ids = np.concatenate(sequences(TokenDataset(store, gpt2.vocab, 64, keep_last=True))).tolist()
    assert gpt2.backend.decode(ids, skip_special_tokens=False) == "".join(KEPT)


def test_pairs_hold_every_token_once(roberta: Tokenizer, tmp_path: Path):
    """Without the B of other documents, and where no pair is too long."""
    store = stored(roberta, tmp_path / "store")
    dataset = PairDataset(store, roberta.vocab, 4000, short_seq_prob=0.0, duplicates=1, seed=0)
    count = np.zeros(len(store.tokens), int)
    for a_start, a_len, b_start, b_len, label in dataset.pairs:
        count[a_start : a_start + a_len] += 1
        count[b_start : b_start + b_len] += 1 - label
    assert (count == 1).all() and 0 < dataset.pairs[:, 4].sum() < len(dataset)
    row = sequences(dataset)[int(np.flatnonzero(dataset.pairs[:, 4] == 0)[0])].tolist()
    text = roberta.backend.decode([i for i in row if i > 4], skip_special_tokens=False)
    assert any(text in document for document in KEPT)


# -- what tokenizers are trained on -----------------------------------------------------------------------------------


def test_tokenizers_are_trained_on_the_documents_as_they_are(tmp_path: Path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"  One  two.\r\n\tThree.\r\n \r\n\r\nFour\n five\n")
    assert list(Corpus(str(path), validation=0, test=0).texts()) == ["  One  two.\r\n\tThree.", "Four\n five"]
    assert [document.text for document in read_documents(str(path), "text")][1] == "Four\n five"
    html = Corpus(str(path), strip_html=True, validation=0, test=0)
    path.write_text("<p>a  b<br>c</p> &amp; d\n")
    assert list(html.texts()) == ["a  b\nc\n & d"]
