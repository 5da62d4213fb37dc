"""Labelled files: what the data parts of all tasks have in common."""

import dataclasses
import importlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bertgpt.data.sources.text import Record, Split, clean, field, read_records, resolve, split_of, texts_of
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.types import UserError

SEPARATOR = "\x1f"  # between the texts of a record where they count as one


@dataclasses.dataclass(frozen=True)
class TaskFiles:
    """Records of .jsonl, .csv, .tsv or .parquet files, and how they are split."""

    path: str
    """file, directory, glob, or package:module/inner/file"""
    validation_path: str | None = None
    """file of the validation split; None: a part of `path`"""
    test_path: str | None = None
    """file of the test split; None: a part of `path`"""
    tokenizer: Any = None
    """a tokenizer to train on the train split, or the path of one or of a run; None: init_from's"""
    seq_len: int = 128
    """tokens in a row, special ones included"""
    columns: tuple[str, ...] = ()
    """names of the columns of a .csv or .tsv file without a header row"""
    where: str | None = None
    """use only the records with this value in this column, written column=value"""
    strip_html: bool = False
    """turn <br> into line breaks and remove other tags"""
    validation: float = 0.1
    """fraction of the records held out for validation, unless it has a file of its own"""
    test: float = 0.1
    """fraction of the records held out for testing, unless it has a file of its own"""
    max_examples: int | None = None
    """train on this many examples only, as if labels were scarce"""
    subset: int = 0
    """which random part of the examples that is: another number, other examples"""

    def __post_init__(self):
        name = type(self).__name__
        if self.seq_len < 8:
            raise UserError(f"{name}: seq_len={self.seq_len} must be at least 8")
        if min(self.validation, self.test) < 0.0 or self.validation + self.test >= 1.0:
            raise UserError(f"{name}: validation={self.validation} and test={self.test} must leave records to train on")
        if self.max_examples is not None and self.max_examples < 1:
            raise UserError(f"{name}: max_examples={self.max_examples} must be at least 1")
        if self.subset < 0:
            raise UserError(f"{name}: subset={self.subset} must not be negative")
        if self.where is not None and "=" not in self.where:
            raise UserError(f"{name}: where={self.where!r} must read column=value")

    @property
    def key_fields(self) -> tuple[str, ...]:
        """Columns whose texts decide the split of a record, so that what is held out here is so in other runs too."""
        raise NotImplementedError

    def records(self, split: Split) -> Iterator[Record]:
        """The records of a split, in the order of the files."""
        own = {"validation": self.validation_path, "test": self.test_path}
        path = own.get(split)
        # What has a file of its own takes nothing away from the rest.
        fractions = [0.0 if own[name] else getattr(self, name) for name in ("validation", "test")]
        column, _, wanted = (self.where or "").partition("=")
        for record in self.read(path or self.path):
            if column and field(record, column) != wanted:
                continue
            if path is None:
                texts = [text for name in self.key_fields for text in texts_of(record, name)]
                key = SEPARATOR.join(clean(text, self.strip_html) for text in texts)
                if split_of(key, *fractions) != split:
                    continue
            yield record

    def read(self, path: str) -> Iterator[Record]:
        """Every record of a path."""
        for file in resolve(path):
            yield from read_records(file, self.columns)

    def texts(self, split: Split) -> Iterator[str]:
        """Every text of a split, to train a tokenizer on."""
        for record in self.records(split):
            for name in self.key_fields:
                yield clean("\n".join(texts_of(record, name)), self.strip_html)

    def train_tokenizer(self) -> Tokenizer:
        """Trains the tokenizer that `tokenizer` describes, on the texts of the train split."""
        return self.tokenizer.make(lambda: self.texts("train"))

    def none_of(self, split: Split) -> UserError:
        """The complaint that a split is empty."""
        path = {"validation": self.validation_path, "test": self.test_path}.get(split) or self.path
        return UserError(f"{path}: zero {split} examples" + (f" where {self.where}" if self.where else ""))


def some_of(items: Sequence[Any], count: int | None, subset: int = 0) -> list[Any]:
    """A random part, for each `subset` another, in the old order: files are often sorted by label. None: all."""
    if count is None or count >= len(items):
        return list(items)
    return [items[i] for i in sorted(np.random.default_rng(subset).permutation(len(items))[:count])]


EMPTY = "empty texts are left out"
REPEATED = "texts repeat earlier ones, with the same label, and are left out"
CONTRADICTORY = "texts repeat earlier ones with another label, and are left out"


def put_once(found: dict[Any, Any], key: Any, target: Any, counts: Counter[str]) -> None:
    """found[key] = target, unless the key is empty or there already, which is counted."""
    if not key:
        counts[EMPTY] += 1
    elif key in found:
        counts[REPEATED if found[key] == target else CONTRADICTORY] += 1
    else:
        found[key] = target


def labels_as_in(data: Any, train: Any) -> tuple[str, ...]:
    """The labels of `train`, the data that the model is trained on, if it has any, else those of `data` itself.

    Raises:
      UserError: both have some, and others.
    """
    labels = getattr(train, "labels", ())
    if data.labels and labels and data.labels != labels:
        raise UserError(f"evals: labels {', '.join(data.labels)} are not those of training, {', '.join(labels)}")
    return labels or data.labels


def noted(*counts: tuple[int, str]) -> tuple[str, ...]:
    """Notes of what there is any of."""
    return tuple(f"{count:,} {what}" for count, what in counts if count)


def cut_note(count: int, of: int, what: str, seq_len: int) -> tuple[str, ...]:
    """The note that texts are cut to the length of a row, if any are."""
    return (f"{count:,} of {of:,} {what} are cut to {seq_len} tokens",) if count else ()


def need(module: str, package: str) -> Any:
    """Imports a module that only tasks need.

    Raises:
      UserError: it is missing; says what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(f"this task needs {package}: pip install 'bertgpt[tasks]'") from None
