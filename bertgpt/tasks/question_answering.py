"""Extractive question answering: the answer to a question is a piece of its context, or there is none.

SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016, 2018) as they come, or .jsonl files and tables with one question in each row:
question, context, answer text and, where it is known, the character at which the answer starts.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bertgpt.data.loader import Batches
from bertgpt.data.sources.text import Record, Split, clean, field, sentences
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.tasks.answers import best_threshold, score_answers
from bertgpt.tasks.source import TaskFiles, noted, some_of
from bertgpt.tasks.squad import find_answer, read_questions
from bertgpt.tasks.windows import Answers, Question, WindowDataset, probabilities
from bertgpt.types import Curve, DataRequest, EvalResult, Metric, Table, UserError


@dataclasses.dataclass(frozen=True)
class QuestionAnswering(TaskFiles):
    """Questions, each with a text that may hold the answer. The text decides the split: its questions stay together."""

    seq_len: int = 384
    """tokens in a row: question, a window of the context, and special tokens"""
    stride: int | None = 128
    """tokens from one window of a longer context to the next; None: the beginning of each context alone"""
    max_question: int = 64
    """tokens of a question at most"""
    question_field: str = "question"
    """column that holds the question; in SQuAD's JSON as here by default"""
    context_field: str = "context"
    """column that holds the text with the answer"""
    answer_field: str = "answers"
    """column that holds the answer: a text, empty if there is none; or SQuAD's list of texts with their starts"""
    start_field: str | None = None
    """column that holds the first character of the answer, from 0, where `answer_field` is a text; None: it is searched
    for"""
    null_threshold: float | None = 0.0
    """the answer is that there is none where the score of “no answer” exceeds that of the best answer by more than
    this; None: every question has an answer. Evaluations say which number would have been best on their split"""
    n_best: int = 5
    """answers that predictions list"""

    def __post_init__(self):
        super().__post_init__()
        if self.strip_html:
            raise UserError("QuestionAnswering: strip_html=True would move the answers; clean the file before")
        if self.max_question < 1 or self.seq_len < self.max_question + 8:
            raise UserError(
                f"QuestionAnswering: seq_len={self.seq_len} must exceed max_question={self.max_question} by at least 8"
            )
        if self.stride is not None and self.stride < 1:
            raise UserError(f"QuestionAnswering: stride={self.stride} must be at least 1")
        if self.n_best < 1:
            raise UserError(f"QuestionAnswering: n_best={self.n_best} must be at least 1")

    @property
    def inputs(self) -> tuple[str, ...]:
        """Fields of a record that is to be answered."""
        return self.question_field, self.context_field

    @property
    def key_fields(self) -> tuple[str, ...]:
        return (self.context_field,)

    def read(self, path: str) -> Iterator[Record]:
        """Every question of a path."""
        return read_questions(path, self.columns, self.answer_field)

    def texts(self, split: Split) -> Iterator[str]:
        """Questions, and every context once, to train a tokenizer on."""
        seen: set[str] = set()
        for record in self.records(split):
            context = field(record, self.context_field)
            if context not in seen:
                seen.add(context)
                yield context
            yield field(record, self.question_field)

    def questions(self, split: Split) -> tuple[list[Question], tuple[str, ...]]:
        """The questions of a split with their answers, and notes of what is wrong with some.

        Answers that their context does not have are counted; such questions are not trained on, but they are scored.
        Empty questions, and those with an empty context, are counted and left out.

        Raises:
          UserError: a column is missing, a start is no number, or there is no question.
        """
        found: list[Question] = []
        moved = missing = empty = 0
        for record in self.records(split):
            question, context = (field(record, name) for name in self.inputs)
            if not (question.strip() and context.strip()):
                empty += 1
                continue
            texts, starts = self._answers(record)
            spans = [find_answer(context, text, start) for text, start in zip(texts, starts, strict=True)]
            span = next((span for span in spans if span is not None), None)
            missing += bool(texts) and span is None
            moved += any(
                here is not None and start not in (None, here.start) for here, start in zip(spans, starts, strict=True)
            )
            found.append(Question(clean(question, False), context, tuple(texts), span))
        if not found:
            raise self.none_of(split)
        train = split == "train"
        fate = "not trained on" if train else "scored, but have no loss"
        notes = noted(
            (empty, "questions are left out, for they or their contexts are empty"),
            (missing, f"of {len(found):,} questions have answers that are not in their context: {fate}"),
            (moved, f"of {len(found):,} answers are not where they are said to start: the nearest place is taken"),
        )
        if train:
            found = [item for item in found if item.span is not None or not item.answers]
            if not found:
                raise UserError(f"{self.path}: zero train examples: no answer is in its context")
        return some_of(found, self.max_examples if train else None, self.subset), notes

    def make(self, request: DataRequest) -> Batches:
        """Batches of windows. They are made anew each time, and held in memory."""
        questions, notes = self.questions(request.split)
        rows = self._rows(questions, request.tokenizer)
        rows.notes = (*notes, *rows.notes)
        return Batches(rows, request.batch_size, request.seed, request.shuffle)

    def predict_batches(self, records: Sequence[dict[str, Any]], batch_size: int, tokenizer: Tokenizer) -> Batches:
        """Batches of windows of new questions, in order.

        Raises:
          UserError: a question or context is empty.
        """
        named = [Record(record, "record", number) for number, record in enumerate(records, start=1)]
        questions = [
            Question(clean(filled(record, self.question_field), False), filled(record, self.context_field))
            for record in named
        ]
        return Batches(self._rows(questions, tokenizer), batch_size, 0, shuffle=False)

    def describe(self, rows: WindowDataset, outputs: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
        """What `predict` prints for each question; start and end are characters of the context, null if none."""
        for item in rows.answers(outputs, self.n_best):
            scores = [item.null_score, *(span.score for span in item.spans)]
            chances = probabilities(scores if self.null_threshold is not None or not item.spans else scores[1:])
            best = [
                {"answer": span.text, "start": span.start, "end": span.end, "score": round(span.score, 4)}
                | {"probability": round(float(chance), 4)}
                for span, chance in zip(item.spans, chances[len(chances) - len(item.spans) :], strict=True)
            ]
            none = {"answer": "", "start": None, "end": None, "score": round(item.null_score, 4)}
            none |= {"probability": round(float(chances[0]), 4)}
            picked = none if self._is_none(item) else best[0]
            yield picked | {"null_score": round(item.null_score, 4), "n_best": best}

    def evaluate(self, split: Split, rows: WindowDataset, outputs: dict[str, np.ndarray]) -> EvalResult:
        """Exact match and F1, of questions with and without answers too; and the best threshold for “no answer”.

        The curve is what F1 would be at other thresholds.
        """
        del split
        found = rows.answers(outputs, 1)
        answers = ["" if self._is_none(item) else item.spans[0].text for item in found]
        result = evaluate_answers(rows.questions, answers)
        unanswerable = np.array([not item.answers for item in rows.questions])
        if self.null_threshold is None or not unanswerable.any():
            return result
        texts = [item.spans[0].text if item.spans else "" for item in found]
        surplus = np.array([item.null_score - item.spans[0].score if item.spans else np.inf for item in found])
        surplus = np.nan_to_num(surplus, posinf=np.max(surplus, where=np.isfinite(surplus), initial=0.0) + 1.0)
        scores = score_answers(texts, [item.answers for item in rows.questions])
        threshold, best = best_threshold(surplus, scores.f1, unanswerable)
        order = np.argsort(surplus)
        # Of the first n by surplus the text counts, of the others “no answer”.
        with_text = np.concatenate([[0.0], np.cumsum(scores.f1[order])])
        without = np.concatenate([[0.0], np.cumsum(unanswerable[order])])
        total = (with_text + without[-1] - without) / len(order)
        curve = Curve("threshold", "share of questions answered", "F1", np.linspace(0.0, 1.0, len(total)), total)
        more = (Metric("best_f1", best, True), Metric("best_null_threshold", threshold))
        return result._replace(metrics=result.metrics + more, figures=(curve,))

    def _rows(self, questions: Sequence[Question], tokenizer: Tokenizer) -> WindowDataset:
        return WindowDataset(
            questions, tokenizer, seq_len=self.seq_len, stride=self.stride, max_question=self.max_question
        )

    def _is_none(self, item: Answers) -> bool:
        if not item.spans or self.null_threshold is None:
            return not item.spans
        return item.null_score - item.spans[0].score > self.null_threshold

    def _answers(self, record: Record) -> tuple[list[str], list[int | None]]:
        """Texts of the correct answers, and where each is said to start."""
        name = self.answer_field
        if name in record.lists:
            texts, starts = record.lists[name], record.lists[f"{name}.start"]
        else:
            texts, starts = [field(record, name)], [""]
        if self.start_field is not None and len(texts) == 1:
            starts = [record.fields.get(self.start_field) or ""] if not texts[0] else [field(record, self.start_field)]
        pairs = [(text, whole(record, start)) for text, start in zip(texts, starts, strict=True) if text.strip()]
        return [text for text, _ in pairs], [start for _, start in pairs]


def filled(record: Record, name: str) -> str:
    """A field that may not be empty.

    Raises:
      UserError: it is, or it is not there.
    """
    value = field(record, name)
    if not isinstance(value, str) or not value.strip():
        what = "empty" if isinstance(value, str) else "not a text"
        raise UserError(f"{record.file}:{record.line}: {name!r} is {what}")
    return value


def whole(record: Record, start: str) -> int | None:
    """The start of an answer as a number; None if it is not known."""
    if not start:
        return None
    if not re.fullmatch(r"\d+(\.0)?", start):
        raise UserError(f"{record.file}:{record.line}: an answer starts at {start!r}, which is no place in a text")
    return int(float(start))


def evaluate_answers(questions: Sequence[Question], answers: Sequence[str]) -> EvalResult:
    """Exact match and F1 of answers, "" for none, over all questions, and a table that tells the two kinds apart."""
    scores = score_answers(answers, [item.answers for item in questions])
    has_answer = np.array([bool(item.answers) for item in questions])
    kinds = (("all", has_answer | True), ("with an answer", has_answer), ("without an answer", ~has_answer))

    def mean(values: np.ndarray, kind: np.ndarray) -> float:
        return float(np.mean(values[kind]))

    rows = [
        [name, f"{mean(scores.exact, kind):.3f}", f"{mean(scores.f1, kind):.3f}", f"{int(kind.sum()):,}"]
        for name, kind in kinds
        if kind.any()
    ]
    metrics = Metric("exact_match", float(np.mean(scores.exact)), True), Metric("f1", float(np.mean(scores.f1)), True)
    return EvalResult(metrics, (Table("answers", ("questions", "exact match", "F1", "count"), rows),))


@dataclasses.dataclass(frozen=True)
class NoAnswer:
    """Always “the context does not answer this”: what a model must beat where questions may be unanswerable."""

    name: str = "no answer"
    """name in tables"""

    def score(self, data: Any, train: Any, split: Split, prepared: Any) -> dict[str, float]:
        """Exact match and F1 on a split."""
        del train, prepared
        questions, _ = data.questions(split)
        return evaluate_answers(questions, [""] * len(questions)).values


@dataclasses.dataclass(frozen=True)
class OverlapSentence:
    """The sentence of the context that shares most words with the question, the first of several."""

    name: str = "sentence with most words of the question"
    """name in tables"""

    def score(self, data: Any, train: Any, split: Split, prepared: Any) -> dict[str, float]:
        """Exact match and F1 on a split."""
        del train, prepared
        questions, _ = data.questions(split)
        return evaluate_answers(questions, [closest_sentence(item) for item in questions]).values


def closest_sentence(item: Question) -> str:
    """The sentence of the context that shares most words with the question."""
    wanted = words_of(item.question)
    return max(sentences(item.context), key=lambda sentence: len(wanted & words_of(sentence)))


def words_of(text: str) -> set[str]:
    """The words of a text, whatever their case."""
    return set(re.findall(r"\w+", text.lower()))
