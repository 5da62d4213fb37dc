"""Rows of questions with windows of their contexts, and answers decoded from what a model says of each window."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from bertgpt.data.offsets import Located, locate_tokens
from bertgpt.data.packing import Batch, template_of
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.tasks.source import noted
from bertgpt.tasks.squad import Span

IGNORE = -1
NONE = -1e29  # scores below it mean: there is no such span


class Question(NamedTuple):
    """A question about a text."""

    question: str
    context: str
    answers: tuple[str, ...] = ()
    """correct answers, each as good as the others; none if the context does not answer the question"""
    span: Span | None = None
    """where the context has one of them"""


class Found(NamedTuple):
    """A piece of the context that may answer a question, and its score: logit of its start + logit of its end."""

    text: str
    start: int
    end: int
    score: float


class Answers(NamedTuple):
    """What a model says of one question."""

    spans: list[Found]
    """best first"""
    null_score: float
    """the score of “no answer”, the lowest of all windows: one window that has the answer is enough"""


class WindowDataset:
    """[CLS] question [SEP] window of the context [SEP], windows of a context `stride` tokens apart.

    Each row also has, as [B], what `objectives.question_answering.ExtractSpan` documents: where the answer is, where
    the context is, and where the tokens are that have no wider context in any other window (the rule of maximal
    context, google-research/bert, but for its bonus for longer windows): the smaller of their distances to the
    window's edges is the largest, then the window's number the smallest.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        tokenizer: Tokenizer,
        *,
        seq_len: int,
        stride: int | None,
        max_question: int,
    ):
        """`stride` None: the beginning of each context alone. Questions are cut to `max_question` tokens."""
        template, between = template_of(tokenizer.vocab), tokenizer.separator
        asked = tokenizer.encode([item.question for item in questions])
        contexts = list(dict.fromkeys(item.context for item in questions))
        located = dict(zip(contexts, locate_tokens(tokenizer, contexts), strict=True))
        self.questions = list(questions)
        rows, values = [], []
        beyond = lost = 0
        for number, (item, ids) in enumerate(zip(questions, asked, strict=True)):
            head, text = [*template.start, *ids[:max_question], *between], located[item.context]
            windows = windows_of(item, text, len(head), seq_len - len(head) - 1, stride)
            rows += [[*head, *text.ids[first:stop], template.end] for first, stop, _ in windows]
            values += [(number, len(head) - first, *places) for first, _, places in windows]
            beyond += windows[-1][1] < len(text.ids)
            lost += item.span is not None and not any(start for _, _, (start, *_) in windows)
        columns = np.array(values, np.int32).reshape(-1, 8).T
        self.owner, self.shift = columns[:2]
        names = ("start", "end", "context_start", "context_end", "central_start", "central_end")
        self.extra = dict(zip(names, columns[2:], strict=True))
        self.bounds = [located[item.context].bounds for item in questions]
        self.table = np.full((len(rows), seq_len), template.pad, np.int32)
        for row, out in zip(rows, self.table, strict=True):
            out[: len(row)] = row
        self.lengths = np.array([len(row) for row in rows], np.int32)
        self.padding = 1.0 - float(self.lengths.sum()) / max(self.table.size, 1)
        cut = sum(len(ids) > max_question for ids in asked)
        self.notes = noted(
            (cut, f"of {len(asked):,} questions are cut to {max_question} tokens"),
            (beyond, f"of {len(asked):,} contexts are cut to {seq_len} tokens, question included, for stride is off"),
            (lost, "answers are in no window as a whole"),
            (len(rows) - len(questions), f"windows more than there are questions ({len(asked):,})"),
        )

    def __len__(self) -> int:
        return len(self.table)

    def gather(self, rows: Int[np.ndarray, " B"]) -> Batch:
        place = np.arange(self.table.shape[1], dtype=np.int32)
        real = place < self.lengths[rows, None]
        second = real & (place >= self.extra["context_start"][rows, None])
        encoded = {"input_ids": self.table[rows], "segment_ids": real.astype(np.int32), "positions": place * real}
        return encoded | {"type_ids": second.astype(np.int32)} | {k: value[rows] for k, value in self.extra.items()}

    def answers(self, outputs: dict[str, np.ndarray], count: int) -> list[Answers]:
        """For each question, the `count` best spans over its windows. Outputs are those of `ExtractSpan.predict`."""
        found: list[dict[Span, float]] = [{} for _ in self.questions]
        null = np.full(len(self.questions), np.inf)
        np.minimum.at(null, self.owner, outputs["null_score"])
        for row, number in enumerate(self.owner):
            bounds = self.bounds[number]
            for first, last, score in zip(
                outputs["span_start"][row], outputs["span_end"][row], outputs["span_score"][row], strict=True
            ):
                if score < NONE:
                    break
                span = Span(int(bounds[first - self.shift[row], 0]), int(bounds[last - self.shift[row], 1]))
                # Tokens without characters of their own make spans of no text, or two of the same.
                if span.start < span.end and score > found[number].get(span, -np.inf):
                    found[number][span] = float(score)
        return [
            Answers(
                [
                    Found(item.context[span.start : span.end], *span, score)
                    for span, score in sorted(some.items(), key=lambda pair: -pair[1])[:count]
                ],
                float(lowest),
            )
            for item, some, lowest in zip(self.questions, found, null, strict=True)
        ]


