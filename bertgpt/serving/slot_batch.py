"""The slots of a decoder or encoder–decoder on the device: which shapes there are, and what each slot is doing.

Shapes come from small closed sets, all compiled by `warm_up`: prompts are padded to powers of two, and the cache has
one of three lengths, because attention reads all of it at each step. It has one row while only the first slot is in
use: on a CPU, a step of eight rows of GPT-2-124M took more than twice as long as one of a single row.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from bertgpt.inference.decoding import Decoding
from bertgpt.inference.generate import SHORTEST_PROMPT, prompt_key
from bertgpt.inference.model import Model
from bertgpt.inference.slots import (
    MAX_STOPS,
    NewTokens,
    Slots,
    cache_shapes,
    empty_cache,
    empty_slots,
    extend_slots,
    first_tokens,
    insert,
    one_slot,
    read_prompt,
    resize,
)
from bertgpt.types import Apply, Params

SHORTEST_CACHE = 64
"""columns; the cache is not made shorter"""


class SlotBatch:
    """A fixed number of slots, each of which holds one output or is free. One thread at a time uses it."""

    def __init__(self, model: Model, number: int, length: int | None = None):
        """Compiles nothing yet.

        Args:
          model: a decoder or encoder–decoder with a tokenizer.
          number: of slots.
          length: longest text of a slot in tokens, of decoders with its prompt; None: the model's max_len.
        """
        self.model, self.number = model, number
        self.is_decoder = model.config.architecture == "decoder"
        longest = min(length or model.config.max_len, model.config.max_len)
        self.widths = prompt_widths(longest)
        """lengths to which prompts are padded"""
        self.lengths = cache_lengths(longest)
        """columns that the cache may have"""
        self.vocab_size = model.tokenizer.vocab.size
        self.clear()

    def clear(self) -> None:
        """Frees all slots and drops the cache."""
        self.slots: Slots = empty_slots(self.number)
        self.prompts = np.zeros(self.number, np.int32)
        """tokens of the prompt of each slot"""
        self.shape = (1, self.lengths[0])
        """rows and columns of the cache"""
        self.cache, self.seen = None, None

    def fits(self, prompt: int, decoding: Decoding, stops: Sequence[int]) -> bool:
        """Whether an output can be generated in a slot.

        Args:
          prompt: tokens of its prompt.
          decoding: its settings.
          stops: tokens that end it.
        """
        longest = prompt + decoding.max_new_tokens if self.is_decoder else max(prompt, decoding.max_new_tokens)
        plain = decoding.num_beams == 1 and decoding.no_repeat_ngram_size == 0
        return plain and longest <= self.lengths[-1] and len(stops) <= MAX_STOPS

    def read(self, ids: Sequence[int], bidirectional: bool = False) -> tuple[Float[Array, "1 V"], PyTree, np.ndarray]:
        """What `admit` needs of a prompt: logits after it, its cache, and which tokens count as having occurred."""
        model, width = self.model, self._width(len(ids))
        prompt = np.full((1, width), model.tokenizer.vocab.pad or 0, np.int32)
        prompt[0, width - len(ids) :] = ids
        seen = np.zeros((1, model.config.vocab_size), bool)
        seen[0, ids if self.is_decoder else [model.config.start_id]] = True
        columns, flag = (width, np.asarray(bidirectional)) if self.is_decoder else (1, None)
        start = np.asarray([width - len(ids)], np.int32)
        scores, cache = read_prompt(model.apply, columns, model.params, prompt, start, flag)
        return scores, cache, seen

    def admit(
        self, row: int, prompt: int, read: tuple[Float[Array, "1 V"], PyTree, np.ndarray], slot: Slots
    ) -> NewTokens:
        """Puts an output into a free slot and chooses its first token.

        Args:
          row: the slot.
          prompt: tokens of its prompt.
          read: of its prompt, from `read`.
          slot: its settings, from `one_slot`.
        """
        scores, cache, seen = read
        self.prompts[row] = prompt
        for field, value in zip(self.slots, slot, strict=True):
            field[row] = value[0]
        self._make_room(0)
        at = np.asarray(row, np.int32)
        self.cache = insert(self.cache, at, cache)
        self.seen, new = first_tokens(self.vocab_size, self.seen, at, seen, scores, slot)
        return self._advance(new, [row])

    def extend(self, steps: int, until_free: bool = False) -> NewTokens:
        """Extends the outputs in all slots by up to `steps` tokens or, if asked for, until one of them has ended."""
        self._make_room(steps)
        return self._advance(self._extend(steps, until_free), range(self.shape[0]))

    def free(self, row: int) -> None:
        """Makes a slot free."""
        self.slots.active[row] = False

    def _advance(self, new: NewTokens, rows: Sequence[int]) -> NewTokens:
        """Counts new tokens. Slots whose outputs have ended become free."""
        new = jax.device_get(new)
        for tokens, row in zip(new.tokens, rows, strict=True):
            if count := int(np.sum(tokens >= 0)):
                self.slots.token[row] = tokens[count - 1]
                self.slots.made[row] += count
                ended = self.slots.made[row] >= self.slots.max_new_tokens[row]
                if ended or tokens[count - 1] in self.slots.stops[row]:
                    self.free(row)
        return new

    def _extend(self, steps: int, until_free: bool) -> NewTokens:
        self.cache, self.seen, new = extend_slots(
            self.model.apply,
            self.vocab_size,
            self.model.params,
            self.cache,
            self.seen,
            Slots(*(field[: self.shape[0]] for field in self.slots)),
            np.asarray(steps, np.int32),
            np.asarray(until_free),
        )
        return new

    def _width(self, prompt: int) -> int:
        return next(width for width in self.widths if width >= prompt)

    def _make_room(self, steps: int) -> None:
        """Gives the cache the smallest shape with room for `steps` more tokens in each slot."""
        needed, used_rows = 1, np.flatnonzero(self.slots.active)
        for row in used_rows:
            used = int(self.slots.made[row]) + (int(self.prompts[row]) if self.is_decoder else 1)
            needed = max(needed, self._width(int(self.prompts[row])), used + steps)
        length = next((length for length in self.lengths if length >= needed), self.lengths[-1])
        self._reshape(1 if max(used_rows, default=0) == 0 else self.number, length)

    def _reshape(self, rows: int, length: int) -> None:
        """Changes the shape of the cache, first its length, so that few pairs of shapes are compiled."""
        if self.cache is None:
            self.cache = empty_cache(*self._cache_of(rows, length))
            self.seen = jnp.zeros((rows, self.model.config.vocab_size), bool)
        else:
            for shape in ((self.shape[0], length), (rows, length)):
                if shape != self.shape:
                    leaves = jax.tree.leaves(cache_shapes(*self._cache_of(*shape)))
                    shapes = (*(leaf.shape for leaf in leaves), (shape[0], self.model.config.vocab_size))
                    self.cache, self.seen = resize((self.cache, self.seen), shapes)
                    self.shape = shape
        self.shape = (rows, length)

    def _cache_of(self, rows: int, length: int) -> tuple[Apply, Params, int, int, int | None]:
        """Arguments of `empty_cache`."""
        return self.model.apply, self.model.params, rows, length, None if self.is_decoder else length

    def warm_up(self, stopping: Callable[[], bool] = lambda: False) -> None:
        """Compiles every program for every shape, until it is told to stop."""
        slot, row = one_slot(Decoding(), prompt_key(0, [0])), np.asarray(0, np.int32)
        prompts = {}
        for width in self.widths:
            if stopping():
                return
            prompts[width] = self.read([0] * width)
        numbers = sorted({1, self.number})
        for rows in numbers:
            for length in self.lengths:
                if stopping():
                    return
                self._reshape(rows, length)
                for width, (_, cache, _) in prompts.items():
                    if width <= length:
                        self.cache = insert(self.cache, row, cache)
                scores, _, seen = prompts[self.widths[0]]
                self.seen, _ = first_tokens(self.vocab_size, self.seen, row, seen, scores, slot)
                self._extend(0, False)
        for old in self.lengths:
            for new in self.lengths:
                for rows in numbers:
                    self._reshape(rows, old)
                    self._reshape(rows, new)
                self._reshape(numbers[0], new)
        self.clear()


def prompt_widths(length: int) -> tuple[int, ...]:
    """Powers of two up to the longest prompt, which comes last."""
    found, width = [], SHORTEST_PROMPT
    while width < length:
        found.append(width)
        width *= 2
    return (*found, length)


def cache_lengths(length: int) -> tuple[int, ...]:
    """A quarter, a half and all of the longest text, in ascending order."""
    return tuple(sorted({length, *(part for n in (2, 4) if (part := -(-length // n)) >= SHORTEST_CACHE)}))
