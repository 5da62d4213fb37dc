"""Questions with windows of their contexts as token sequences, and answers decoded from the scores of each window."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from bertgpt.data.offsets import Located, locate_tokens
from bertgpt.data.packing import template_of
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.tasks.source import truncated, warnings_of
from bertgpt.tasks.squad import Question, Span
from bertgpt.types import TEXT_SPEC, Batch, BatchSpec, DataWarning, Field

IGNORE = -1
NO_SPAN = -1e29  # scores below it mean that there is no such span
SPAN_FIELDS = ("start", "end", "context_start", "context_end", "central_start", "central_end")


class Found(NamedTuple):
    """A span of the context that may answer a question, and its score: logit of its start + logit of its end."""

    text: str
    start: int
    end: int
    score: float


class Answers(NamedTuple):
    """The scored answers to one question."""

    spans: list[Found]
    """best first"""
    null_score: float
    """the score of “no answer”, the lowest of all windows: one window that contains the answer is enough"""


class WindowDataset:
    """[CLS] question [SEP] window of the context [SEP], windows of a context `stride` tokens apart.

    Each sequence also has, as [batch], the fields that `objectives.qa.ExtractSpan` documents: positions of the answer,
    of the context, and of the tokens that have no wider context in any other window (the rule of maximal context,
    google-research/bert, without its bonus for longer windows): the smaller of a token's distances to the window's
    edges is the largest of all windows, and for ties the window is the first.
    """

    spec: BatchSpec = {**TEXT_SPEC, **{name: Field("int32", ("batch",), IGNORE) for name in SPAN_FIELDS}}

    def __init__(
        self,
        questions: Sequence[Question],
        tokenizer: Tokenizer,
        *,
        seq_len: int,
        stride: int | None,
        max_question: int,
        warnings: tuple[DataWarning, ...] = (),
    ):
        """A dataset of windows.

        Args:
          questions: the questions with their contexts.
          tokenizer: splits them.
          seq_len: length of every sequence.
          stride: tokens from one window to the next; None: only the beginning of each context.
          max_question: questions are truncated to this many tokens.
          warnings: what was skipped or repaired before.
        """
        template, separator = template_of(tokenizer.vocab), tokenizer.separator
        asked = tokenizer.encode([item.question for item in questions])
        contexts = list(dict.fromkeys(item.context for item in questions))
        located = dict(zip(contexts, locate_tokens(tokenizer, contexts), strict=True))
        self.examples = list(questions)
        sequences, values = [], []
        beyond = lost = 0
        for number, (item, ids) in enumerate(zip(questions, asked, strict=True)):
            head, text = [*template.start, *ids[:max_question], *separator], located[item.context]
            windows = windows_of(item, text, len(head), seq_len - len(head) - 1, stride)
            sequences += [[*head, *text.ids[first:stop], template.end] for first, stop, _ in windows]
            values += [(number, len(head) - first, *places) for first, _, places in windows]
            beyond += windows[-1][1] < len(text.ids)
            lost += item.span is not None and not any(start > 0 for _, _, (start, *_) in windows)
        columns = np.array(values, np.int32).reshape(-1, 8).T
        self.owner, self.shift = columns[:2]
        self.extra = dict(zip(SPAN_FIELDS, columns[2:], strict=True))
        self.bounds = [located[item.context].bounds for item in questions]
        self.table = np.full((len(sequences), seq_len), template.pad, np.int32)
        for ids, row in zip(sequences, self.table, strict=True):
            row[: len(ids)] = ids
        self.lengths = np.array([len(ids) for ids in sequences], np.int32)
        self.padding = 1.0 - float(self.lengths.sum()) / max(self.table.size, 1)
        total, long = len(asked), sum(len(ids) > max_question for ids in asked)
        unread = f"of {total:,} contexts are truncated to {seq_len} tokens with their question, because stride is None"
        self.warnings = warnings + warnings_of(
            truncated(long, total, "questions", max_question),
            DataWarning("truncated", beyond, unread),
            DataWarning("skipped", lost, "answers are not completely in any window"),
            DataWarning("part", len(sequences) - total, f"more windows than questions ({total:,})"),
        )

    def __len__(self) -> int:
        return len(self.table)

    def gather(self, indices: Int[np.ndarray, " B"]) -> Batch:
        """The windows at these indices."""
        positions = np.arange(self.table.shape[1], dtype=np.int32)
        real = positions < self.lengths[indices, None]
        second = real & (positions >= self.extra["context_start"][indices, None])
        texts = {
            "input_ids": self.table[indices],
            "segment_ids": real.astype(np.int32),
            "positions": positions * real,
            "type_ids": second.astype(np.int32),
        }
        return texts | {name: values[indices] for name, values in self.extra.items()}

    def answers(self, outputs: dict[str, np.ndarray], count: int) -> list[Answers]:
        """For each question, the `count` best spans over its windows. Outputs are those of `ExtractSpan.predict`."""
        found: list[dict[Span, float]] = [{} for _ in self.examples]
        null = np.full(len(self.examples), np.inf)
        np.minimum.at(null, self.owner, outputs["null_score"])
        for row, number in enumerate(self.owner):
            bounds = self.bounds[number]
            for first, last, score in zip(
                outputs["span_start"][row], outputs["span_end"][row], outputs["span_score"][row], strict=True
            ):
                if score < NO_SPAN:
                    break
                span = Span(int(bounds[first - self.shift[row], 0]), int(bounds[last - self.shift[row], 1]))
                # Tokens without characters of their own yield empty or duplicate spans.
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
            for item, some, lowest in zip(self.examples, found, null, strict=True)
        ]


def window_starts(length: int, room: int, stride: int | None) -> list[int]:
    """First tokens of windows of `room` tokens over `length` tokens, up to the first window that reaches the end."""
    if stride is None or length <= room:
        return [0]
    step = min(stride, room)  # windows with gaps between them would lose text
    return list(range(0, length - room + step, step))


def central(starts: Sequence[int], room: int, length: int) -> list[tuple[int, int]]:
    """The tokens [from, to) that each window sees in the widest context."""
    ends = [min(start + room, length) for start in starts]
    edges = [0]
    for start, end in zip(starts[1:], ends[:-1], strict=True):
        # Of two overlapping windows, the earlier one sees token t at least as widely if end − 1 − t ≥ t − start. The
        # outer edges do not matter: they are further away.
        edges.append(min(max((start + end - 1) // 2 + 1, start), end))
    return list(zip(edges, [*edges[1:], ends[-1]], strict=True))


def windows_of(
    item: Question, text: Located, head: int, room: int, stride: int | None
) -> list[tuple[int, int, tuple[int, ...]]]:
    """(first token of the context, the one after the last, positions of answer, context, central tokens) of each."""
    target, starts, windows = tokens_of(text, item.span), window_starts(len(text.ids), room, stride), []
    for first, (own, until) in zip(starts, central(starts, room, len(text.ids)), strict=True):
        stop, shift = min(first + room, len(text.ids)), head - first  # from a token of the context to its position
        answer = answer_positions(item, target, first, stop, shift)
        windows.append((first, stop, (*answer, head, stop + shift, own + shift, until + shift)))
    return windows


def tokens_of(text: Located, span: Span | None) -> range | None:
    """The tokens that share characters with a span; None if there is no span, or no such token."""
    if span is None:
        return None
    start, end = text.bounds.T
    hit = np.flatnonzero((end > span.start) & (start < span.end) & (start < end))
    return range(int(hit[0]), int(hit[-1]) + 1) if len(hit) else None


def answer_positions(item: Question, target: range | None, first: int, stop: int, shift: int) -> tuple[int, int]:
    """Positions of the answer's first and last token: 0 where the window does not contain it, −1 where unknown."""
    if item.answers and target is None:
        return IGNORE, IGNORE
    if target is None or target.start < first or target.stop > stop:
        return 0, 0
    return target.start + shift, target.stop - 1 + shift
