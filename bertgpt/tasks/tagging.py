"""Sequence labelling: tagged words, and new texts or lists of words for `predict`.

Named entities, parts of speech, chunks, slots; and semantic roles, where each predicate of a sentence is an example.
"""

import dataclasses
import functools
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from bertgpt.data.loader import Batches
from bertgpt.data.offsets import extends
from bertgpt.data.sources.conll import (
    Scheme,
    Sentence,
    WarningCounter,
    entities,
    is_json,
    read_columns,
    read_spans,
    read_token_lists,
    to_bio,
)
from bertgpt.data.sources.text import CJK
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.ranges import Natural
from bertgpt.tasks.source import Loaded, TaskFiles, data_of, labels_as_in, parsed
from bertgpt.tasks.tag_dataset import Source, TaggedDataset
from bertgpt.tasks.tag_metrics import evaluate_entities, evaluate_words
from bertgpt.types import DataConfig, DataRequest, EvalResult, HeldOut, JsonObject, Labels, Split, UserError

RECORDS = "<records>"  # stands for the file name of records to predict
EMPTY = "sentences without words are skipped"
OVERLAPS = "spans overlap an earlier one and are skipped"
_CHARACTER = re.compile(r"\S")


@functools.cache
def _word() -> re.Pattern[str]:
    """A Chinese character, a number, a word or a mark. Combining signs and accents belong to the letter before them."""
    marks = "".join(filter(extends, map(chr, itertools.chain(range(0x300, 0x1F000), range(0xE0100, 0xE01F0)))))
    return re.compile(rf"[{CJK}]|\d+(?:[.,]\d+)+|(?:(?![{CJK}])[\w{marks}])+|[^\w\s]")


