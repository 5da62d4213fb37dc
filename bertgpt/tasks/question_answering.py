"""Extractive question answering: the answer to a question is a span of its context, or there is none.

SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016, 2018) in their own format, or records with one question each: question,
context, answer text and, where it is known, the character at which the answer starts.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Literal

import numpy as np

from bertgpt.data.loader import Batches
from bertgpt.data.sources.text import Record, field, sentences, text_of
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.ranges import Count, Range
from bertgpt.tasks.answers import best_threshold, score_answers
from bertgpt.tasks.source import Loaded, TaskFiles, data_of, numbered, parsed, require_text, warnings_of
from bertgpt.tasks.squad import Question, find_answer, read_questions, words_of
from bertgpt.tasks.windows import Answers, WindowDataset
from bertgpt.types import (
    Curve,
    DataConfig,
    DataRequest,
    DataWarning,
    EvalResult,
    HeldOut,
    JsonObject,
    Metric,
    Split,
    Table,
    UserError,
)


@dataclasses.dataclass(frozen=True)
class QuestionAnswering(TaskFiles):
    """Questions with contexts that may contain the answer. All questions of a context are in the same split."""

    seq_len: Annotated[int, Range(8)] = 384
    """tokens in a sequence: question, a window of the context, and special tokens"""
    stride: Count | None = 128
    """tokens from one window of a longer context to the next; None: only the beginning of each context is read"""
    max_question: Count = 64
    """most tokens of a question; longer ones are truncated"""
    question_field: str = "question"
    """column that holds the question; SQuAD's own format needs the default"""
    context_field: str = "context"
    """column that holds the text with the answer; SQuAD's own format needs the default"""
    answer_field: str = "answers"
    """column that holds the answer: a text, empty if there is none; or SQuAD's list of texts with their starts"""
    json_format: Literal["squad", "records"] | None = None
    """what .json files hold: the articles of SQuAD, or a list of records; None: SQuAD where the file is an object,
    records where it is a list"""
    start_field: str | None = None
    """column that holds the first character of the answer, from 0, where `answer_field` is a text; None: the answer is
    searched for"""
    null_threshold: Annotated[float, Range(-1e9)] | None = 0.0
    """“no answer” is predicted where its score exceeds that of the best answer by more than this; None: every question
    has an answer. Evaluations report which threshold would have been best on their split"""
    n_best: Count = 5
    """answers that predictions list"""

    def __post_init__(self):
        super().__post_init__()
        if self.strip_html:
            raise UserError("QuestionAnswering: strip_html=True would shift the answers; clean the file before")
        if self.seq_len < self.max_question + 8:
            raise UserError(
                f"QuestionAnswering: seq_len={self.seq_len} must exceed max_question={self.max_question} by at least 8"
            )

    @property
    def inputs(self) -> tuple[str, ...]:
        """Fields of a record that is to be answered."""
        return self.question_field, self.context_field

    @property
    def key_fields(self) -> tuple[str, ...]:
        return (self.context_field,)

    def read(self, path: str) -> Sequence[Record]:
        """Every question of a path."""
        return parsed(read_questions, path, self.columns, self.answer_field, self.json_format)

    def texts(self, split: Split = "train") -> Iterator[str]:
        """Questions, and every context once, to train a tokenizer on."""
        seen: set[str] = set()
        for record in self.records(split):
            context = text_of(record, self.context_field)
            if context not in seen:
                seen.add(context)
                yield context
            yield text_of(record, self.question_field)

    def load(self, split: Split) -> Loaded:
        """The questions of a split with their answers.

        Answers that do not occur in their context are counted; such questions are not trained on, but they are scored.
        Empty questions, and those with an empty context, are counted; they are skipped unless the split has a file of
        its own.

        Raises:
          UserError: a column is missing, a start is no number, or there is no question.
        """
        found: list[Question] = []
        moved = missing = empty = 0
        cut = self.own_file(split) is None
        for record in self.records(split):
            question, context = (text_of(record, name) for name in self.inputs)
            if not (question.strip() and context.strip()):
                empty += 1
                if cut:
                    continue
            texts, starts = self._answers(record)
            spans = [find_answer(context, text, start) for text, start in zip(texts, starts, strict=True)]
            span = next((span for span in spans if span is not None), None)
            missing += bool(texts) and span is None
            moved += any(
                here is not None and start not in (None, here.start) and not context.startswith(text, start)
                for text, here, start in zip(texts, spans, starts, strict=True)
            )
            found.append(Question(question, context, tuple(texts), span))
        if not found:
            raise self.no_examples(split)
        consequence = "not trained on" if split == "train" else "scored, but have no loss"
        lost = f"of {len(found):,} questions have answers that are not in their context: {consequence}"
        shifted = (
            f"of {len(found):,} answers do not start where the file says: the nearest occurrence is used, or the one at"
            " that byte"
        )
        warnings = warnings_of(
            DataWarning(
                "empty", empty, f"questions are {'skipped' if cut else 'scored'}: they or their contexts are empty"
            ),
            DataWarning("skipped", missing, lost),
            DataWarning("repaired", moved, shifted),
        )
        if split == "train":
            found = [item for item in found if item.span is not None or not item.answers]
            if not found:
                raise UserError(f"{self.path}: zero train examples: no answer is in its context")
        return Loaded(self.selected(found, split), warnings)

    def make(self, request: DataRequest) -> Batches:
        """Batches of windows. They are made at each call, and held in memory."""
        questions, warnings = self.load(request.split)
        dataset = self._dataset(questions, request.tokenizer, warnings)
        return Batches(dataset, request.batch_size, request.seed, request.shuffle)

    def predict_batches(self, records: Sequence[JsonObject], batch_size: int, tokenizer: Tokenizer) -> Batches:
        """Batches of windows of new questions, in order.

        Raises:
          UserError: a question or context is empty.
        """
        questions = [
            Question(require_text(record, self.question_field), require_text(record, self.context_field))
            for record in numbered(records)
        ]
        return Batches(self._dataset(questions, tokenizer), batch_size, 0, shuffle=False)

    def describe(self, dataset: WindowDataset, outputs: dict[str, np.ndarray]) -> Iterator[JsonObject]:
        """What `predict` prints for each question; start and end are characters of the context, null if none."""
        from scipy.special import softmax

        for item in dataset.answers(outputs, self.n_best):
            scores = [item.null_score, *(span.score for span in item.spans)]
            with_null = self.null_threshold is not None or not item.spans
            probabilities = softmax(scores if with_null else scores[1:])
            best = [
                {"answer": span.text, "start": span.start, "end": span.end, "score": round(span.score, 4)}
                | {"probability": round(float(p), 4)}
                for span, p in zip(item.spans, probabilities[with_null:], strict=True)
            ]
            none = {"answer": "", "start": None, "end": None, "score": round(item.null_score, 4)}
            none |= {"probability": round(float(probabilities[0]), 4)}
            predicted = none if self._is_none(item) else best[0]
            yield predicted | {"null_score": round(item.null_score, 4), "n_best": best}

    def evaluate(self, dataset: WindowDataset, outputs: dict[str, np.ndarray]) -> EvalResult:
        """Exact match and F1, also of questions with and without answers; and the best threshold for “no answer”.

        The curve shows the F1 at all thresholds.
        """
        found, questions = dataset.answers(outputs, 1), dataset.examples
        result = evaluate_answers(questions, ["" if self._is_none(item) else item.spans[0].text for item in found])
        unanswerable = np.array([not item.answers for item in questions])
        if self.null_threshold is None or not unanswerable.any():
            return result
        texts = [item.spans[0].text if item.spans else "" for item in found]
        surplus = np.array([item.null_score - item.spans[0].score if item.spans else np.inf for item in found])
        surplus = np.nan_to_num(surplus, posinf=np.max(surplus, where=np.isfinite(surplus), initial=0.0) + 1.0)
        scores = score_answers(texts, [item.answers for item in questions])
        threshold, best = best_threshold(surplus, scores.f1, unanswerable)
        order = np.argsort(surplus)
        # The first n questions by surplus are answered with their text, the others with “no answer”.
        with_text = np.concatenate([[0.0], np.cumsum(scores.f1[order])])
        without = np.concatenate([[0.0], np.cumsum(unanswerable[order])])
        total = (with_text + without[-1] - without) / len(order)
        curve = Curve("threshold", "fraction of questions answered", "F1", np.linspace(0.0, 1.0, len(total)), total)
        more = Metric("best_f1", best, True), Metric("best_null_threshold", threshold)
        return result._replace(metrics=result.metrics + more, figures=(curve,))

    def _dataset(
        self, questions: Sequence[Question], tokenizer: Tokenizer, warnings: tuple[DataWarning, ...] = ()
    ) -> WindowDataset:
        return WindowDataset(
            questions,
            tokenizer,
            seq_len=self.seq_len,
            stride=self.stride,
            max_question=self.max_question,
            warnings=warnings,
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
            texts, starts = [text_of(record, name)], [""]
        if self.start_field is not None and len(texts) == 1:
            starts = [record.fields.get(self.start_field) or ""] if not texts[0] else [field(record, self.start_field)]
        pairs = [(text, whole(record, start)) for text, start in zip(texts, starts, strict=True) if text.strip()]
        return [text for text, _ in pairs], [start for _, start in pairs]


def whole(record: Record, start: str) -> int | None:
    """The start of an answer as a number; None if it is not known."""
    if not start:
        return None
    if not re.fullmatch(r"[0-9]{1,15}(\.0)?", start):
        raise UserError(
            f"{record.file}:{record.line}: an answer starts at {start!r:.60}, which is not a position in a text"
        )
    return int(start.removesuffix(".0"))


def evaluate_answers(questions: Sequence[Question], answers: Sequence[str]) -> EvalResult:
    """Exact match and F1 of answers, "" for none, over all questions, and a table of the two kinds of questions."""
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


# -- baselines --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class NoAnswer:
    """Always predicts “no answer”: what a model must beat where questions may be unanswerable."""

    name: str = "no answer"
    """name in tables"""

    def fit(self, data: DataConfig, train: Batches) -> Callable[[HeldOut], EvalResult]:
        """Returns a function that scores exact match and F1 on held-out questions."""
        del data, train
        return lambda held_out: score_texts(held_out, lambda item: "")


@dataclasses.dataclass(frozen=True)
class OverlapSentence:
    """Predicts the sentence of the context that shares most words with the question, the first of several."""

    name: str = "sentence with most words of the question"
    """name in tables"""

    def fit(self, data: DataConfig, train: Batches) -> Callable[[HeldOut], EvalResult]:
        """Returns a function that scores exact match and F1 on held-out questions."""
        del data, train
        return lambda held_out: score_texts(held_out, closest_sentence)


def score_texts(held_out: HeldOut, answer: Callable[[Question], str]) -> EvalResult:
    """Exact match and F1 of `answer` on held-out questions."""
    questions = data_of(held_out, QuestionAnswering).examples(held_out.split)
    return evaluate_answers(questions, [answer(item) for item in questions])


def closest_sentence(item: Question) -> str:
    """The sentence of the context that shares most words with the question."""
    wanted = words_of(item.question)
    return max(sentences(item.context), key=lambda sentence: len(wanted & words_of(sentence)), default="")
