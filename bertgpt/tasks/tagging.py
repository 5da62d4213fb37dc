"""Sequence labelling: tagged words as data of a fine-tuning experiment, and new texts or lists of words for `predict`.

Named entities, parts of speech, chunks, slots; and semantic roles, where each predicate of a sentence makes an example.
"""

import dataclasses
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from bertgpt.data.loader import Batches
from bertgpt.data.sources.conll import (
    Scheme,
    Sentence,
    Tally,
    entities,
    is_json,
    read_columns,
    read_spans,
    read_token_lists,
    to_bio,
)
from bertgpt.data.sources.text import CJK, Split, resolve, split_of
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.tasks.source import TaskFiles, labels_as_in, some_of
from bertgpt.tasks.tag_dataset import TaggedDataset
from bertgpt.tasks.tag_metrics import evaluate_entities, evaluate_words
from bertgpt.types import DataRequest, EvalResult, UserError

RECORDS = "<records>"  # the file, so to speak, of what is to be predicted
EMPTY = "sentences without a word are left out"
# Vowel signs and accents of their own belong to the letter before them.
_MARKS = "".join(c for c in map(chr, range(0x300, 0xFE30)) if unicodedata.category(c).startswith("M"))
_WORD = re.compile(rf"[{CJK}]|\d+(?:[.,]\d+)+|(?:(?![{CJK}])[\w{_MARKS}])+|[^\w\s]")
_CHARACTER = re.compile(r"\S")


class Source(NamedTuple):
    """Where the words of a record to predict come from."""

    text: str | None
    """the text that was split into words; None: words were given"""
    spans: tuple[tuple[int, int], ...]
    """first character of each word, and one past its last"""


