"""Text classification: labelled texts as the data part of a fine-tuning experiment, and new texts for `predict`."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bertgpt.config import UserError
from bertgpt.data.loader import Batches
from bertgpt.data.pack import TextRows
from bertgpt.data.text import Record, Split, clean, field, read_records, resolve, split_of
from bertgpt.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class TextClassification:
    """Texts with one label each, from .jsonl, .csv or .tsv files."""

    path: str
    """file, directory, glob, or package:module/inner/file"""
    labels: tuple[str, ...]
    """the classes as the file writes them; their order numbers them"""
    names: tuple[str, ...] = ()
    """what to call the classes in predictions; empty: as the file writes them"""
    tokenizer: Any = None
    """a WordPiece to train on the train split, or the path of a tokenizer or of a run with one; None: init_from's"""
    seq_len: int = 128
    """tokens in a row, special ones included; of a longer text the beginning is used"""
    text_field: str = "text"
    """column that holds the text"""
    label_field: str = "label"
    """column that holds the label"""
    where: str | None = None
    """use only the records with this value in this column, written column=value"""
    strip_html: bool = False
    """turn <br> into line breaks and remove other tags"""
    validation: float = 0.1
    """fraction of texts held out for validation"""
    test: float = 0.1
    """fraction of texts held out for testing"""
    max_examples: int | None = None
    """train on this many labelled texts only, as if labels were scarce"""

    def __post_init__(self):
        if len(self.labels) < 2 or len(set(self.labels)) < len(self.labels):
            raise UserError(f"TextClassification: labels={self.labels} must be two or more different ones")
        if self.names and len(self.names) != len(self.labels):
            raise UserError(f"TextClassification: {len(self.names)} names for {len(self.labels)} labels")
        if self.seq_len < 8:
            raise UserError(f"TextClassification: seq_len={self.seq_len} must be at least 8")
        if min(self.validation, self.test) < 0.0 or self.validation + self.test >= 1.0:
            raise UserError(
                f"TextClassification: validation={self.validation} and test={self.test} must leave texts to train on"
            )
        if self.max_examples is not None and self.max_examples < 1:
            raise UserError(f"TextClassification: max_examples={self.max_examples} must be at least 1")
        if self.where is not None and "=" not in self.where:
            raise UserError(f"TextClassification: where={self.where!r} must read column=value")

    def examples(self, split: Split) -> tuple[list[str], list[int]]:
        """The cleaned texts of a split, each once, and their label numbers.

        Which split a text belongs to depends on the text alone, so that a text held out here is held out of a corpus
        with the same fractions too.

        Raises:
          UserError: a label that is not in `labels`, a missing column, or no text at all.
        """
        numbers = {label: i for i, label in enumerate(self.labels)}
        found: dict[str, int] = {}
        for record in self._records():
            label = field(record, self.label_field)
            if label not in numbers:
                known = ", ".join(map(repr, self.labels))
                raise UserError(f"{record.file}:{record.line}: unknown label {label!r}; labels are {known}")
            text = clean(field(record, self.text_field), self.strip_html)
            if text and split_of(text, self.validation, self.test) == split:
                found.setdefault(text, numbers[label])
        if not found:
            raise UserError(f"{self.path}: zero {split} examples" + (f" where {self.where}" if self.where else ""))
        texts = list(found)
        if split == "train" and self.max_examples is not None:
            # Files are often sorted by label: take a random part, the same in every run.
            kept = np.random.default_rng(0).permutation(len(texts))[: self.max_examples]
            texts = [texts[i] for i in sorted(kept)]
        return texts, [found[text] for text in texts]

    def train_tokenizer(self) -> Tokenizer:
        """Trains the tokenizer that `tokenizer` describes, on the texts of the train split."""
        texts, _ = self.examples("train")
        return self.tokenizer.make(lambda: iter(texts))

    def make(
        self, *, split: Split, seed: int, batch_size: int, tokenizer: Tokenizer, cache: Path, shuffle: bool
    ) -> Batches:
        """Batches of one split. Labelled sets are small: they are tokenised anew each time, and held in memory."""
        del cache
        texts, labels = self.examples(split)
        return Batches(self._rows(texts, labels, tokenizer), batch_size, seed, shuffle)

    def predict_batches(self, texts: Sequence[str], batch_size: int, tokenizer: Tokenizer) -> Batches:
        """Batches of new texts, in order, without labels."""
        cleaned = [clean(text, self.strip_html) for text in texts]
        return Batches(self._rows(cleaned, [-1] * len(texts), tokenizer), batch_size, 0, shuffle=False)

    def describe(self, outputs: dict[str, np.ndarray], tokenizer: Tokenizer) -> Iterator[dict[str, Any]]:
        """What `predict` prints for each row: the likeliest label and the probability of every one."""
        del tokenizer
        yield from describe_classes(outputs["probabilities"], self.names or self.labels)

    def _rows(self, texts: Sequence[str], labels: Sequence[int], tokenizer: Tokenizer) -> TextRows:
        # A word is at least one token, so words beyond the room would never be seen: spare the tokenizer.
        room = self.seq_len - 2
        ids = tokenizer.encode([" ".join(text.split(maxsplit=room)[:room]) for text in texts])
        return TextRows(ids, tokenizer.vocab, self.seq_len, {"label": np.array(labels, np.int32)})

    def _records(self) -> Iterator[Record]:
        column, _, wanted = (self.where or "").partition("=")
        for file in resolve(self.path):
            for record in read_records(file):
                if not column or field(record, column) == wanted:
                    yield record


def describe_classes(probabilities: np.ndarray, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """For each row, the likeliest class and the probability of every one."""
    for row in probabilities:
        best = int(np.argmax(row))
        every = {name: round(float(p), 4) for name, p in zip(names, row, strict=True)}
        yield {"label": names[best], "probability": round(float(row[best]), 4), "probabilities": every}