@dataclasses.dataclass(frozen=True)
class TokenTagging(TaskFiles):
    """Words with a tag each: lists of tokens or spans in .jsonl files, CoNLL-style columns in all others."""

    labels: tuple[str, ...] = ()
    """the tags; their order numbers them. (): those of the training split, O first"""
    words_field: str = "tokens"
    """.jsonl: field with the words, or with the text where there are spans; else name of the column with the words, if
    `columns` are named, or the first column"""
    tags_field: str = "tags"
    """.jsonl: field with the tags; else name of the column with the tags, if `columns` are named, or the last column"""
    spans_field: str | None = None
    """.jsonl: field with spans of characters, instead of tags (CLUENER)"""
    predicate_field: str | None = None
    """.jsonl: field with the index of the word that the tags are about (semantic roles)"""
    frames_field: str | None = None
    """.jsonl: field with a list of objects that have tags and predicate, each of which is an example"""
    scheme: Scheme = "bio"
    """how tags mark entities: bio, iob1, bioes (also BMES and BILOU), or plain: they mark none (parts of speech)"""
    characters: bool = False
    """split texts to predict into characters, as Chinese data sets are; else into words, punctuation, CJK characters"""
    stride: Natural = 0
    """read long sentences in windows that overlap by at most this many tokens; 0: truncate them"""
    packed: bool = False
    """pack several sentences into a sequence where they fit, with the same loss; `batch_size` counts sequences"""
    documents: bool = False
    """let neighbouring sentences of a document attend to each other, where files have -DOCSTART- lines (Devlin et al.
    2019 §5.3)"""
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
            raise UserError(
                f"TokenTagging: spans become BIO, so scheme={self.scheme!r} does not apply with spans_field"
            )
        for name, value in (("where", self.where), ("strip_html", self.strip_html)):
            if value:
                raise UserError(f"TokenTagging: {name} does not apply to tagged words")

    @property
    def key_fields(self) -> tuple[str, ...]:
        return (self.words_field,)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Fields of a record to predict: a text or a list of words, and the index of the predicate if there is one."""
        words = self.words_field if is_json(self.path) else "text"
        return (words,) if self.predicate_field is None else (words, self.predicate_field)

    @property
    def num_types(self) -> int:
        """Token types that mark words."""
        return 1 + (self.capitals or self.predicate_field is not None)

    @property
    def other(self) -> str:
        """The tag of words that are not predicted."""
        return "" if self.scheme == "plain" else "O"

    @property
    def label_set(self) -> Labels:
        """The tags."""
        return Labels(self.labels, kind="tag", constrained=self.scheme != "plain")

    # -- reading ------------------------------------------------------------------------------------------------------

    def infer(self, train: DataConfig | None = None) -> "TokenTagging":
        """Fills in the labels of the training split, or of `train`, the data that the model is trained on.

        Raises:
          UserError: there are fewer than two.
        """
        known = labels_as_in(self, train)
        if known.values:
            return dataclasses.replace(self, labels=known.values)
        found = {tag for sentence in self._sentences("train", WarningCounter()) for tag in sentence.tags}
        if not found:
            raise self.no_examples("train")
        if self.scheme == "plain":
            labels = tuple(sorted(found))
        else:
            kinds = sorted({tag[2:] for tag in found} - {""})
            # Both tags of each type, so that longer entities in another split have known tags.
            labels = ("O", *(f"{letter}-{kind}" for kind in kinds for letter in "BI"))
        if len(labels) < 2:
            raise UserError(f"{self.path}: every training word has the tag {labels[0]!r}; there is nothing to learn")
        return dataclasses.replace(self, labels=labels)

    def load(self, split: Split) -> Loaded:
        """The sentences of a split, with tags in BIO unless they are plain.

        Raises:
          UserError: a malformed line, a tag that the scheme does not have, or no sentence at all; in training also a
            tag that is not among the labels.
        """
        counter = WarningCounter()
        return Loaded(self._load(split, counter), counter.warnings)

    def _load(self, split: Split, counter: WarningCounter) -> list[Sentence]:
        sentences = self._sentences(split, counter)
        known = set(self.labels)
        for sentence in sentences if split == "train" and known else ():
            for number, tag in enumerate(sentence.tags):
                if tag not in known:
                    raise UserError(
                        f"{sentence.place(number)}: unknown tag {tag!r:.60}; labels are {', '.join(self.labels)}"
                    )
        return self.selected(sentences, split)

    def texts(self, split: Split = "train") -> Iterator[str]:
        """The words of each sentence, separated by spaces, to train a tokenizer on."""
        return (" ".join(sentence.words) for sentence in self._sentences(split, WarningCounter()))

    def read(self, path: str) -> Sequence[Sentence]:
        """The sentences of a path, with the tags of the file."""
        fields = self.words_field, self.tags_field, self.spans_field, self.predicate_field, self.frames_field
        return parsed(read_sentences, path, self.columns, *fields)

    def split_texts(self, record: Sentence) -> Sequence[str]:
        """The words of a sentence decide its split."""
        return (" ".join(record.words),)

    def _sentences(self, split: Split, counter: WarningCounter) -> list[Sentence]:
        found = []
        for sentence in self.records(split):
            if not sentence.words:
                counter.add("empty", EMPTY, sentence.file)
                continue
            counter.add("skipped", OVERLAPS, sentence.place(0), sentence.overlaps)
            found.append(to_bio(sentence, self.scheme, counter))
        return found

    # -- batches ------------------------------------------------------------------------------------------------------

    def make(self, request: DataRequest) -> Batches:
        """Batches of one split. Labelled sets are small: they are tokenised at each call and held in memory."""
        counter = WarningCounter()
        dataset = self._dataset(self._load(request.split, counter), request.tokenizer, counter)
        return Batches(dataset, request.batch_size, request.seed, request.shuffle)

    def predict_batches(self, records: Sequence[JsonObject], batch_size: int, tokenizer: Tokenizer) -> Batches:
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
                    f"record {number}: {self.predicate_field!r} is {predicate!r:.60}, not the index of a word from 0 to"
                    f" {len(words) - 1}"
                )
            sentences.append(Sentence(words, (), RECORDS, (number,) * len(words), predicate))
            sources.append(source)
        dataset = self._dataset(sentences, tokenizer, WarningCounter(), sources)
        return Batches(dataset, batch_size, 0, shuffle=False)

    def _words(self, value: object, number: int) -> tuple[tuple[str, ...], Source]:
        if isinstance(value, str):
            matches = list((_CHARACTER if self.characters else _word()).finditer(value))
            return tuple(match[0] for match in matches), Source(value, tuple(match.span() for match in matches))
        if isinstance(value, list) and all(isinstance(word, str) for word in value):
            return tuple(value), Source(None, ())
        raise UserError(f"record {number}: {self.inputs[0]!r} must be a text or a list of words")

    def _dataset(
        self,
        sentences: Sequence[Sentence],
        tokenizer: Tokenizer,
        counter: WarningCounter,
        sources: Sequence[Source] = (),
    ) -> TaggedDataset:
        return TaggedDataset(
            sentences,
            self.labels,
            tokenizer,
            self.seq_len,
            stride=self.stride,
            packed=self.packed,
            documents=self.documents,
            capitals=self.capitals,
            counter=counter,
            sources=sources,
        )

    # -- scores -------------------------------------------------------------------------------------------------------

    def evaluate(self, dataset: TaggedDataset, outputs: dict[str, np.ndarray]) -> EvalResult:
        """Precision, recall and F1 of entities, or for plain tags accuracy; a table and a confusion matrix."""
        return self.evaluate_tags(dataset.examples, dataset.predicted(outputs["tags"], self.labels, self.other))

    def evaluate_tags(self, sentences: Sequence[Sentence], predicted: list[list[str]]) -> EvalResult:
        """As `evaluate`, for the tag of each word of each sentence. A predicate's own tag is no role and not scored."""
        truth = [list(sentence.tags) for sentence in sentences]
        if self.scheme == "plain":
            return evaluate_words(self.labels, truth, predicted)
        return evaluate_entities(truth, predicted, ignored=() if self.predicate_field is None else ("V",))

    def describe(self, dataset: TaggedDataset, outputs: dict[str, np.ndarray]) -> Iterator[JsonObject]:
        """What `predict` prints for each record.

        Entities (of a predicate, its arguments) with their text and type; start and end count the characters of a given
        text, from 0, the end excluded, or the words of a list. Plain tags are printed with their words. `words_cut` is
        the number of words that did not fit and were not predicted.
        """
        tags_of = dataset.predicted(outputs["tags"], self.labels, self.other)
        read = np.zeros(len(dataset.examples), np.int64)
        for window in dataset.windows:
            read[window.sentence] = max(read[window.sentence], window.last)
        for sentence, source, tags, seen in zip(dataset.examples, dataset.sources, tags_of, read, strict=True):
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


