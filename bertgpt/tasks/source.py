"""Labelled files: what the data configs of all tasks share."""

import dataclasses
import functools
import importlib
import logging
import math
import types
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Generic, NamedTuple, TypeVar

import numpy as np

from bertgpt.data.sources.files import digests
from bertgpt.data.sources.text import (
    Record,
    clean,
    facts,
    field,
    read_records,
    record_of,
    resolve,
    split_of,
    strip_markup,
    text_of,
    texts_of,
)
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.ranges import Count, Range, Rate, Seed, check_fields
from bertgpt.types import DataConfig, DataWarning, HeldOut, JsonObject, Labels, Split, Task, UserError

T = TypeVar("T")
log = logging.getLogger(__name__)


class Loaded(NamedTuple):
    """The examples of a split, and what was skipped or repaired."""

    examples: list[Any]
    warnings: tuple[DataWarning, ...] = ()


@dataclasses.dataclass(frozen=True)
class TaskFiles(Task):
    """Records of .jsonl, .csv, .tsv or .parquet files, and how they are split.

    A task reads and parses a file once in a process, as long as its size and its modification time stay the same.
    """

    path: str
    """file, directory, glob, or package:module/inner/file"""
    validation_path: str | None = None
    """file of the validation split; None: a part of `path`"""
    test_path: str | None = None
    """file of the test split; None: a part of `path`"""
    tokenizer: Any = None
    """a tokenizer to train on the train split, or the path of one or of a run; None: init_from's"""
    seq_len: Annotated[int, Range(8)] = 128
    """tokens in a sequence, special tokens included"""
    columns: tuple[str, ...] = ()
    """names of the columns of a .csv or .tsv file without a header row"""
    where: str | None = None
    """use only the records with this value in this column, written column=value"""
    strip_html: bool = False
    """turn <br> into line breaks and remove other tags; apart from that, tokenizers read every text as it is"""
    validation: Rate = 0.1
    """fraction of the records held out for validation, unless it has a file of its own"""
    test: Rate = 0.1
    """fraction of the records held out for testing, unless it has a file of its own"""
    max_examples: Count | None = None
    """train on this many random examples only, to simulate scarce labels"""
    subset: Seed = 0
    """which random part of the examples that is: another number selects other examples"""

    def __post_init__(self):
        name = type(self).__name__
        check_fields(self)
        if self.validation + self.test >= 1.0:
            raise UserError(f"{name}: validation={self.validation} and test={self.test} must leave records to train on")
        if self.where is not None and "=" not in self.where:
            raise UserError(f"{name}: where={self.where!r} must read column=value")

    # -- what a task defines ------------------------------------------------------------------------------------------

    @property
    def key_fields(self) -> tuple[str, ...]:
        """Columns whose texts decide the split of a record, so that what is held out here is so in other runs too."""
        raise NotImplementedError

    def load(self, split: Split) -> Loaded:
        """The examples of a split, in order, of the train split `max_examples` at most. Errors: UserError."""
        raise NotImplementedError

    def read(self, path: str) -> Sequence[Any]:
        """The records of a path, whatever their split."""
        return parsed(read_records, path, self.columns)

    def split_texts(self, record: Any) -> Sequence[str]:
        """The texts that decide the split of a record; differences in white space do not count."""
        return [clean(text, self.strip_html) for name in self.key_fields for text in texts_of(record, name)]

    def digests(self, tokenizer: Tokenizer, cache: Path) -> Mapping[str, str]:
        """Those of the files."""
        del tokenizer, cache
        found: dict[str, str] = {}
        for path in (self.path, self.validation_path, self.test_path):
            for part in () if path is None else self.parts_of(path):
                found |= digests(part)
        return found

    def parts_of(self, path: str) -> Sequence[str]:
        """The paths that one path stands for: itself, unless a task reads several files side by side."""
        return (path,)

    # -- what all tasks share -----------------------------------------------------------------------------------------

    def examples(self, split: Split) -> Sequence[Any]:
        """The examples of a split, in order.

        Raises:
          UserError: a record is malformed or incomplete, or there is no example.
        """
        return self.load(split).examples

    def records(self, split: Split) -> Iterator[Any]:
        """The records of a split, in the order of the files."""
        path = self.own_file(split)
        # A split that has a file of its own takes no records from `path`.
        validation = 0.0 if self.validation_path else self.validation
        test = 0.0 if self.test_path else self.test
        column, _, wanted = (self.where or "").partition("=")
        for record in self.read(path or self.path):
            if column and field(record, column) != wanted:
                continue
            if path is None and split_of(self.split_texts(record), validation, test) != split:
                continue
            yield record

    def texts(self, split: Split = "train") -> Iterator[str]:
        """Every text of a split, to train a tokenizer on."""
        for record in self.records(split):
            for name in self.key_fields:
                yield self.text(record, name)

    def own_file(self, split: Split) -> str | None:
        """The file of a split that has one of its own, of which every record is scored; None: it is cut from `path`."""
        return {"validation": self.validation_path, "test": self.test_path}.get(split)

    def plain(self, text: str) -> str:
        """A text as tokenizers read it: unchanged, unless `strip_html` asks for the removal of tags."""
        return strip_markup(text) if self.strip_html else text

    def text(self, record: Record, name: str) -> str:
        """The text of a column as tokenizers read it; a list of texts is joined by line breaks."""
        return self.plain("\n".join(texts_of(record, name)))

    def selected(self, examples: Sequence[T], split: Split) -> list[T]:
        """The examples to use: of the train split, `max_examples` at random.

        Raises:
          UserError: there are none.
        """
        if not examples:
            raise self.no_examples(split)
        return sample(examples, self.max_examples if split == "train" else None, self.subset)

    def no_examples(self, split: Split) -> UserError:
        """The error that a split is empty."""
        where = f" where {self.where}" if self.where else ""
        return UserError(f"{self.own_file(split) or self.path}: zero {split} examples{where}")


