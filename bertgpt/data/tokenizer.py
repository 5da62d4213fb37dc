"""Tokenizers: configs that train WordPiece, byte-level BPE and SentencePiece, and the class that encodes text.

The trainers are those of the `tokenizers` and `sentencepiece` libraries. The same texts give the same bytes.
"""

import dataclasses
import io
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Literal

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

from bertgpt.data import tokenizer_rules as layouts
from bertgpt.data.sources.hub import download, is_hub_id
from bertgpt.data.tokenizer_added import LARGEST_ID
from bertgpt.data.tokenizer_codec import Tokenizer
from bertgpt.data.tokenizer_files import read
from bertgpt.data.tokenizer_rules import BERT as SPECIAL
from bertgpt.data.tokenizer_spiece import albert_folding, sentencepiece_backend
from bertgpt.io.files import library_errors
from bertgpt.ranges import Natural, Range, check_fields
from bertgpt.types import UserError

VocabSize = Annotated[int, Range(1, LARGEST_ID + 1)]

NO_TEXT = "there is no text to train a tokenizer on"
# Results depend on the number of threads, so it must not depend on the machine.
SENTENCEPIECE_THREADS = 16
# Characters. On 160,000 characters of Chinese text without a space, unigram training produced infinities.
LONGEST_WORD = 1000


@dataclasses.dataclass(frozen=True)
class WordPiece:
    """Trains a WordPiece tokenizer (Wu et al. 2016; Devlin et al. 2019). Chinese characters are words of their own."""

    vocab_size: VocabSize = 30_522
    """maximum number of tokens, including the 5 special ones"""
    lowercase: bool = True
    """fold case and strip accents, as BERT-uncased does"""
    min_frequency: Natural = 2
    """minimum number of occurrences of a subword"""
    limit_alphabet: Annotated[int, Range(1, 0x110000)] = 1000
    """maximum number of characters; Chinese and Japanese text needs more, for example 6000"""

    def __post_init__(self):
        check_fields(self)
        if self.vocab_size <= len(SPECIAL):
            raise UserError(
                f"WordPiece: vocab_size={self.vocab_size} is too small for {len(SPECIAL)} special tokens and others"
            )

    def make(self, texts: Callable[[], Iterator[str]]) -> Tokenizer:
        """Trains on the texts, which are read twice; the same texts give the same bytes.

        Raises:
          UserError: there is no text, or its characters alone exceed vocab_size.
        """
        rules = layouts.wordpiece(models.WordPiece(unk_token=SPECIAL["unk"]), self.lowercase)
        alphabet = _alphabet(texts(), rules, self.limit_alphabet)
        if not alphabet:
            raise UserError(f"WordPiece: {NO_TEXT}")
        # The trainer numbers “##a”, “##b”, … in the order of a randomly seeded hash table, and breaks ties between
        # merges by number. Declared as special tokens they are numbered first, in a fixed order.
        inner = [f"##{c}" for c in alphabet if len(rules.pre_tokenizer.pre_tokenize_str(c + c)) == 1]
        if len(SPECIAL) + len(alphabet) + len(inner) > self.vocab_size:
            raise UserError(
                f"WordPiece: vocab_size={self.vocab_size} is too small for the text's characters, which need"
                f" {len(SPECIAL) + len(alphabet) + len(inner)}; raise it or lower limit_alphabet={self.limit_alphabet}"
            )
        with library_errors("WordPiece: training failed"):
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
    """Trains byte-level BPE (Radford et al. 2019; Liu et al. 2019). No text is unknown; case and spaces are kept."""

    vocab_size: VocabSize = 50_265
    """maximum number of tokens, including special ones and the 256 bytes"""
    style: Literal["roberta", "gpt2"] = "roberta"
    """roberta: ids begin with <s> <pad> </s> <unk> <mask>, the special-token template is <s> … </s>. gpt2: the only
    special token is <|endoftext|>, which ends texts and also pads sequences; attention and loss depend on the lengths
    of the texts, not on ids"""
    min_frequency: Natural = 2
    """minimum number of occurrences of a subword"""

    def __post_init__(self):
        check_fields(self)
        least = 256 + len(self.special)
        if self.vocab_size < least:
            raise UserError(
                f"ByteBPE: vocab_size={self.vocab_size} is too small for the 256 bytes and {len(self.special)}"
                f" special tokens; raise it to {least} or more"
            )

    @property
    def special(self) -> tuple[str, ...]:
        return ("<s>", "<pad>", "</s>", "<unk>", "<mask>") if self.style == "roberta" else ("<|endoftext|>",)

    def make(self, texts: Callable[[], Iterator[str]]) -> Tokenizer:
        """Trains on the texts, which are read once.

        Raises:
          UserError: there is no text.
        """
        roles = layouts.ROBERTA if self.style == "roberta" else layouts.GPT2
        rules = tokenizers.Tokenizer(models.BPE())
        rules.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        with library_errors("ByteBPE: training failed"):
            trainer = trainers.BpeTrainer(
                vocab_size=self.vocab_size,
                min_frequency=self.min_frequency,
                special_tokens=list(self.special),
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
            )
            rules.train_from_iterator(_some(texts(), "ByteBPE"), trainer)
        # Trained special tokens lack the flags of RoBERTa's (its mask token includes the space before it).
        return Tokenizer(layouts.byte_level(rules.model, roles, {}), roles)