@dataclasses.dataclass(frozen=True)
class TokenTagging(TaskFiles):
    """Words with a tag each: CoNLL-style columns in any file but .jsonl, and there lists of tokens or spans."""

    labels: tuple[str, ...] = ()
    """the tags; their order numbers them. (): those of the training split, O first"""
    words_field: str = "tokens"
    """.jsonl: field with the words, or with the text where there are spans; else name of the words' column, if
    `columns` are named; without names it is the first"""
    tags_field: str = "tags"
    """.jsonl: field with the tags; else name of the tags' column, if `columns` are named; without names the last"""
    spans_field: str | None = None
    """.jsonl: field with spans of characters, in place of tags (CLUENER)"""
    predicate_field: str | None = None
    """.jsonl: field with the number of the word that the tags are about (semantic roles)"""
    frames_field: str | None = None
    """.jsonl: field with several objects that have tags and predicate, each of which makes an example"""
    scheme: Scheme = "bio"
    """how tags tell entities: bio, iob1, bioes (also BMES and BILOU), or plain: they tell none (parts of speech)"""
    characters: bool = False
    """split texts to predict into characters, as Chinese sets are; else into words, punctuation and CJK characters"""
    stride: int = 0
    """sentences longer than a row are read in windows that overlap by at most this many tokens; 0: they are cut"""
    packed: bool = False
    """several sentences in a row where they fit, with the same loss; `batch_size` counts rows"""
    documents: bool = False
    """neighbours in a document, where files have -DOCSTART- lines, see each other (Devlin et al. 2019 §5.3)"""
    capitals: bool = False
    """mark words that begin with a capital letter by their token type, for models whose tokenizer folds case"""

    def __post_init__(self):
        super().__post_init__()
        if len(set(self.labels)) < len(self.labels) or len(self.labels) == 1:
            raise UserError(f"TokenTagging: labels={self.labels} must be two or more different ones")
        if not 0 <= self.stride < self.seq_len - 2:
            raise UserError(f"TokenTagging: stride={self.stride} must lie in [0, seq_len - 2 = {self.seq_len - 2})")
        if self.frames_field is not None and self.predicate_field is None:
            raise UserError("TokenTagging: frames_field needs predicate_field")
        if self.capitals and self.predicate_field is not None:
            raise UserError("TokenTagging: token types mark the predicate, so capitals=True cannot use them")
        if self.spans_field is not None and self.scheme != "bio":
            raise UserError(f"TokenTagging: spans become BIO, so scheme={self.scheme!r} has no use with spans_field")
        for name in ("where", "strip_html"):
            if getattr(self, name):
                raise UserError(f"TokenTagging: {name} has no use for tagged words")

    @property
    def key_fields(self) -> tuple[str, ...]:
        return (self.words_field,)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Fields of a record to predict: a text or a list of words, and the number of the predicate if there is one."""
        words = self.words_field if is_json(self.path) else "text"
        return (words,) if self.predicate_field is None else (words, self.predicate_field)

    @property
    def num_types(self) -> int:
        """Token types that its rows have."""
        return 1 + (self.capitals or self.predicate_field is not None)

    @property
    def other(self) -> str:
        """The tag of words that are not looked at."""
        return "" if self.scheme == "plain" else "O"

    # -- reading ------------------------------------------------------------------------------------------------------

    def infer(self, train: Any = None) -> "TokenTagging":
        """With the labels of the training split, or of `train`, the data that the model is trained on.

        Raises:
          UserError: there are fewer than two.
        """
        if labels := labels_as_in(self, train):
            return dataclasses.replace(self, labels=labels)
        found = {tag for sentence in self._read("train", Tally()) for tag in sentence.tags}
        if not found:
            raise self.none_of("train")
        if self.scheme == "plain":
            labels = tuple(sorted(found))
        else:
            kinds = sorted({tag[2:] for tag in found} - {""})
            # Both tags of each kind: entities that are longer in another split are no unknown thing.
            labels = ("O", *(f"{letter}-{kind}" for kind in kinds for letter in "BI"))
        if len(labels) < 2:
            raise UserError(f"{self.path}: every training word has the tag {labels[0]!r}; there is nothing to learn")
        return dataclasses.replace(self, labels=labels)

    def examples(self, split: Split, tally: Tally | None = None) -> list[Sentence]:
        """The sentences of a split, with tags in BIO unless they are plain.

        Args:
          split: which.
          tally: counts what is amiss and can be lived with.

        Raises:
          UserError: a malformed row, a tag that the scheme does not have, or no sentence at all; in training also a tag
            that is not among the labels.
        """
        tally = Tally() if tally is None else tally
        sentences = self._read(split, tally)
        if not sentences:
            raise self.none_of(split)
        if split != "train":
            return sentences
        known = set(self.labels)
        for sentence in sentences:
            for number, tag in enumerate(sentence.tags):
                if known and tag not in known:
                    raise UserError(
                        f"{sentence.place(number)}: unknown tag {tag!r}; labels are {', '.join(self.labels)}"
                    )
        return some_of(sentences, self.max_examples, self.subset)

    def texts(self, split: Split) -> Iterator[str]:
        """The words of each sentence with spaces between, to train a tokenizer on."""
        return (" ".join(sentence.words) for sentence in self._read(split, Tally()))

    def _read(self, split: Split, tally: Tally) -> list[Sentence]:
        own = {"validation": self.validation_path, "test": self.test_path}
        path = own.get(split)
        # What has a file of its own takes nothing away from the rest.
        fractions = [0.0 if own[name] else getattr(self, name) for name in ("validation", "test")]
        found = []
        for file in resolve(path or self.path):
            for number, sentence in enumerate(self._read_file(file, tally)):
                if not sentence.words:
                    tally.add(EMPTY, f"{file}, sentence {number + 1}")
                elif path is not None or split_of(" ".join(sentence.words), *fractions) == split:
                    found.append(to_bio(sentence, self.scheme, tally))
        return found

    def _read_file(self, file: str, tally: Tally) -> Iterator[Sentence]:
        if not is_json(file):
            return read_columns(file, self.columns, self.words_field, self.tags_field)
        if self.spans_field is not None:
            return read_spans(file, self.words_field, self.spans_field, tally)
        return read_token_lists(file, self.words_field, self.tags_field, self.predicate_field, self.frames_field)

    # -- batches ------------------------------------------------------------------------------------------------------

    def make(self, request: DataRequest) -> Batches:
        """Batches of one split. Labelled sets are small: they are tokenised anew each time, and held in memory."""
        tally = Tally()
        sentences = self.examples(request.split, tally)
        return Batches(
            self._rows(sentences, request.tokenizer, tally), request.batch_size, request.seed, request.shuffle
        )

    def predict_batches(self, records: Sequence[dict[str, Any]], batch_size: int, tokenizer: Tokenizer) -> Batches:
        """Batches of new records, in order, without tags.

        Raises:
          UserError: a record has neither a text nor a list of words, or no such word as its predicate.
        """
        sentences, sources = [], []
        for number, record in enumerate(records, start=1):
            words, source = self._words(record[self.inputs[0]], number)
            predicate = None if self.predicate_field is None else record[self.predicate_field]
            if predicate is not None and not (type(predicate) is int and 0 <= predicate < len(words)):
                raise UserError(
                    f"record {number}: {self.predicate_field!r} is {predicate!r}, not the number of a word from 0 to"
                    f" {len(words) - 1}"
                )
            sentences.append(Sentence(words, (), RECORDS, (number,) * len(words), predicate))
            sources.append(source)
        rows = self._rows(sentences, tokenizer, Tally())
        rows.sources = sources
        return Batches(rows, batch_size, 0, shuffle=False)

    def _words(self, value: Any, number: int) -> tuple[tuple[str, ...], Source]:
        if isinstance(value, str):
            matches = list((_CHARACTER if self.characters else _WORD).finditer(value))
            return tuple(match[0] for match in matches), Source(value, tuple(match.span() for match in matches))
        if isinstance(value, list) and all(isinstance(word, str) for word in value):
            return tuple(value), Source(None, ())
        raise UserError(f"record {number}: {self.inputs[0]!r} must be a text or a list of words")

    def _rows(self, sentences: Sequence[Sentence], tokenizer: Tokenizer, tally: Tally) -> TaggedDataset:
        return TaggedDataset(
            sentences,
            self.labels,
            tokenizer,
            self.seq_len,
            stride=self.stride,
            packed=self.packed,
            documents=self.documents,
            capitals=self.capitals,
            tally=tally,
        )

    # -- answers ------------------------------------------------------------------------------------------------------

    def evaluate(self, split: Split, rows: Any, outputs: dict[str, np.ndarray]) -> EvalResult:
        """Precision, recall and F1 of entities, or for plain tags accuracy; a table and a confusion matrix."""
        del split
        return self.evaluate_tags(rows.sentences, rows.predicted(outputs["tags"], self.labels, self.other))

    def evaluate_tags(self, sentences: Sequence[Sentence], predicted: list[list[str]]) -> EvalResult:
        """As `judge`, of tags for each word of each sentence. That of a predicate itself is no role and not scored."""
        truth = [list(sentence.tags) for sentence in sentences]
        if self.scheme == "plain":
            return evaluate_words(self.labels, truth, predicted)
        return evaluate_entities(truth, predicted, ignored=() if self.predicate_field is None else ("V",))

    def describe(self, rows: Any, outputs: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
        """What `predict` prints for each record.

        Entities (of a predicate, its arguments) with their text and kind; start and end count characters of a text that
        was given, from 0, the end excluded, or words of a list. Plain tags come with their words. `words_cut` tells how
        many words did not fit and were not looked at.
        """
        tags_of = rows.predicted(outputs["tags"], self.labels, self.other)
        looked_at = np.zeros(len(rows.sentences), np.int64)
        for window in rows.windows:
            looked_at[window.sentence] = max(looked_at[window.sentence], window.last)
        for sentence, source, tags, seen in zip(rows.sentences, rows.sources, tags_of, looked_at, strict=True):
            cut = {"words_cut": int(len(sentence.words) - seen)} if seen < len(sentence.words) else {}
            if self.scheme == "plain":
                yield {"tagged": [[word, tag] for word, tag in zip(sentence.words, tags, strict=True)]} | cut
                continue
            found = [describe_entity(sentence, source, *entity) for entity in entities(tags)]
            if sentence.predicate is None:
                yield {"entities": found} | cut
            else:
                arguments = [item for item in found if item["label"] != "V"]
                yield {"verb": sentence.words[sentence.predicate], "arguments": arguments} | cut


def describe_entity(sentence: Sentence, source: Source, kind: str, first: int, last: int) -> dict[str, Any]:
    """An entity of the words first … last − 1, as `predict` prints it."""
    if source.text is None:
        return {"text": " ".join(sentence.words[first:last]), "label": kind, "start": first, "end": last}
    start, end = source.spans[first][0], source.spans[last - 1][1]
    return {"text": source.text[start:end], "label": kind, "start": start, "end": end}
