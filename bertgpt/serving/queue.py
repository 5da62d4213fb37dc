"""Texts that wait for an encoder: a bounded queue that is fair between requests and packs texts into batches.

A batch is a few rows of tokens, each of which holds several texts as segments. There is a small closed set of batch
shapes, so that every program is compiled before the first request.

Why texts are packed rather than grouped by length: of batches of 64 sentences of film reviews (mean 26 tokens, MiniLM),
packing computes 1.05 positions for each token and 9 % more FLOPs than texts without any padding, with 11 shapes; rows
grouped by length computed 1.50 positions and 50 % more FLOPs, with 40 shapes.
"""

import asyncio
import dataclasses
import math
import threading
from collections import deque
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from bertgpt.ranges import Count, check_fields

Kind = Literal["vectors", "classes", "masks"]
"""What is asked for: a vector by the model's modules, class logits, or the most probable tokens at masked positions"""

WIDTH = 128
"""tokens of a row in which short texts are packed: attention in it costs 4 % more than in rows of 32 (MiniLM, CPU)"""
NARROW = (16, 32, 48, 64, 96)
"""widths of a single row with fewer tokens, for when little is waiting"""
SEGMENT = 8
"""a row of S tokens holds at most S / 8 texts"""
LOOKAHEAD = 16
"""texts of a request among which one is looked for that still fits into a batch"""
LONGEST_WAIT = 600
"""seconds of the largest Retry-After"""


class Text(NamedTuple):
    """A sequence of tokens, special ones included."""

    ids: Sequence[int]
    first: int | None = None
    """tokens of the first text of a pair; None: all"""
    skipped: int = 0
    """tokens of the prompt, and special ones before it"""
    masks: tuple[int, ...] = ()
    """positions to predict"""


class QueueFull(Exception):
    """There is no room for a request; `seconds` is an estimate of when there will be."""

    def __init__(self, seconds: int):
        super().__init__(f"the queue is full; there will be room in about {seconds} s")
        self.seconds = seconds