def describe_entity(sentence: Sentence, source: Source, kind: str, first: int, last: int) -> JsonObject:
    """An entity that consists of the words first … last − 1, as `predict` prints it."""
    if source.text is None:
        return {"text": " ".join(sentence.words[first:last]), "label": kind, "start": first, "end": last}
    start, end = source.spans[first][0], source.spans[last - 1][1]
    return {"text": source.text[start:end], "label": kind, "start": start, "end": end}


def read_sentences(
    file: str,
    columns: Sequence[str],
    words: str,
    tags: str,
    spans: str | None,
    predicate: str | None,
    frames: str | None,
) -> Iterator[Sentence]:
    """The sentences of one file; arguments as the fields of `TokenTagging`."""
    if not is_json(file):
        return read_columns(file, columns, words, tags)
    if spans is not None:
        return read_spans(file, words, spans)
    return read_token_lists(file, words, tags, predicate, frames)


# -- baseline ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class MostFrequentTag:
    """Predicts each word's most frequent tag in training, and for unknown words the most frequent tag of all.

    A word that is the predicate counts as another word than the same word elsewhere.
    """

    name: str = "most frequent tag"
    """name in tables"""

    def fit(self, data: DataConfig, train: Batches) -> Callable[[HeldOut], EvalResult]:
        """Counts the training tags; returns a function with the metrics of the task on a held-out split."""
        if not isinstance(train.dataset, TaggedDataset):
            raise UserError(f"{self.name}: a baseline for tagged words, not for {type(data).__name__}")
        seen: dict[tuple[str, bool], Counter[str]] = defaultdict(Counter)
        for sentence in train.dataset.examples:
            for key, tag in zip(keys_of(sentence), sentence.tags, strict=True):
                seen[key][tag] += 1
        total: Counter[str] = sum(seen.values(), Counter())
        other = total.most_common(1)[0][0]
        best = {key: counts.most_common(1)[0][0] for key, counts in seen.items()}

        def predict(held_out: HeldOut) -> EvalResult:
            task = data_of(held_out, TokenTagging)
            sentences = task.examples(held_out.split)
            predicted = [[best.get(key, other) for key in keys_of(sentence)] for sentence in sentences]
            return task.evaluate_tags(sentences, predicted)

        return predict


def keys_of(sentence: Sentence) -> list[tuple[str, bool]]:
    """(word, whether it is the predicate) of each word."""
    return [(word, number == sentence.predicate) for number, word in enumerate(sentence.words)]
