"""Text ↔ ids: how to train WordPiece, byte-level BPE and SentencePiece, and the one class that all become.

The trainers are those of the `tokenizers` and `sentencepiece` libraries. The same texts give the same bytes.
"""

import dataclasses
import functools
import hashlib
import io
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

from bertgpt.data import tokenizer_files as layouts
from bertgpt.data.tokenizer_files import BERT as SPECIAL
from bertgpt.data.tokenizer_files import Roles
from bertgpt.io import replace_directory
from bertgpt.types import UserError, Vocab

NO_TEXT = "there is no text to train a tokenizer on"
# Results depend on the number of threads, so that it must not be the machine's own.
SENTENCEPIECE_THREADS = 16
# Characters; on Chinese text of 160,000 without any space the library's unigram training ended in infinities.
LONGEST_WORD = 1000


@dataclasses.dataclass(frozen=True)
class WordPiece:
    """How to train a WordPiece vocabulary (Wu et al. 2016; Devlin et al. 2019). Chinese characters stand alone."""

    vocab_size: int = 30_522
    """tokens at most, the 5 special ones included"""
    lowercase: bool = True
    """fold case and strip accents, as BERT-uncased does"""
    min_frequency: int = 2
    """a piece must occur this often"""
    limit_alphabet: int = 1000
    """characters kept at most; Chinese and Japanese text wants more, e.g. 6000"""

    def __post_init__(self):
        if self.vocab_size <= len(SPECIAL):
            raise UserError(
                f"WordPiece: vocab_size={self.vocab_size} cannot hold the {len(SPECIAL)} special tokens and any other"
            )

    def make(self, texts: Callable[[], Iterator[str]]) -> "Tokenizer":
        """Trains on the texts, read twice; the same texts give the same bytes.

        Raises:
          UserError: there is no text, or its characters alone exceed vocab_size.
        """
        rules = layouts.wordpiece(models.WordPiece(unk_token=SPECIAL["unk"]), self.lowercase)
        alphabet = _alphabet(texts(), rules, self.limit_alphabet)
        if not alphabet:
            raise UserError(f"WordPiece: {NO_TEXT}")
        # The trainer numbers “##a”, “##b”, … in the order of a randomly seeded hash table, and breaks ties between
        # merges by number. Declared as special tokens they are numbered before, in our order.
        inner = [f"##{c}" for c in alphabet if len(rules.pre_tokenizer.pre_tokenize_str(c + c)) == 1]
        if len(SPECIAL) + len(alphabet) + len(inner) > self.vocab_size:
            raise UserError(
                f"WordPiece: vocab_size={self.vocab_size} is too small for the text's characters, which need"
                f" {len(SPECIAL) + len(alphabet) + len(inner)}; raise it or lower limit_alphabet={self.limit_alphabet}"
            )
        trainer = trainers.WordPieceTrainer(
            vocab_size=self.vocab_size,
            min_frequency=self.min_frequency,
            initial_alphabet=alphabet,
            limit_alphabet=len(alphabet),
            special_tokens=[*SPECIAL.values(), *inner],
            continuing_subword_prefix="##",
            show_progress=False,
        )
        rules.train_from_iterator(texts(), trainer)
        model = models.WordPiece(rules.get_vocab(), unk_token=SPECIAL["unk"])
        return Tokenizer(layouts.template_bert(layouts.wordpiece(model, self.lowercase), SPECIAL), SPECIAL)


def _alphabet(texts: Iterator[str], rules: tokenizers.Tokenizer, limit: int) -> list[str]:
    """The `limit` most frequent characters after normalisation, most frequent first, then by code point."""
    raw: Counter[str] = Counter()
    for text in texts:
        raw.update(text)
    counts: Counter[str] = Counter()
    for character, count in raw.items():
        for normal in rules.normalizer.normalize_str(character):
            counts[normal] += 0 if normal.isspace() else count
    return sorted(sorted(c for c in counts if counts[c] > 0), key=lambda c: -counts[c])[:limit]


