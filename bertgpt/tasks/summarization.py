"""Extractive summaries: the most important sentences of documents, scored by ROUGE."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from bertgpt.data.examples import SequenceDataset, Side
from bertgpt.data.loader import Batches
from bertgpt.data.packing import template_of
from bertgpt.data.sources.text import sentences, texts_of
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.ranges import Count
from bertgpt.tasks.generation import evaluate_summaries, rouge_words
from bertgpt.tasks.source import Loaded, TaskFiles, data_of, numbered, truncated, warnings_of
from bertgpt.types import DataConfig, DataRequest, DataWarning, EvalResult, HeldOut, JsonObject, Split, UserError


class Document(NamedTuple):
    """The sentences of a document, and reference summaries."""

    sentences: list[str]
    references: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class ExtractiveSummary(TaskFiles):
    """Documents with one or several summaries each, for SelectSentences: [CLS] sentence [SEP] [CLS] sentence [SEP] …

    All sentences have type 0. BertSum alternates types, but encoders pretrained on single texts know only type 0.
    """

    document_field: str = "document"
    """column that holds the document: a list of sentences in a .jsonl file, or text, which is split into sentences"""
    summary_field: str = "summary"
    """column that holds the summary; a list in a .jsonl file holds several, and the best match counts"""
    count: Count = 3
    """sentences in a summary"""
    packed: bool = False
    """pack several documents into a sequence where they fit, with the same loss; `batch_size` counts sequences"""

    def __post_init__(self):
        super().__post_init__()

    @property
    def inputs(self) -> tuple[str, ...]:
        """Fields of a record that is to be predicted."""
        return (self.document_field,)

    @property
    def key_fields(self) -> tuple[str, ...]:
        return (self.document_field,)

    def load(self, split: Split) -> Loaded:
        """The documents of a split.

        Raises:
          UserError: a missing column, an empty document or summary, or no document at all.
        """
        found = []
        for record in self.records(split):
            document = Document(
                self._sentences(texts_of(record, self.document_field)),
                tuple(self.plain(text) for text in texts_of(record, self.summary_field)),
            )
            for name, texts in ((self.document_field, document.sentences), (self.summary_field, document.references)):
                if not texts or not all(text.strip() for text in texts):
                    raise UserError(f"{record.file}:{record.line}: {name!r} is empty")
            found.append(document)
        return Loaded(self.selected(found, split))

    def _sentences(self, texts: Sequence[str]) -> list[str]:
        plain = [self.plain(text) for text in texts]
        return sentences(plain[0]) if len(plain) == 1 else [text for text in plain if text.strip()]

    def make(self, request: DataRequest) -> Batches:
        """Batches of one split, with the sentences of `oracle` as the correct ones."""
        documents = self.examples(request.split)
        chosen = [oracle(document, self.count) for document in documents]
        dataset = self._dataset(documents, chosen, request.tokenizer)
        return Batches(dataset, request.batch_size, request.seed, request.shuffle)

    def predict_batches(self, records: Sequence[JsonObject], batch_size: int, tokenizer: Tokenizer) -> Batches:
        """Batches of new documents, in order."""
        documents = [Document(self._sentences(texts_of(record, self.document_field))) for record in numbered(records)]
        for number, document in enumerate(documents, start=1):
            if not document.sentences:
                raise UserError(f"document {number} is empty")
        return Batches(self._dataset(documents, [[]] * len(documents), tokenizer), batch_size, 0, shuffle=False)

    def _dataset(
        self, documents: Sequence[Document], chosen: Sequence[Sequence[int]], tokenizer: Tokenizer
    ) -> SequenceDataset:
        template = template_of(tokenizer.vocab)
        ids = iter(tokenizer.encode([text for document in documents for text in document.sentences]))
        sequences, marks, unseen, cut = [], [], 0, 0
        for document, correct in zip(documents, chosen, strict=True):
            sequence: list[int] = []
            mark: list[int] = []
            every = [[*template.start, *next(ids), template.end] for _ in document.sentences]
            if len(every[0]) > self.seq_len:
                every[0], cut = [*every[0][: self.seq_len - 1], template.end], cut + 1
            for number, sentence in enumerate(every):
                if len(sequence) + len(sentence) > self.seq_len:
                    unseen += len(every) - number
                    break
                sequence += sentence
                mark += [1 + (number in correct), *[0] * (len(sentence) - 1)]
            sequences.append(sequence)
            marks.append(mark)
        total = sum(len(document.sentences) for document in documents)
        unmatched = sum(bool(d.references) and not len(some) for d, some in zip(documents, chosen, strict=True))
        beyond = f"of {total:,} sentences are beyond {self.seq_len} tokens and cannot be selected"
        silent = f"of {len(documents):,} documents have no sentence that matches their summary"
        warnings = warnings_of(
            truncated(cut, len(documents), "first sentences", self.seq_len),
            DataWarning("truncated", unseen, beyond),
            DataWarning("unlabelled", unmatched, silent),
        )
        return SequenceDataset(
            Side(sequences, self.seq_len, template.pad),
            mask=marks,
            vocab_size=tokenizer.vocab.size,
            packed=self.packed,
            warnings=warnings,
            examples=documents,
        )

    def _selected(self, dataset: SequenceDataset, outputs: dict[str, np.ndarray]) -> Iterator[dict[int, float]]:
        """For each document the sentences with the highest probability, in order: index → probability."""
        masks = dataset.by_example(dataset.tables["target_mask"])
        for mask, values in zip(masks, dataset.by_example(outputs["probabilities"]), strict=True):
            scores = values[mask > 0]
            best = np.argsort(-scores, kind="stable")[: self.count]
            yield {int(i): float(scores[i]) for i in sorted(best)}

    def evaluate(self, dataset: SequenceDataset, outputs: dict[str, np.ndarray]) -> EvalResult:
        """ROUGE of the selected sentences."""
        return evaluate_selection(dataset.examples, [list(chosen) for chosen in self._selected(dataset, outputs)])

    def describe(self, dataset: SequenceDataset, outputs: dict[str, np.ndarray]) -> Iterator[JsonObject]:
        """For each document the summary, and its sentences, numbered from 0."""
        for document, chosen in zip(dataset.examples, self._selected(dataset, outputs), strict=True):
            parts = [
                {"sentence": i, "probability": round(p, 4), "text": document.sentences[i]} for i, p in chosen.items()
            ]
            yield {"summary": " ".join(part["text"] for part in parts), "sentences": parts}


def evaluate_selection(documents: Sequence[Document], chosen: Sequence[Sequence[int]]) -> EvalResult:
    """ROUGE of summaries that consist of the sentences with these indices."""
    texts = [" ".join(d.sentences[i] for i in some) for d, some in zip(documents, chosen, strict=True)]
    return evaluate_summaries(texts, [document.references for document in documents])


def oracle(document: Document, count: int) -> list[int]:
    """Sentences that match the references, in order, selected greedily (Liu & Lapata 2019 §4.1).

    Each step adds the sentence that raises ROUGE-1 F1 + ROUGE-2 F1 most, until there are `count` or none raises it. The
    values are those of rouge-score; they are computed here so that each sentence is stemmed only once.
    """
    tokenize = rouge_words(document.references).tokenize
    words = [tokenize(text) for text in document.sentences]
    references = [tokenize(text) for text in document.references]
    chosen: list[int] = []
    reached = 0.0
    for _ in range(count):
        tried = {
            i: sum(best_f1([w for j in sorted([*chosen, i]) for w in words[j]], references, n) for n in (1, 2))
            for i in range(len(words))
            if i not in chosen
        }
        best = max(tried, key=tried.get, default=None)
        if best is None or tried[best] <= reached:
            break
        chosen, reached = sorted([*chosen, best]), tried[best]
    return chosen


def best_f1(words: Sequence[str], references: Sequence[Sequence[str]], n: int) -> float:
    """ROUGE-n F1 against the reference that matches best."""
    return max(f1(n_grams(words, n), n_grams(reference, n)) for reference in references)


def n_grams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    """How often each n-gram occurs."""
    return Counter(zip(*(words[i:] for i in range(n)), strict=False))


def f1(predicted: Counter, reference: Counter) -> float:
    """2 · common / (predicted + reference), of counts."""
    return 2.0 * (predicted & reference).total() / max(predicted.total() + reference.total(), 1)


# -- baselines --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Lead:
    """Selects the first sentences of each document, as many as a summary has."""

    name: str = "first sentences"
    """name in tables"""

    def fit(self, data: DataConfig, train: Batches) -> Callable[[HeldOut], EvalResult]:
        """Returns a function that scores ROUGE on held-out documents."""
        del data, train
        return lambda held_out: select(held_out, lambda document, count: range(min(count, len(document.sentences))))


@dataclasses.dataclass(frozen=True)
class Oracle:
    """Selects the sentences of `oracle`, which reads the references: hardly any selection does better."""

    name: str = "oracle"
    """name in tables"""

    def fit(self, data: DataConfig, train: Batches) -> Callable[[HeldOut], EvalResult]:
        """Returns a function that scores ROUGE on held-out documents."""
        del data, train
        return lambda held_out: select(held_out, oracle)


def select(held_out: HeldOut, choose: Callable[[Document, int], Sequence[int]]) -> EvalResult:
    """ROUGE of the sentences that `choose` selects from held-out documents, given the length of summaries."""
    task = data_of(held_out, ExtractiveSummary)
    documents = task.examples(held_out.split)
    return evaluate_selection(documents, [choose(document, task.count) for document in documents])