@dataclasses.dataclass(frozen=True)
class Shapes:
    """The closed set of batch shapes (rows, width)."""

    max_len: Count
    """longest text"""
    budget: Count = 512
    """tokens of a batch, padding included; a single longer text is a batch too"""

    def __post_init__(self):
        check_fields(self)

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of rows that are packed: 128, 256, … up to the longest text."""
        found = [min(WIDTH, self.max_len)]
        while found[-1] < self.max_len:
            found.append(min(2 * found[-1], self.max_len))
        return tuple(found)

    def heights(self, width: int) -> tuple[int, ...]:
        """Numbers of rows: 1, 2, 3, 4, 8, 16, … within the budget."""
        most = max(self.budget // width, 1)
        return tuple(n for n in (1, 2, 3, *(2**i for i in range(2, 20))) if n <= most)

    @property
    def every(self) -> tuple[tuple[int, int], ...]:
        """All shapes."""
        narrow = [(1, width) for width in NARROW if width < self.widths[0]]
        return (*narrow, *((height, width) for width in self.widths for height in self.heights(width)))

    def width(self, length: int) -> int:
        """The width of the rows for a text."""
        return next(width for width in self.widths if length <= width)

    def smallest(self, rows: Sequence["Row"], width: int) -> tuple[int, int]:
        """The smallest shape that holds these rows."""
        if len(rows) == 1:
            (row,) = rows
            for narrow in NARROW:
                if narrow < min(width, WIDTH) and row.used <= narrow and row.segments <= segments_of(narrow):
                    return 1, narrow
        return next(n for n in self.heights(width) if n >= len(rows)), width


def segments_of(width: int) -> int:
    """How many texts a row of this width may hold."""
    return max(width // SEGMENT, 1)


class Request:
    """What one call asks for. `future` gets the results of all its texts, in order."""

    def __init__(self, kind: Kind, texts: Sequence[Text], shapes: Shapes, future: asyncio.Future):
        self.kind, self.texts, self.future = kind, texts, future
        self.results: list[object] = [None] * len(texts)
        self.unfinished = len(texts)
        self.tokens = sum(len(text.ids) for text in texts)
        # Texts that need rows of the same width one after another; the next one is the last.
        widths = [shapes.width(len(text.ids)) for text in texts]
        self.pending = sorted(range(len(texts)), key=widths.__getitem__, reverse=True)[::-1]


class Placed(NamedTuple):
    """Where a text of a request is in a batch."""

    request: Request
    index: int
    """of the text in the request"""
    row: int
    start: int
    """its first column"""
    segment: int
    """its number in the row, from 1"""

    @property
    def text(self) -> Text:
        """The text itself."""
        return self.request.texts[self.index]


@dataclasses.dataclass
class Row:
    """A row of a batch that is being filled."""

    used: int = 0
    segments: int = 0


class Batch(NamedTuple):
    """Texts and the shape of the arrays that they are in."""

    shape: tuple[int, int]
    placed: list[Placed]

    @property
    def tokens(self) -> int:
        """Tokens that are not padding."""
        return sum(len(item.text.ids) for item in self.placed)


class Packer:
    """Fills the rows of one batch by best fit, in the order in which texts come."""

    def __init__(self, shapes: Shapes, width: int):
        self.shapes, self.width = shapes, width
        self.height, self.most = shapes.heights(width)[-1], segments_of(width)
        self.rows: list[Row] = []
        self.placed: list[Placed] = []

    def add(self, request: Request, index: int) -> bool:
        """Places a text of a request, if there is room."""
        length = len(request.texts[index].ids)
        room = self.width - length
        fitting = [(row.used, -i) for i, row in enumerate(self.rows) if row.used <= room and row.segments < self.most]
        if fitting:
            number = -max(fitting)[1]
        elif room >= 0 and len(self.rows) < self.height:
            self.rows.append(Row())
            number = len(self.rows) - 1
        else:
            return False
        row = self.rows[number]
        self.placed.append(Placed(request, index, number, row.used, row.segments + 1))
        row.used, row.segments = row.used + length, row.segments + 1
        return True

    def batch(self) -> Batch:
        """What was placed, in the smallest shape."""
        return Batch(self.shapes.smallest(self.rows, self.width), self.placed)


class RequestQueue:
    """Requests whose texts wait, in the order of their turns. Used by an event loop and a thread that takes batches."""

    def __init__(self, shapes: Shapes, max_requests: int, max_tokens: int):
        """A queue of at most `max_requests` requests and `max_tokens` tokens, or of one larger request alone."""
        self.shapes, self.max_requests, self.max_tokens = shapes, max_requests, max_tokens
        self.waiting: deque[Request] = deque()
        self.tokens = 0
        """tokens that wait"""
        self.rate = 0.0
        """tokens a second while the device is busy, averaged; 0: not known yet"""
        self.closed = False
        self.changed = threading.Condition()

    def put(self, request: Request) -> None:
        """Adds a request.

        Raises:
          QueueFull: there are too many requests or tokens already.
        """
        with self.changed:
            full = len(self.waiting) >= self.max_requests or self.tokens + request.tokens > self.max_tokens
            if self.waiting and full:
                raise QueueFull(self._seconds())
            self.waiting.append(request)
            self.tokens += request.tokens
            self.changed.notify()

    def discard(self, request: Request) -> None:
        """Removes the texts of a request that are not taken yet."""
        with self.changed:
            if request.pending:
                self.waiting.remove(request)
                self.tokens -= sum(len(request.texts[index].ids) for index in request.pending)
                request.pending = []

    def take(self) -> Batch | None:
        """The next batch; waits for one. None if the queue is closed and empty.

        Requests take turns, one text at a time, so that a small one does not wait for all of a large one. The rows are
        as wide as the first text needs.
        """
        with self.changed:
            while not self.waiting:
                if self.closed:
                    return None
                self.changed.wait()
            first = self.waiting[0]
            packer = Packer(self.shapes, self.shapes.width(len(first.texts[first.pending[-1]].ids)))
            turn = list(self.waiting)
            while turn:
                turn = [request for request in turn if self._place(packer, request) and request.pending]
            batch = packer.batch()
            self.tokens -= batch.tokens
            # Those that are not done yet go behind those that did not fit.
            begun = {id(item.request) for item in batch.placed}
            rest = [request for request in self.waiting if request.pending]
            self.waiting = deque(sorted(rest, key=lambda request: id(request) in begun))
            return batch

    @staticmethod
    def _place(packer: Packer, request: Request) -> bool:
        """Places one of the next texts of a request. Returns whether one fitted."""
        pending = request.pending
        for back in range(1, min(len(pending), LOOKAHEAD) + 1):
            if packer.add(request, pending[-back]):
                del pending[-back]
                return True
        return False

    def measure(self, tokens: int, seconds: float) -> None:
        """Takes note of how long a batch took."""
        now = tokens / max(seconds, 1e-6)
        self.rate = now if self.rate == 0.0 else 0.9 * self.rate + 0.1 * now

    def _seconds(self) -> int:
        if self.rate == 0.0:
            return 1
        return min(max(math.ceil(self.tokens / self.rate), 1), LONGEST_WAIT)

    def close(self) -> None:
        """Accepts the end: `take` gives what waits and then None."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()


def fill(batch: Batch) -> np.ndarray:
    """Token ids, segments, positions, types and skipped tokens of a batch: int32 [5, rows, width]."""
    arrays = np.zeros((5, *batch.shape), np.int32)
    counting = np.arange(batch.shape[1], dtype=np.int32)
    for item in batch.placed:
        text, length = item.text, len(item.text.ids)
        span = arrays[:, item.row, item.start : item.start + length]
        span[0], span[1], span[2], span[4] = text.ids, item.segment, counting[:length], text.skipped
        if text.first is not None:
            span[3, text.first :] = 1
    return arrays