@dataclasses.dataclass(frozen=True)
class ByteBPE:
    """How to train byte-level BPE (Radford et al. 2019; Liu et al. 2019). No text is unknown, case and spaces stay."""

    vocab_size: int = 50_265
    """tokens at most, special ones and the 256 bytes included"""
    style: Literal["roberta", "gpt2"] = "roberta"
    """roberta: <s> <pad> </s> <unk> <mask> come first, and texts stand as <s> … </s>. gpt2: <|endoftext|> alone, which
    ends texts; there is no token for padding, so that rows are filled up with it and attention and loss go by the
    lengths of the texts, not by ids"""
    min_frequency: int = 2
    """a piece must occur this often"""

    def __post_init__(self):
        least = 256 + len(self.special)
        if self.vocab_size < least:
            raise UserError(
                f"ByteBPE: vocab_size={self.vocab_size} cannot hold the 256 bytes and {len(self.special)} special"
                f" tokens; raise it to {least} or more"
            )

    @property
    def special(self) -> tuple[str, ...]:
        return ("<s>", "<pad>", "</s>", "<unk>", "<mask>") if self.style == "roberta" else ("<|endoftext|>",)

    def make(self, texts: Callable[[], Iterator[str]]) -> "Tokenizer":
        """Trains on the texts, read once.

        Raises:
          UserError: there is no text.
        """
        roles = layouts.ROBERTA if self.style == "roberta" else layouts.GPT2
        rules = tokenizers.Tokenizer(models.BPE())
        rules.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            min_frequency=self.min_frequency,
            special_tokens=list(self.special),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        rules.train_from_iterator(_some(texts(), "ByteBPE"), trainer)
        # Trained special tokens lack the flags that RoBERTa's have (its mask swallows the space before it).
        return Tokenizer(layouts.byte_level(rules.model, roles, {}), roles)