# -- reading ----------------------------------------------------------------------------------------------------------


def parsed(parse: Callable[..., Iterable[T]], path: str, *options: Hashable) -> Sequence[T]:
    """Everything that `parse(file, *options)` yields for each file of a path, read only once in a process.

    A file is read again when its size or its modification time changes.

    Args:
      parse: a function of a module, which yields immutable values.
      path: file, directory, glob, or package:module/inner/file.
      options: its other arguments, hashable.

    Raises:
      UserError: as `resolve`, `facts` and `parse`.
    """
    files = tuple((file, *facts(file).values()) for file in resolve(path))
    return _parsed(parse, files, options)


@functools.lru_cache(maxsize=4)  # the files of the three splits of one experiment, and one more
def _parsed(parse: Callable[..., Iterable[T]], files: tuple[tuple, ...], options: tuple) -> tuple[T, ...]:
    return tuple(item for file, *_ in files for item in parse(file, *options))


def numbered(records: Sequence[JsonObject]) -> list[Record]:
    """New records, to be predicted; errors call the first “record:1”."""
    return [record_of(record, "record", number) for number, record in enumerate(records, start=1)]


def require_text(record: Record, name: str) -> str:
    """The text of a field that must not be empty.

    Raises:
      UserError: it is empty, no text, or missing.
    """
    value = text_of(record, name)
    if not value.strip():
        raise UserError(f"{record.file}:{record.line}: {name!r} is empty")
    return value


def number_of(record: Record, name: str) -> float | None:
    """The number of a field, None if it is empty.

    Raises:
      UserError: it is no finite number of float32, in which objectives compute, or missing.
    """
    text = field(record, name).strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) <= float(np.finfo(np.float32).max):
        raise UserError(f"{record.file}:{record.line}: {name!r} is {text!r:.60}, not a number")
    return value