def window_starts(length: int, room: int, stride: int | None) -> list[int]:
    """First tokens of the windows of `room` tokens over `length`; the last one is the first that reaches the end."""
    if stride is None or length <= room:
        return [0]
    step = min(stride, room)  # windows with gaps between them would lose text
    return list(range(0, length - room + step, step))


def central(starts: Sequence[int], room: int, length: int) -> list[tuple[int, int]]:
    """Which tokens [from, to) each window sees in the widest context."""
    ends = [min(start + room, length) for start in starts]
    edges = [0]
    for start, end in zip(starts[1:], ends[:-1], strict=True):
        # Of two windows that overlap, the earlier one sees token t as widely if end − 1 − t ≥ t − start. The outer
        # edges do not matter: they are further away.
        edges.append(min(max((start + end - 1) // 2 + 1, start), end))
    return list(zip(edges, [*edges[1:], ends[-1]], strict=True))


def windows_of(
    item: Question, text: Located, head: int, room: int, stride: int | None
) -> list[tuple[int, int, tuple[int, ...]]]:
    """(first token of the context, the one after the last, places of answer, context and central tokens) of each."""
    target, starts, windows = tokens_of(text, item.span), window_starts(len(text.ids), room, stride), []
    for first, (own, until) in zip(starts, central(starts, room, len(text.ids)), strict=True):
        stop, shift = min(first + room, len(text.ids)), head - first  # from a token of the context to its place
        answer = answer_places(item, target, first, stop, shift)
        windows.append((first, stop, (*answer, head, stop + shift, own + shift, until + shift)))
    return windows


def tokens_of(text: Located, span: Span | None) -> range | None:
    """The tokens that share characters with a span; None if there is no span, or no such token."""
    if span is None:
        return None
    start, end = text.bounds.T
    hit = np.flatnonzero((end > span.start) & (start < span.end) & (start < end))
    return range(int(hit[0]), int(hit[-1]) + 1) if len(hit) else None


def answer_places(item: Question, target: range | None, first: int, stop: int, shift: int) -> tuple[int, int]:
    """Places in the row of the answer's first and last token: 0 where the window does not have it, −1 where unknown."""
    if item.answers and target is None:
        return IGNORE, IGNORE
    if target is None or target.start < first or target.stop > stop:
        return 0, 0
    return target.start + shift, target.stop - 1 + shift


def probabilities(scores: Sequence[float]) -> Float[np.ndarray, " N"]:
    """Softmax, of numbers that may be infinite."""
    shifted: Any = np.exp(np.asarray(scores) - max(scores))
    return shifted / shifted.sum()
