"""Text ↔ ids, by the `tokenizers` library: WordPiece trained here (Wu et al. 2016; Devlin et al. 2019), all loaded."""

import dataclasses
import functools
import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import tokenizers
from tokenizers import models, trainers

from bertgpt.config import UserError, Vocab
from bertgpt.data.tokenizer_files import BERT as SPECIAL
from bertgpt.data.tokenizer_files import Roles, frame_bert, read, wordpiece


@dataclasses.dataclass(frozen=True)
class WordPiece:
    """How to train a WordPiece vocabulary."""

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
          UserError: the characters of the texts alone exceed vocab_size.
        """
        rules = wordpiece(models.WordPiece(unk_token=SPECIAL["unk"]), self.lowercase)
        alphabet = _alphabet(texts(), rules, self.limit_alphabet)
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
        return Tokenizer(frame_bert(wordpiece(model, self.lowercase), SPECIAL), SPECIAL)


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


class Tokenizer:
    """Text ↔ ids. Encoding adds no special tokens unless asked, and never pads or truncates."""

    def __init__(self, backend: tokenizers.Tokenizer, roles: Roles):
        """`roles` names the special tokens: pad, unk, cls, sep, mask, bos, eos, as far as there are."""
        backend.no_padding()
        backend.no_truncation()
        self.backend, self.roles = backend, roles

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
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    @functools.cached_property
    def frame(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before and after a text: [CLS] … [SEP] in BERT, … </s> in T5, nothing in GPT-2."""
        self.backend.encode_special_tokens = True
        bare = self.backend.encode("a", add_special_tokens=False).ids
        framed = self.backend.encode("a").ids
        before = next(i for i in range(len(framed)) if framed[i : i + len(bare)] == bare)
        return framed[:before], framed[before + len(bare) :]

    def encode(self, texts: list[str], parse_special: bool = False) -> list[list[int]]:
        """Ids of each text. Unless `parse_special`, “[MASK]” in a text is but characters."""
        self.backend.encode_special_tokens = not parse_special
        return [item.ids for item in self.backend.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: list[int]) -> str:
        """Text of the ids, special tokens left out."""
        return self.backend.decode(ids, skip_special_tokens=True)

    def tokens(self, ids: list[int]) -> list[str]:
        """The pieces themselves."""
        return [self.backend.id_to_token(i) for i in ids]

    def files(self) -> dict[str, str]:
        """The Hugging Face layout, name → content: tokenizer.json, settings, and of WordPiece vocab.txt."""
        content = json.loads(self.backend.to_str(pretty=True))
        names = {f"{role}_token": token for role, token in self.roles.items()}
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
        files = {"tokenizer.json": self.backend.to_str(pretty=True)}
        normalizer = content["normalizer"] or {}
        if content["model"]["type"] == "WordPiece" and normalizer.get("type") == "BertNormalizer":
            pieces = sorted(self.backend.get_vocab().items(), key=lambda item: item[1])
            files["vocab.txt"] = "".join(f"{piece}\n" for piece, _ in pieces)
            rules = {
                "do_lower_case": normalizer["lowercase"],
                "strip_accents": normalizer["strip_accents"],
                "tokenize_chinese_chars": normalizer["handle_chinese_chars"],
            }
            settings |= {"tokenizer_class": "BertTokenizer", **rules}
        files["tokenizer_config.json"] = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
        files["special_tokens_map.json"] = json.dumps(names, indent=2, ensure_ascii=False) + "\n"
        return files

    def save(self, directory: Path) -> None:
        """Writes the Hugging Face layout, whole or not at all."""
        directory = Path(directory)
        partial = directory.with_name(f".{directory.name}.{os.getpid()}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name, content in self.files().items():
            (partial / name).write_text(content, encoding="utf-8")
        shutil.rmtree(directory, ignore_errors=True)
        os.replace(partial, directory)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Loads a directory in any of the layouts of `tokenizer_files`, or one such file.

    Raises:
      UserError: nothing usable there, or a token that its settings name is missing.
    """
    return Tokenizer(*read(Path(path)))