@dataclasses.dataclass(frozen=True)
class SentencePiece:
    """Trains SentencePiece (Kudo & Richardson 2018) for T5 (Raffel et al. 2020) or ALBERT (Lan et al. 2020).

    For training, text without spaces, such as Chinese, is split after every 1,000 characters.
    """

    kind: Literal["unigram", "bpe"] = "unigram"
    """unigram language model (Kudo 2018), as in both papers, or byte pair encoding"""
    style: Literal["t5", "albert"] = "t5"
    """t5: ids begin with <pad> </s> <unk> and end with the sentinels, the special-token template is … </s>. albert: ids
    begin with <pad> <unk> [CLS] [SEP] [MASK], the template is [CLS] … [SEP], and case and accents are removed"""
    vocab_size: VocabSize = 32_100
    """maximum number of tokens, including special ones and sentinels"""
    sentinels: Annotated[int, Range(0, 100_000)] = 100
    """number of tokens <extra_id_0>, <extra_id_1>, … for masked spans; <extra_id_0> has the last id. albert has none"""
    character_coverage: Annotated[float, Range(0.98, 1.0)] = 0.9995
    """fraction of the text that the characters of the vocabulary cover, the most frequent first; the others are <unk>.
    0.9995 suits Chinese and Japanese, 1.0 small alphabets"""
    byte_fallback: bool = False
    """encode unknown characters as bytes, for which 256 tokens are added"""

    def __post_init__(self):
        check_fields(self)
        if self.vocab_size <= self._reserved:
            raise UserError(
                f"SentencePiece: vocab_size={self.vocab_size} is too small for the {self._reserved} special tokens"
                " and any other"
            )

    @property
    def _extra(self) -> int:
        return self.sentinels if self.style == "t5" else 0

    @property
    def _reserved(self) -> int:
        return self._extra + len(layouts.T5 if self.style == "t5" else layouts.ALBERT) + 256 * self.byte_fallback

    def make(self, texts: Callable[[], Iterator[str]]) -> Tokenizer:
        """Trains on the texts, which are read once.

        Raises:
          UserError: there is no text, or its characters alone exceed vocab_size.
        """
        from sentencepiece import SentencePieceTrainer

        if self.style == "t5":
            special = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
        else:
            special = {"pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1, "control_symbols": "[CLS],[SEP],[MASK]"}
        failed: list[BaseException] = []
        words = _watched(_some(texts(), "SentencePiece"), failed)
        if self.style == "albert":
            fold = normalizers.Sequence(albert_folding())
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
                input_sentence_size=0,  # all text, not a random sample of it
                max_sentence_length=2**30,  # the library drops longer texts
                num_threads=SENTENCEPIECE_THREADS,
                minloglevel=2,
                **special,
            )
        except RuntimeError as error:
            if failed:  # the library makes its own error of one that the texts raise
                raise failed[0] from None
            raise UserError(f"SentencePiece: {self._explain(str(error))}") from None
        backend, roles = sentencepiece_backend(spiece.getvalue(), {"extra_ids": self._extra})
        return Tokenizer(backend, roles, spiece.getvalue())

    def _explain(self, error: str) -> str:
        """The library's error in the terms of this config."""
        if short := re.search(r"smaller than required_chars\. \d+ vs (\d+)", error):
            return (
                f"vocab_size={self.vocab_size} is too small for the text's characters, which need"
                f" {int(short[1]) + self._extra}; raise it or lower character_coverage={self.character_coverage}"
            )
        if "sentences_.empty()" in error or "all_chars_count" in error:
            return NO_TEXT
        return f"training failed: {' '.join(error.split())}"


def _watched(texts: Iterator[str], failed: list[BaseException]) -> Iterator[str]:
    """The texts; the error that ends them, if any, is added to `failed` too."""
    try:
        yield from texts
    except (Exception, KeyboardInterrupt) as error:
        failed.append(error)
        raise


def _some(texts: Iterator[str], user: str) -> Iterator[str]:
    """The texts that are not blank.

    Raises:
      UserError: there are none.
    """
    first = next((text for text in texts if text.strip()), None)
    if first is None:
        raise UserError(f"{user}: {NO_TEXT}")
    return itertools.chain([first], (text for text in texts if text.strip()))


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Loads a directory in any of the formats of `tokenizer_files`, or one such file.

    A string that is no local path may be the id of a model of the Hugging Face Hub, ORG/NAME or ORG/NAME@REVISION.

    Raises:
      UserError: there is no tokenizer, or a token that its settings name is missing.
    """
    if isinstance(path, str) and is_hub_id(path):
        folder = download(path, "tokenizer")
        path = folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder
    return Tokenizer(*read(Path(path)))
