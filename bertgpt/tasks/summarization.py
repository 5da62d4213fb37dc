"""Extractive summaries: documents of sentences, of which some are to be chosen, judged by ROUGE."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from bertgpt.data.loader import Batches
from bertgpt.data.packing import template_of
from bertgpt.data.sequences import SequenceDataset, Side
from bertgpt.data.sources.text import Split, clean, record_of, sentences, texts_of
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.objectives.core import Targets
from bertgpt.tasks.generation import evaluate_summaries, rouge_words
from bertgpt.tasks.source import TaskFiles, cut_note, some_of
from bertgpt.types import DataRequest, EvalResult, UserError


class Document(NamedTuple):
    """Sentences, and summaries that others wrote of them."""

    sentences: list[str]
    references: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class ExtractiveSummary(TaskFiles):
    """Documents with one or several summaries each, for SelectSentences: [CLS] sentence [SEP] [CLS] sentence [SEP] …

    All segments have type 0, which BertSum alternates: encoders that learnt from single texts know no other.
    """

    document_field: str = "document"
    """column that holds the document: a list of sentences in a .jsonl file, or text, which is cut into sentences"""
    summary_field: str = "summary"
    """column that holds the summary; a list in a .jsonl file holds several, and the best of them counts"""
    count: int = 3
    """sentences in a summary"""
    packed: bool = False
    """several documents in a row where they fit, with the same loss; `batch_size` counts rows"""

    def __post_init__(self):
        super().__post_init__()
        if self.count < 1:
            raise UserError(f"ExtractiveSummary: count={self.count} must be at least 1")

    @property
    def inputs(self) -> tuple[str, ...]:
        """Fields of a record that is to be predicted."""
        return (self.document_field,)

    @property
    def key_fields(self) -> tuple[str, ...]:
        return (self.document_field,)

    def examples(self, split: Split) -> list[Document]:
        """The documents of a split.

        Raises:
          UserError: a missing column, an empty document or summary, or no document at all.
        """
        found = []
        for record in self.records(split):
            document = Document(
                self._sentences(texts_of(record, self.document_field)),
                tuple(clean(text, self.strip_html) for text in texts_of(record, self.summary_field)),
            )
            for name, texts in ((self.document_field, document.sentences), (self.summary_field, document.references)):
                if not texts or "" in texts:
                    raise UserError(f"{record.file}:{record.line}: {name!r} is empty")
            found.append(document)
        if not found:
            raise self.none_of(split)
        return some_of(found, self.max_examples, self.subset) if split == "train" else found

    def _sentences(self, texts: Sequence[str]) -> list[str]:
        cleaned = [clean(text, self.strip_html) for text in texts]
        return sentences(cleaned[0]) if len(cleaned) == 1 else [text for text in cleaned if text]

    def make(self, request: DataRequest) -> Batches:
        """Batches of one split, with the sentences of `oracle` as the right ones."""
        documents = self.examples(request.split)
        chosen = [oracle(document, self.count) for document in documents]
        return Batches(
            self._rows(documents, chosen, request.tokenizer), request.batch_size, request.seed, request.shuffle
        )

    def predict_batches(self, records: Sequence[dict[str, Any]], batch_size: int, tokenizer: Tokenizer) -> Batches:
        """Batches of new documents, in order."""
        named = [record_of(record, "record", number) for number, record in enumerate(records, start=1)]
        documents = [Document(self._sentences(texts_of(record, self.document_field))) for record in named]
        for number, document in enumerate(documents, start=1):
            if not document.sentences:
                raise UserError(f"document {number} is empty")
        rows = self._rows(documents, [[]] * len(documents), tokenizer)
        return Batches(rows, batch_size, 0, shuffle=False)

    def _rows(
        self, documents: Sequence[Document], chosen: Sequence[Sequence[int]], tokenizer: Tokenizer
    ) -> SequenceDataset:
        template = template_of(tokenizer.vocab)
        ids = iter(tokenizer.encode([text for document in documents for text in document.sentences]))
        sequences, marks, unseen, cut = [], [], 0, 0
        for document, right in zip(documents, chosen, strict=True):
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
                mark += [1 + (number in right), *[0] * (len(sentence) - 1)]
            sequences.append(sequence)
            marks.append(mark)
        total = sum(len(document.sentences) for document in documents)
        notes = cut_note(cut, len(documents), "first sentences", self.seq_len)
        if unseen:
            notes += (f"{unseen:,} of {total:,} sentences lie beyond {self.seq_len} tokens and cannot be chosen",)
        if none := sum(bool(d.references) and not len(some) for d, some in zip(documents, chosen, strict=True)):
            notes += (f"{none:,} of {len(documents):,} documents have no sentence that agrees with their summary",)
        return SequenceDataset(
            Side(sequences, self.seq_len, template.pad),
            mask=marks,
            vocab_size=tokenizer.vocab.size,
            packed=self.packed,
            notes=notes,
            examples=documents,
        )

    def _chosen(self, rows: SequenceDataset, outputs: dict[str, np.ndarray]) -> Iterator[dict[int, float]]:
        """Of each document, the sentences with the highest probability, in their order."""
        marks = rows.by_example(rows.tables["target_mask"])
        for mark, values in zip(marks, rows.by_example(outputs["probabilities"]), strict=True):
            scores = values[mark > 0]
            best = np.argsort(-scores, kind="stable")[: self.count]
            yield {int(i): float(scores[i]) for i in sorted(best)}

    def evaluate(self, split: Split, rows: SequenceDataset, outputs: dict[str, np.ndarray]) -> EvalResult:
        """ROUGE of the chosen sentences."""
        del split
        return evaluate_choice(rows.examples, [list(chosen) for chosen in self._chosen(rows, outputs)])

    def describe(self, rows: SequenceDataset, outputs: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
        """For each document the summary, and the sentences it is made of, numbered from 0."""
        for document, chosen in zip(rows.examples, self._chosen(rows, outputs), strict=True):
            parts = [
                {"sentence": i, "probability": round(p, 4), "text": document.sentences[i]} for i, p in chosen.items()
            ]
            yield {"summary": " ".join(part["text"] for part in parts), "sentences": parts}


def evaluate_choice(documents: Sequence[Document], chosen: Sequence[Sequence[int]]) -> EvalResult:
    """ROUGE of summaries made of the sentences with these numbers."""
    texts = [" ".join(d.sentences[i] for i in some) for d, some in zip(documents, chosen, strict=True)]
    return evaluate_summaries(texts, [document.references for document in documents])


def oracle(document: Document, count: int) -> list[int]:
    """Sentences that agree with the references, in their order, chosen greedily (Liu & Lapata 2019 §4.1).

    Each time the sentence that raises ROUGE-1 F1 + ROUGE-2 F1 most is added, until there are `count` or none raises it.
    The measures are those of `rouge`; they are counted here so that each sentence is stemmed but once.
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
    """ROUGE-n F1 against the reference that agrees best."""
    return max(f1(n_grams(words, n), n_grams(reference, n)) for reference in references)


def n_grams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[i:] for i in range(n)), strict=False))


def f1(ours: Counter, theirs: Counter) -> float:
    """2 · common / (ours + theirs), of counts."""
    return 2.0 * (ours & theirs).total() / max(ours.total() + theirs.total(), 1)


Prepared = Callable[[], Iterator[Targets]]


@dataclasses.dataclass(frozen=True)
class Lead:
    """The first sentences of each document, as many as a summary has."""

    name: str = "first sentences"
    """name in tables"""

    def score(self, data: Any, train: Any, split: Split, prepared: Prepared) -> dict[str, float]:
        """ROUGE on a split."""
        del train, prepared
        documents = data.examples(split)
        chosen = [range(min(data.count, len(document.sentences))) for document in documents]
        return evaluate_choice(documents, chosen).values


@dataclasses.dataclass(frozen=True)
class Oracle:
    """The sentences that `oracle` chooses, which knows the references: no choice of sentences does much better."""

    name: str = "oracle"
    """name in tables"""

    def score(self, data: Any, train: Any, split: Split, prepared: Prepared) -> dict[str, float]:
        """ROUGE on a split."""
        del train, prepared
        documents = data.examples(split)
        return evaluate_choice(documents, [oracle(document, data.count) for document in documents]).values