def listed(names: Sequence[str], most: int = 20) -> str:
    """The first names, for an error."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(f"{name!r:.60}" for name in names[:most]) + more


def sample(items: Sequence[T], count: int | None, subset: int = 0) -> list[T]:
    """`count` random items in their old order, a different part for each `subset`; None: all.

    Random, because files are often sorted by label.
    """
    if count is None or count >= len(items):
        return list(items)
    return [items[i] for i in sorted(np.random.default_rng(subset).permutation(len(items))[:count])]


def labels_as_in(data: Task, train: DataConfig | None) -> Labels:
    """The labels of `train`, the data that the model is trained on, if it has any, else those of `data` itself.

    Raises:
      UserError: both have labels, and they differ.
    """
    own, known = data.label_set, Labels() if train is None else train.label_set
    if own.values and known.values and own.values != known.values:
        raise UserError(f"evals: labels {', '.join(own.values)} are not those of training, {', '.join(known.values)}")
    return known if known.values else own


def data_of(held_out: HeldOut, kind: type[T]) -> T:
    """The data that a baseline is scored on, of the kind that it is for. Raises UserError if it is of another kind."""
    if not isinstance(held_out.data, kind):
        raise UserError(f"this baseline is for data of {kind.__name__}, not of {type(held_out.data).__name__}")
    return held_out.data


# -- warnings ---------------------------------------------------------------------------------------------------------


def warnings_of(*found: DataWarning) -> tuple[DataWarning, ...]:
    """The warnings that concern any example, each with its count before its text."""
    return tuple(w._replace(text=f"{w.count:,} {w.text}") for w in found if w.count)


def log_warnings(*found: DataWarning) -> None:
    """Logs the warnings that concern any example, where there is no dataset to hold them."""
    for warning in warnings_of(*found):
        log.warning("%s", warning.text)


def truncated(count: int, total: int, what: str, length: int) -> DataWarning:
    """The warning that `count` of `total` texts were truncated to `length` tokens; for `warnings_of`."""
    return DataWarning("truncated", count, f"of {total:,} {what} are truncated to {length} tokens")


class Collected(Generic[T]):
    """Labelled texts of a split, in order; counts those that are skipped: empty ones and repetitions of earlier ones.

    Of a split with a file of its own nothing is skipped.
    """

    def __init__(self, *, whole: bool, deduplicate: bool):
        """`whole`: skip nothing. `deduplicate`: skip texts that repeat earlier ones but for white space."""
        self.whole, self.deduplicate = whole, deduplicate
        self.found: list[tuple[tuple[str, ...], T]] = []
        self._labels: dict[tuple[str, ...], T] = {}
        self.empty = self.repeated = self.contradictory = 0

    def add(self, texts: tuple[str, ...], label: T) -> None:
        """Adds a labelled example, unless it is to be skipped."""
        key = tuple(clean(text, strip_html=False) for text in texts)
        if not all(key):
            self.empty += 1
            if not self.whole:
                return
        elif self.deduplicate and not self.whole:
            if key in self._labels:
                same = self._labels[key] == label
                self.repeated, self.contradictory = self.repeated + same, self.contradictory + (not same)
                return
            self._labels[key] = label
        self.found.append((texts, label))

    @property
    def warnings(self) -> tuple[DataWarning, ...]:
        """What was skipped."""
        return warnings_of(
            DataWarning("empty", self.empty, "empty texts are " + ("scored too" if self.whole else "skipped")),
            DataWarning("repeated", self.repeated, "texts repeat earlier ones with the same label and are skipped"),
            DataWarning(
                "contradictory", self.contradictory, "texts repeat earlier ones with another label and are skipped"
            ),
        )


def need(module: str, package: str) -> types.ModuleType:
    """Imports a module of an optional package.

    Raises:
      UserError: it is missing; says what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(f"this task needs {package}: pip install 'bertgpt[tasks]'") from None
