"""Continuous batching for decoders and encoder–decoders: a prompt joins while the outputs of others are extended.

A batch has a fixed number of slots, and a slot holds one output. A new prompt is read alone and takes a free slot; all
slots are then extended together, a few tokens a call. Tokens are those of `bertgpt.generate` with the same settings,
whatever else is in the batch.

Rounds run in the thread that computes everything for the model: each is a task of its own, so that other calls get
their turn in between. Beam search, `no_repeat_ngram_size`, more than `MAX_STOPS` stop tokens and texts that are longer
than a slot do not run in slots: such outputs are generated one prompt after another in a second thread, because each
new combination of their settings compiles a program.
"""

import asyncio
import dataclasses
import logging
import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from bertgpt.inference.decoding import Decoding, Stops, continue_sampling, search_beams, start_sampling
from bertgpt.inference.generate import WATCH_EVERY, check_prompts, generate_ids, prompt_key, prompt_length, split_stops
from bertgpt.inference.model import Model
from bertgpt.inference.slots import MAX_ALTERNATIVES, MAX_STEPS, NewTokens, one_slot
from bertgpt.ranges import Count, Positive, check_fields
from bertgpt.serving.errors import Refusal
from bertgpt.serving.logprobs import Alternative, score_tokens
from bertgpt.serving.pieces import FinishReason, Piece, Progress
from bertgpt.serving.slot_batch import SlotBatch
from bertgpt.types import UserError

log = logging.getLogger(__name__)

CALL_SECONDS = 0.05
"""how long a call that extends the slots should take: a new prompt waits for it, and texts are streamed after it. What
the host does between calls takes about a millisecond"""
ALONE = 16
"""combinations of settings outside the slots whose programs are kept; before a further one all are dropped"""


@dataclasses.dataclass(frozen=True)
class DecoderOptions:
    """How many outputs are generated at a time, and how many may wait."""

    slots: Count = 8
    """outputs that are generated at a time"""
    slot_len: Count | None = None
    """longest text of a slot in tokens, of decoders with its prompt; None: the model's max_len"""
    max_waiting: Count = 256
    """outputs that may wait for a slot; further requests get 429"""
    timeout: Positive = 600.0
    """seconds that the outputs of a request may take, waiting included"""

    def __post_init__(self):
        check_fields(self)


@dataclasses.dataclass(eq=False)
class Request:
    """The outputs of some prompts that one caller asked for."""

    prompts: Sequence[Sequence[int]]
    decoding: Decoding
    stops: Stops
    strings: Sequence[str]
    """strings that end a text"""
    logprobs: int | None
    """how many alternatives of each token are sent; None: not even log probabilities"""
    loop: asyncio.AbstractEventLoop
    """the caller's"""
    pieces: asyncio.Queue[Piece | Exception] = dataclasses.field(default_factory=asyncio.Queue)
    left: int = 0
    """outputs that have not ended"""
    gone: bool = False
    """nobody waits any more: its outputs leave their slots"""

    def send(self, item: Piece | Exception) -> None:
        """Passes an item on to the caller, from the thread that computes."""
        try:
            self.loop.call_soon_threadsafe(self.pieces.put_nowait, item)
        except RuntimeError:  # the caller's loop was closed
            self.gone = True

    def fail(self, error: Exception) -> None:
        """Ends all outputs with an error."""
        self.gone = True
        self.send(error)


@dataclasses.dataclass(eq=False)
class Job:
    """One output, which waits for a slot or is in one."""

    request: Request
    prompt: int
    """index in the request"""
    progress: Progress
    started: float = 0.0
    """when it got its slot"""

    @property
    def ids(self) -> Sequence[int]:
        """The tokens of its prompt."""
        return self.request.prompts[self.prompt]