@dataclasses.dataclass(frozen=True)
class SentencePiece:
    """How to train SentencePiece (Kudo & Richardson 2018) for T5 (Raffel et al. 2020) or ALBERT (Lan et al. 2020).

    Runs of more than 1,000 characters without a space are cut there for training, as in Chinese text.
    """

    kind: Literal["unigram", "bpe"] = "unigram"
    """unigram language model (Kudo 2018), the choice of both papers, or byte pair encoding"""
    style: Literal["t5", "albert"] = "t5"
    """t5: <pad> </s> <unk> come first, the sentinels last, and texts stand as … </s>. albert: <pad> <unk> [CLS] [SEP]
    [MASK] come first, texts stand as [CLS] … [SEP], and lose case and accents"""
    vocab_size: int = 32_100
    """tokens at most, special ones and sentinels included"""
    sentinels: int = 100
    """tokens <extra_id_0>, <extra_id_1>, … that stand for spans, <extra_id_0> the last of all; albert has none"""
    character_coverage: float = 0.9995
    """share of the text whose characters must be known, the most frequent first; the others are <unk>. 0.9995 suits
    Chinese and Japanese, 1.0 small alphabets"""
    byte_fallback: bool = False
    """spell unknown characters in 256 tokens for bytes"""

    def __post_init__(self):
        if not 0.98 <= self.character_coverage <= 1.0:  # the library's own bounds
            raise UserError(f"SentencePiece: character_coverage={self.character_coverage} must lie in [0.98, 1]")
        if self.sentinels < 0:
            raise UserError(f"SentencePiece: sentinels={self.sentinels} must not be negative")
        if self.vocab_size <= self._reserved:
            raise UserError(
                f"SentencePiece: vocab_size={self.vocab_size} cannot hold the {self._reserved} special tokens and any"
                " other"
            )

    @property
    def _extra(self) -> int:
        return self.sentinels if self.style == "t5" else 0

    @property
    def _reserved(self) -> int:
        return self._extra + len(layouts.T5 if self.style == "t5" else layouts.ALBERT) + 256 * self.byte_fallback

    def make(self, texts: Callable[[], Iterator[str]]) -> "Tokenizer":
        """Trains on the texts, read once.

        Raises:
          UserError: there is no text, or its characters alone exceed vocab_size.
        """
        from sentencepiece import SentencePieceTrainer

        if self.style == "t5":
            special = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
        else:
            special = {"pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1, "control_symbols": "[CLS],[SEP],[MASK]"}
        words = _some(texts(), "SentencePiece")
        if self.style == "albert":
            fold = normalizers.Sequence(layouts.albert_folding())
            words = (fold.normalize_str(text) for text in words)
        spiece = io.BytesIO()
        try:
            SentencePieceTrainer.train(
                sentence_iterator=(re.sub(rf"(\S{{{LONGEST_WORD}}})", r"\1 ", text) for text in words),
                model_writer=spiece,
                model_type=self.kind,
                vocab_size=self.vocab_size - self._extra,
                hard_vocab_limit=False,
                character_coverage=self.character_coverage,
                byte_fallback=self.byte_fallback,
                input_sentence_size=0,  # all text, no random part of it
                max_sentence_length=2**30,  # the library drops what is longer
                num_threads=SENTENCEPIECE_THREADS,
                minloglevel=2,
                **special,
            )
        except RuntimeError as error:
            raise UserError(f"SentencePiece: {self._explain(str(error))}") from None
        backend, roles = layouts.sentencepiece_backend(spiece.getvalue(), {"extra_ids": self._extra})
        return Tokenizer(backend, roles, spiece.getvalue())

    def _explain(self, error: str) -> str:
        """The library's complaint in our terms."""
        if short := re.search(r"smaller than required_chars\. \d+ vs (\d+)", error):
            return (
                f"vocab_size={self.vocab_size} is too small for the text's characters, which need"
                f" {int(short[1]) + self._extra}; raise it or lower character_coverage={self.character_coverage}"
            )
        if "sentences_.empty()" in error or "all_chars_count" in error:
            return NO_TEXT
        return f"cannot be trained: {' '.join(error.split())}"


def _some(texts: Iterator[str], user: str) -> Iterator[str]:
    """The texts that are not blank.

    Raises:
      UserError: there are none.
    """
    first = next((text for text in texts if text.strip()), None)
    if first is None:
        raise UserError(f"{user}: {NO_TEXT}")
    return itertools.chain([first], (text for text in texts if text.strip()))


class Tokenizer:
    """Text ↔ ids. Encoding adds no special tokens unless asked, and never pads or truncates."""

    def __init__(self, backend: tokenizers.Tokenizer, roles: Roles, spiece: bytes | None = None):
        """`roles` names the special tokens: pad, unk, cls, sep, mask, bos, eos, as far as there are.

        With `spiece`, a SentencePiece model that the backend was made from, the sentencepiece library encodes: the
        backend, which has the same ids, takes the words “</s>” in a text for the token and normalises a little worse.
        """
        backend.no_padding()
        backend.no_truncation()
        self.backend, self.roles, self.spiece = backend, roles, spiece

    @functools.cached_property
    def vocab(self) -> Vocab:
        ids = {role: self.backend.token_to_id(token) for role, token in self.roles.items()}
        sentinels = {
            int(match[1]): i
            for i, token in self.backend.get_added_tokens_decoder().items()
            if (match := re.fullmatch(r"<extra_id_(\d+)>", token.content))
        }
        return Vocab(
            self.backend.get_vocab_size(),
            **ids,
            sentinels=tuple(i for _, i in sorted(sentinels.items())),
            continuation=self._continuation(),
        )

    def _continuation(self) -> tuple[int, ...]:
        """Ids of pieces that continue a word, by the mark that the decoder undoes; none if it knows no such mark."""
        added = self.backend.get_added_tokens_decoder()
        special = {i for i, token in added.items() if token.special}
        special |= {self.backend.token_to_id(token) for token in self.roles.values()}
        pieces = [(i, piece) for piece, i in self.backend.get_vocab().items() if i not in special]
        model = json.loads(self.backend.to_str())
        if model["model"]["type"] == "WordPiece":
            prefix = model["model"]["continuing_subword_prefix"]
            return tuple(sorted(i for i, piece in pieces if piece.startswith(prefix) and piece != prefix))
        decoder = json.dumps(model["decoder"], ensure_ascii=False)
        start = "Ġ" if "ByteLevel" in decoder else "▁" if "▁" in decoder else ""
        return tuple(sorted(i for i, piece in pieces if not piece.startswith(start)))

    @functools.cached_property
    def hash(self) -> str:
        """A digest of vocabulary and rules: equal hashes, equal ids."""
        canonical = json.dumps(json.loads(self.backend.to_str()), sort_keys=True)
        if self.roles != SPECIAL:
            canonical += json.dumps(self.roles, sort_keys=True)
        if self.spiece is not None:
            canonical += hashlib.sha256(self.spiece).hexdigest()
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    @functools.cached_property
    def template(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before and after a text: [CLS] … [SEP] in BERT, … </s> in T5, nothing in GPT-2."""
        self.backend.encode_special_tokens = True
        bare = self.backend.encode("a", add_special_tokens=False).ids
        encoded = self.backend.encode("a").ids
        before = next(i for i in range(len(encoded)) if encoded[i : i + len(bare)] == bare)
        return encoded[:before], encoded[before + len(bare) :]

    @functools.cached_property
    def between(self) -> list[int]:
        """What it puts between the two texts of a pair: [SEP] in BERT, </s></s> in RoBERTa, what ends a text in GPT."""
        own = [self.roles.get("sep") or self.roles.get("eos")]
        ends = [self.backend.token_to_id(token) for token in own if token is not None]
        self.backend.encode_special_tokens = True
        bare = self.backend.encode("a", add_special_tokens=False).ids
        before, after = self.template
        encoded = self.backend.encode("a", "a").ids
        found = encoded[len(before) + len(bare) : len(encoded) - len(after) - len(bare)]
        return found or after or ends

    def encode(self, texts: list[str], parse_special: bool = False) -> list[list[int]]:
        """Ids of each text. Unless `parse_special`, “[MASK]” in a text is but characters."""
        if self.spiece is not None:
            return self._encode_by_sentencepiece(texts, parse_special)
        self.backend.encode_special_tokens = not parse_special
        return [item.ids for item in self.backend.encode_batch_fast(texts, add_special_tokens=False)]

    def _encode_by_sentencepiece(self, texts: list[str], parse_special: bool) -> list[list[int]]:
        processor, fold, special = self._sentencepiece
        if not parse_special:
            return processor.encode([fold(text) for text in texts])
        rows = []
        for text in texts:
            # Odd parts are special tokens. Spaces beside them are sentencepiece's to drop.
            parts = special.split(text)
            ids = processor.encode([fold(part) for part in parts[::2]])
            for i, token in enumerate(parts[1::2]):
                ids[i] = [*ids[i], self.backend.token_to_id(token)]
            rows.append([i for part in ids for i in part])
        return rows

    @functools.cached_property
    def _sentencepiece(self) -> tuple[Any, Callable[[str], str], re.Pattern]:
        """The library's own encoder, what is done to a text before, and a pattern that finds special tokens."""
        from sentencepiece import SentencePieceProcessor

        special = {t.content for t in self.backend.get_added_tokens_decoder().values() if t.special}
        pattern = "|".join(re.escape(token) for token in sorted(special, key=len, reverse=True))
        fold = layouts.folding(self.backend)
        return SentencePieceProcessor(model_proto=self.spiece), fold.normalize_str, re.compile(f"({pattern})")

    def decode(self, ids: list[int]) -> str:
        """Text of the ids, special tokens left out."""
        return self.backend.decode(ids, skip_special_tokens=True)

    def tokens(self, ids: list[int]) -> list[str]:
        """The pieces themselves."""
        return [self.backend.id_to_token(i) for i in ids]

    def files(self) -> dict[str, bytes]:
        """The Hugging Face layout, name → content."""
        return layouts.write(self.backend, self.roles, self.spiece, len(self.vocab.sentinels))

    def save(self, directory: Path) -> None:
        """Writes the Hugging Face layout atomically, in place of another tokenizer if there is one.

        Raises:
          UserError: the directory holds anything but a tokenizer, or cannot be written.
        """
        with replace_directory(Path(directory), layouts.FILES) as folder:
            for name, content in self.files().items():
                (folder / name).write_bytes(content)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Loads a directory in any of the layouts of `tokenizer_files`, or one such file.

    Raises:
      UserError: nothing usable there, or a token that its settings name is missing.
    """
    return Tokenizer(*layouts.read(Path(path)))
