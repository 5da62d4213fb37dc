"""WordPiece tokenizers (Wu et al. 2016; Devlin et al. 2019), trained and run by the `tokenizers` library."""

import dataclasses
import functools
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from bertgpt.config import UserError, Vocab

SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}


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
        rules = _wordpiece(models.WordPiece(unk_token=SPECIAL["unk"]), self.lowercase)
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
        return Tokenizer(
            _finish(_wordpiece(models.WordPiece(rules.get_vocab(), unk_token=SPECIAL["unk"]), self.lowercase))
        )


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


def _wordpiece(model: models.WordPiece, lowercase: bool) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)  # splits CJK characters apart
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    return backend


def _finish(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Adds what other programs need of the file: special tokens as such, and the [CLS] A [SEP] B [SEP] frame."""
    backend.add_special_tokens(list(SPECIAL.values()))
    cls, sep = (
        (SPECIAL["cls"], backend.token_to_id(SPECIAL["cls"])),
        (SPECIAL["sep"], backend.token_to_id(SPECIAL["sep"])),
    )
    backend.post_processor = processors.BertProcessing(sep, cls)
    return backend


class Tokenizer:
    """Text ↔ ids. Encoding adds no special tokens and never pads or truncates: rows are built elsewhere."""

    def __init__(self, backend: tokenizers.Tokenizer):
        backend.no_padding()
        backend.no_truncation()
        self.backend = backend

    @functools.cached_property
    def vocab(self) -> Vocab:
        ids = {name: self.backend.token_to_id(token) for name, token in SPECIAL.items()}
        return Vocab(size=self.backend.get_vocab_size(), **ids)

    @functools.cached_property
    def hash(self) -> str:
        """A digest of vocabulary and rules: equal hashes, equal ids."""
        canonical = json.dumps(json.loads(self.backend.to_str()), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

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

    def save(self, directory: Path) -> None:
        """Writes the Hugging Face layout, whole or not at all: tokenizer.json, vocab.txt and their settings."""
        directory = Path(directory)
        partial = directory.with_name(f".{directory.name}.{os.getpid()}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        self.backend.save(str(partial / "tokenizer.json"))
        pieces = sorted(self.backend.get_vocab().items(), key=lambda item: item[1])
        (partial / "vocab.txt").write_text("".join(f"{piece}\n" for piece, _ in pieces), encoding="utf-8")
        names = {f"{name}_token": token for name, token in SPECIAL.items()}
        settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": _lowercase(self.backend), **names}
        (partial / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        (partial / "special_tokens_map.json").write_text(json.dumps(names, indent=2) + "\n", encoding="utf-8")
        shutil.rmtree(directory, ignore_errors=True)
        os.replace(partial, directory)


def _lowercase(backend: tokenizers.Tokenizer) -> bool:
    return bool((json.loads(backend.to_str()).get("normalizer") or {}).get("lowercase", False))


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Loads a directory with tokenizer.json or vocab.txt, or such a file.

    Raises:
      UserError: nothing usable there, or a special token is missing.
    """
    path = Path(path)
    if path.is_dir():
        names = [name for name in ("tokenizer.json", "vocab.txt") if (path / name).exists()]
        if not names:
            raise UserError(f"{path}: holds neither tokenizer.json nor vocab.txt")
        path = path / names[0]
    if not path.is_file():
        raise UserError(f"{path}: no such tokenizer")
    try:
        if path.suffix == ".txt":
            pieces = path.read_text(encoding="utf-8").splitlines()
            lowercase = not any(piece[:1].isupper() for piece in pieces if not piece.startswith("["))
            model = models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token=SPECIAL["unk"])
            backend = _wordpiece(model, lowercase)
        else:
            backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{path}: cannot be read as a tokenizer: {' '.join(str(error).split())}") from None
    for token in SPECIAL.values():
        if backend.token_to_id(token) is None:
            raise UserError(f"{path}: has no {token} token")
    return Tokenizer(_finish(backend) if path.suffix == ".txt" else backend)