class DecoderEngine:
    """Generates for many callers at a time."""

    def __init__(
        self,
        model: Model,
        thread: ThreadPoolExecutor,
        options: DecoderOptions | None = None,
        apart: ThreadPoolExecutor | None = None,
    ):
        """Compiles nothing yet: `warm_up` does.

        Args:
          model: a decoder or encoder–decoder with a tokenizer.
          thread: of one worker, which computes everything for the model.
          options: numbers of slots and of waiting outputs.
          apart: of one worker, for outputs that do not run in slots; None: `thread`.
        """
        self.model, self.thread, self.options = model, thread, options or DecoderOptions()
        self.apart = apart or thread
        self.settings: set[tuple[Decoding, Stops, int]] = set()
        """outside the slots, whose programs are kept"""
        self.batch = SlotBatch(model, self.options.slots, self.options.slot_len)
        self.jobs: list[Job | None] = [None] * self.options.slots
        """the output in each slot"""
        self.waiting: deque[Job] = deque()
        self.requests: set[Request] = set()
        """those that are not answered yet"""
        self.lock = threading.Lock()
        """for `waiting`, `requests`, `scheduled` and `stopping`, which callers change while a round runs"""
        self.scheduled = False
        """a round runs or is about to"""
        self.stopping = False
        self.step_seconds = CALL_SECONDS
        """mean of the time that a step took lately"""
        self.job_seconds = 1.0
        """mean of the time that an output was in its slot lately"""

    def warm_up(self) -> None:
        """Compiles every program for every shape. Runs in the thread, before the first request."""
        self.batch.warm_up(lambda: self.stopping)

    # -- callers, in their event loops --------------------------------------------------------------------------------

    async def generate(
        self,
        prompts: Sequence[Sequence[int]],
        decoding: Decoding,
        stop: Sequence[str] = (),
        logprobs: int | None = None,
    ) -> AsyncIterator[Piece]:
        """Pieces of the outputs of all prompts, as they are generated. Closing it frees its slots at the next call.

        Args:
          prompts: token ids.
          decoding: how to choose tokens.
          stop: special tokens or strings that end a text, which ends before them.
          logprobs: None: no log probabilities; else how many alternatives of each token to name as well.

        Raises:
          UserError: a prompt is empty or too long, or `logprobs` too large.
          Refusal: too many outputs wait, the time is up, or the server is stopping.
        """
        check_prompts(self.model.config, prompts, decoding)
        if logprobs is not None and not 0 <= logprobs <= MAX_ALTERNATIVES:
            raise UserError(f"logprobs={logprobs} must lie in [0, {MAX_ALTERNATIVES}]")
        stops, strings = split_stops(self.model, stop)
        request = Request(prompts, decoding, stops, strings, logprobs, asyncio.get_running_loop())
        request.left = len(prompts) * decoding.num_return_sequences
        deadline = time.monotonic() + self.options.timeout
        try:
            self._submit(request)
            while request.left:
                try:
                    item = await asyncio.wait_for(request.pieces.get(), max(deadline - time.monotonic(), 0.001))
                except TimeoutError:
                    text = f"the request took longer than {self.options.timeout:g} seconds"
                    raise Refusal(504, text) from None
                if isinstance(item, Exception):
                    raise item
                request.left -= item.finish_reason is not None
                yield item
        finally:
            request.gone = True
            with self.lock:
                self.requests.discard(request)
                if request.left:
                    self.waiting = deque(job for job in self.waiting if job.request is not request)

    async def drain(self, seconds: float = 5.0) -> None:
        """Refuses new requests, finishes the others, and fails those that are not done after some seconds."""
        with self.lock:
            self.stopping = True
        end = time.monotonic() + seconds
        while self.requests and time.monotonic() < end:
            await asyncio.sleep(0.01)
        for request in list(self.requests):
            request.fail(Refusal(503, "the server is stopping"))

    def _submit(self, request: Request) -> None:
        """Queues the outputs of a request. Errors: see `generate`."""
        decoding, tokenizer = request.decoding, self.model.tokenizer
        if not all(self.batch.fits(len(ids), decoding, request.stops.tokens) for ids in request.prompts):
            with self.lock:
                self._accept(request)
                for number in range(len(request.prompts)):
                    self.apart.submit(self._generate_alone, request, number)
            return
        jobs = [
            Job(request, i, Progress(tokenizer, request.strings, i, k, request.logprobs is not None))
            for i in range(len(request.prompts))
            for k in range(decoding.num_return_sequences)
        ]
        with self.lock:
            self._accept(request)
            self.waiting.extend(jobs)
            if not self.scheduled:
                self.scheduled = True
                self.thread.submit(self._round)

    def _accept(self, request: Request) -> None:
        """Counts a request among those to be answered, or raises Refusal."""
        if self.stopping:
            raise Refusal(503, "the server is stopping")
        number, most = len(self.jobs), self.options.max_waiting
        if request.left > most:
            raise Refusal(413, f"{request.left} outputs are more than may wait at a time, {most}")
        outputs = request.left + sum(other.left for other in self.requests)
        if outputs > number + most:
            seconds = math.ceil(min(max(self.job_seconds * (outputs - number) / number, 1), 600))
            raise Refusal(429, "too many outputs are waiting; try again later", {"Retry-After": str(seconds)})
        self.requests.add(request)

    # -- rounds, in the thread ----------------------------------------------------------------------------------------

    def _round(self) -> None:
        """Fills free slots, extends all of them once, and asks for another round if something is left to do."""
        jobs: list[Job] = []
        try:
            for row, job in enumerate(self.jobs):
                if job is not None and job.request.gone:
                    self._leave(row)
            while jobs := self._take():
                self._admit(jobs)
            if any(self.jobs):
                self._extend()
        except Exception as error:  # whose request is to blame is not known
            log.exception("all slots are freed")
            for job in filter(None, [*self.jobs, *jobs]):
                job.request.fail(error)
            self.batch.clear()
            self.jobs = [None] * len(self.jobs)
        with self.lock:
            self.scheduled = bool(any(self.jobs) or self.waiting)
            if self.scheduled:
                self.thread.submit(self._round)

    def _take(self) -> list[Job]:
        """The next outputs that wait, all of one prompt, as many as there are free slots."""
        jobs: list[Job] = []
        with self.lock:
            while self.waiting and len(jobs) < self.jobs.count(None):
                job = self.waiting[0]
                if not job.request.gone:
                    if jobs and (job.request, job.prompt) != (jobs[0].request, jobs[0].prompt):
                        break
                    jobs.append(job)
                self.waiting.popleft()
        return jobs

    def _admit(self, jobs: Sequence[Job]) -> None:
        """Reads a prompt and chooses the first token of each of its outputs."""
        request, ids = jobs[0].request, jobs[0].ids
        try:
            read = self.batch.read(ids, request.decoding.bidirectional)
        except Exception as error:  # the slots are untouched
            log.exception("a prompt of %d tokens could not be read", len(ids))
            request.fail(error)
            return
        key = prompt_key(request.decoding.seed, ids)
        for job in jobs:
            row = self.jobs.index(None)
            self.jobs[row], job.started = job, time.monotonic()
            slot = one_slot(request.decoding, key, job.progress.output, request.stops.tokens, bool(request.logprobs))
            self._deliver([row], self.batch.admit(row, len(ids), read, slot))

    def _extend(self) -> None:
        """Extends all slots by as many tokens as a call should take."""
        steps = min(max(int(CALL_SECONDS / self.step_seconds), 1), MAX_STEPS)
        begin = time.perf_counter()
        new = self.batch.extend(steps, until_free=bool(self.waiting))
        taken = max(int(np.max(np.sum(new.tokens >= 0, axis=1))), 1)
        self.step_seconds += 0.2 * ((time.perf_counter() - begin) / taken - self.step_seconds)
        self._deliver(range(len(new.tokens)), new)

    def _deliver(self, rows: Sequence[int], new: NewTokens) -> None:
        """Sends new tokens to the callers, and frees the slots of outputs that have ended."""
        for i, row in enumerate(rows):
            job, count = self.jobs[row], int(np.sum(new.tokens[i] >= 0))
            if job is None or not count:
                continue
            ids, wanted = new.tokens[i, :count].tolist(), job.request.logprobs
            stopped = ids[-1] in job.request.stops.tokens
            reason = "stop" if stopped else None if self.batch.slots.active[row] else "length"
            kept = count - stopped
            alternatives = [
                tuple(map(Alternative, new.top_ids[i, t, :wanted].tolist(), new.top_log_probs[i, t, :wanted].tolist()))
                for t in range(0 if wanted is None else kept)
            ]
            piece = job.progress.add(ids[:kept], new.log_probs[i, :kept].tolist(), alternatives, reason)
            if piece is not None:
                job.request.send(piece)
                if piece.finish_reason is not None:
                    self._leave(row)

    def _leave(self, row: int) -> None:
        """Frees a slot."""
        self.job_seconds += 0.1 * (time.monotonic() - self.jobs[row].started - self.job_seconds)
        self.jobs[row] = None
        self.batch.free(row)

    def _generate_alone(self, request: Request, number: int) -> None:
        """Generates the outputs of a prompt that do not run in slots.

        Log probabilities take a pass over all tokens, so there are fewer pieces the longer an output is.
        """
        if request.gone:
            return
        model, decoding, prompt, top = self.model, request.decoding, request.prompts[number], request.logprobs
        returns = range(decoding.num_return_sequences)
        progress = [Progress(model.tokenizer, request.strings, number, k, top is not None) for k in returns]
        ended: set[int] = set()

        def send(k: int, ids: Sequence[int], reason: FinishReason | None) -> None:
            sent = len(progress[k].ids)
            scored = ((), ()) if top is None else score_tokens(model, prompt, ids, top)
            piece = progress[k].add(ids[sent:], *(part[sent:] for part in scored), reason)
            if piece is not None:
                request.send(piece)
                if piece.finish_reason is not None:
                    ended.add(k)

        def watch(rows: list[list[int]], done: Sequence[bool]) -> list[bool]:
            for k in returns:
                sent = len(progress[k].ids)
                due = top is None or len(rows[k]) - sent >= max(WATCH_EVERY, sent // 4)
                if not done[k] and k not in ended and due:
                    send(k, rows[k], None)
            return [request.gone or k in ended for k in returns]

        try:
            watched = watch if decoding.num_beams == 1 else None
            stops, config = request.stops, model.config
            self._keep((dataclasses.replace(decoding, seed=0), stops, prompt_length(len(prompt))))
            (outputs,) = generate_ids(model.apply, model.params, config, [prompt], decoding, stops, watched)
            for k in returns:
                if k not in ended:
                    send(k, outputs[k].ids, "stop" if outputs[k].ended else "length")
        except Exception as error:
            request.fail(error)

    def _keep(self, settings: tuple[Decoding, Stops, int]) -> None:
        """Drops programs, of which there is one for all settings that clients think of, before there are too many."""
        if settings not in self.settings and len(self.settings) >= ALONE:
            for program in (start_sampling, continue_sampling, search_beams):
                program.clear_cache()
            self.settings.clear()
        self.settings.add(settings)
