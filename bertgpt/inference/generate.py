"""Text from prompts: batches, streaming, stop strings. What runs on the device is in `decoding`.

Prompts are padded to a power of two, so that few programs are compiled; the host looks into the loop only to stream or
to find stop strings. What a prompt gets depends on (prompt, seed) alone, not on the other prompts of its batch.
"""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from bertgpt.data.tokenizer import Tokenizer
from bertgpt.inference.decoding import Decoding, Rows, Stops, begin_rows, extend_rows, search_beams
from bertgpt.inference.model import Model
from bertgpt.layers.stack import for_inference
from bertgpt.types import UserError

SMALLEST_BUCKET = 16
WATCHED_TOKENS = 8  # tokens between two looks of the host, where it looks at all


class Output(NamedTuple):
    """One continuation."""

    ids: list[int]
    """new tokens, without the stop token"""
    score: float
    """log probability of all new tokens; of beams, that divided by length^length_penalty"""
    ended: bool
    """whether a stop token or string ended it, rather than max_new_tokens"""


Watch = Callable[[list[list[int]], Sequence[bool]], Sequence[bool]]


def bucket(length: int) -> int:
    """The smallest power of two that holds so many columns."""
    return max(SMALLEST_BUCKET, 1 << (length - 1).bit_length())


def generate_ids(
    apply: Callable,
    params: PyTree,
    config: Any,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    stops: Stops,
    watch: Watch | None = None,
) -> list[list[Output]]:
    """Continues each prompt: one batch, `num_return_sequences` outputs each.

    Args:
      apply: runs a model that has `prefill` and `extend`.
      params: its parameters.
      config: its config.
      prompts: token ids.
      decoding: how to choose.
      stops: where texts end.
      watch: called now and then with the new tokens of every row and which have ended; says which rows to end.

    Raises:
      UserError: a prompt is empty, or with the new tokens longer than the model's context.
    """
    check_prompts(config, prompts, decoding)
    width = bucket(max(map(len, prompts)))
    ids = np.full((len(prompts), width), stops.pad, np.int32)
    for row, prompt in zip(ids, prompts, strict=True):
        row[width - len(prompt) :] = prompt
    starts = np.asarray([width - len(prompt) for prompt in prompts], np.int32)
    static = {"apply": apply, "start_id": config.start_id, "d": dataclasses.replace(decoding, seed=0), "stops": stops}
    if decoding.num_beams > 1:
        if watch is not None:
            raise UserError("beam search can neither stream nor look for stop strings while it runs")
        state = search_beams(**static, params=params, prompts=ids, starts=starts)
        tokens, lengths, scores = jax.device_get((state.results, state.result_length, state.result_score))
    else:
        # Noise depends on the prompt, not on its place, so that no other prompt changes what it gets.
        seeds = jax.random.key_data(
            jnp.stack([jax.random.fold_in(jax.random.key(decoding.seed), zlib.crc32(row[s:].tobytes()))
                       for row, s in zip(ids, starts, strict=True)])
        )  # fmt: skip
        state = begin_rows(**static, params=params, prompts=ids, starts=starts, seeds=seeds)
        state = run_rows(state, functools.partial(extend_rows, **static, params=params), decoding, stops, watch)
        tokens, lengths, scores = jax.device_get((state.tokens, state.length, state.score))
        shape = (len(prompts), decoding.num_return_sequences)
        tokens, lengths, scores = tokens.reshape(*shape, -1), lengths.reshape(shape), scores.reshape(shape)
    new = tokens[..., tokens.shape[-1] - decoding.max_new_tokens :]
    return [
        [output(new[b, k, : lengths[b, k]], float(scores[b, k]), stops) for k in range(decoding.num_return_sequences)]
        for b in range(len(prompts))
    ]


def output(ids: np.ndarray, score: float, stops: Stops) -> Output:
    ended = len(ids) > 0 and int(ids[-1]) in stops.tokens
    return Output(ids[: len(ids) - ended].tolist(), score, bool(ended))


def run_rows(state: Rows, extend: Callable, d: Decoding, stops: Stops, watch: Watch | None) -> Rows:
    if watch is None:
        return extend(state=state, until=d.max_new_tokens)
    until = 1
    while True:
        tokens, lengths, done = jax.device_get((state.tokens, state.length, state.done))
        new = tokens[:, tokens.shape[1] - d.max_new_tokens :]
        rows = [output(row[:n], 0.0, stops).ids for row, n in zip(new, lengths, strict=True)]
        done = done | np.asarray(watch(rows, (done | (until >= d.max_new_tokens)).tolist()), bool)
        state = state._replace(done=jnp.asarray(done))
        if done.all() or until >= d.max_new_tokens:
            return state
        until = min(until + WATCHED_TOKENS, d.max_new_tokens)
        state = extend(state=state, until=until)


def check_prompts(config: Any, prompts: Sequence[Sequence[int]], d: Decoding) -> None:
    """Raises UserError for a prompt that cannot be continued."""
    if d.bidirectional and config.start_id is not None:
        raise UserError("bidirectional=True is for a decoder alone; an encoder reads in both directions anyway")
    for number, prompt in enumerate(prompts, start=1):
        if not len(prompt):
            raise UserError(f"prompt {number} is empty")
        if config.start_id is None and len(prompt) + d.max_new_tokens > config.max_len:
            room = config.max_len - len(prompt)
            advice = f"; lower max_new_tokens to {room}" if room > 0 else ""
            raise UserError(
                f"prompt {number} has {len(prompt)} tokens and asks for {d.max_new_tokens} more, but the model's"
                f" context is {config.max_len}{advice}"
            )


# -- text -------------------------------------------------------------------------------------------------------------


class Text(NamedTuple):
    """One continuation as text."""

    text: str
    score: float
    """log probability of its tokens; of beams, that divided by length^length_penalty"""
    ended: bool
    """whether a stop token or string ended it, rather than max_new_tokens"""


def generate(
    model: Model,
    prompts: Sequence[str],
    decoding: Decoding | None = None,
    *,
    stop: Sequence[str] = (),
    batch_size: int = 16,
    on_text: Callable[[int, int, str], None] | None = None,
) -> Iterator[list[Text]]:
    """Continues each prompt (GPT), or answers it (T5), in order.

    Args:
      model: from `bertgpt.load`.
      prompts: texts, whose special tokens are parsed.
      decoding: how to choose tokens; None: greedy, 64 tokens.
      stop: where to end beside the tokenizer's own end token: special tokens, or strings, which are cut off.
      batch_size: prompts at once.
      on_text: called with (prompt, return, new text) as text comes.

    Raises:
      UserError: the model is an encoder or has no tokenizer, or a prompt is empty or too long.
    """
    check_writes(model)
    yield from continue_ids(
        model, prompt_ids(model, prompts), decoding or Decoding(), stop=stop, batch_size=batch_size, on_text=on_text
    )


def check_writes(model: Model) -> None:
    """Raises UserError if the model is an encoder or has no tokenizer."""
    if model.config.architecture == "encoder":
        name = type(model.config).__name__.removesuffix("Config")
        raise UserError(f"{model.path}: {name} is an encoder and generates no text")
    if model.tokenizer is None:
        raise UserError(f"{model.path}: has no tokenizer")


def continue_ids(
    model: Model,
    ids: Sequence[Sequence[int]],
    decoding: Decoding,
    *,
    stop: Sequence[str] = (),
    batch_size: int = 16,
    on_text: Callable[[int, int, str], None] | None = None,
) -> Iterator[list[Text]]:
    """As `generate`, of prompts that are token ids."""
    tokenizer, vocab = model.tokenizer, model.tokenizer.vocab
    check_prompts(model.config, ids, decoding)
    special = {text: i for text in stop if (i := tokenizer.backend.token_to_id(text)) in vocab.special}
    strings = [text for text in stop if text not in special]
    stops = stops_of(tokenizer, special.values())
    for first in range(0, len(ids), batch_size):
        part = ids[first : first + batch_size]
        returns = decoding.num_return_sequences
        stream = Stream(tokenizer, strings, returns, first, len(part) * returns, on_text)
        watch = stream if strings and decoding.num_beams == 1 or on_text else None
        # The last batch is filled up, so that it needs no program of its own.
        filled = [*part, *[part[0]] * (min(batch_size, len(ids)) - len(part))]
        outputs = generate_ids(model.apply, model.params, model.config, filled, decoding, stops, watch)
        for row in outputs[: len(part)]:
            yield [finish(tokenizer.decode(o.ids), strings, o) for o in row]


def stops_of(tokenizer: Tokenizer, more: Iterable[int] = ()) -> Stops:
    """Texts end with the tokenizer's own end token, or with one of these."""
    vocab = tokenizer.vocab
    own = vocab.sep if vocab.eos is None else vocab.eos
    tokens = tuple(dict.fromkeys([*([] if own is None else [own]), *more]))
    return Stops(tokens, vocab.pad or 0, vocab.size)


def answers(
    apply: Callable,
    params: PyTree,
    config: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    batch_size: int,
) -> list[str]:
    """The model's best text for each prompt of token ids; parameters as training has them. For evaluations.

    Prompts of like length go together.
    """
    params, stops = for_inference(params, config.stacks, "float32"), stops_of(tokenizer)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found = [""] * len(prompts)
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        filled = [prompts[i] for i in chosen] + [prompts[chosen[0]]] * (min(batch_size, len(order)) - len(chosen))
        outputs = generate_ids(apply, params, config, filled, decoding, stops)
        for number, row in zip(chosen, outputs, strict=False):
            found[number] = tokenizer.decode(row[0].ids)
    return found


def prompt_ids(model: Model, prompts: Sequence[str]) -> list[list[int]]:
    """Ids of the prompts; a decoder alone gets no end of text after them."""
    before, after = model.tokenizer.template
    ids = model.tokenizer.encode(list(prompts), parse_special=True)
    if model.config.start_id is None:
        after = []
    return [[*before, *row, *after] if row else [] for row in ids]


def cut(text: str, strings: Sequence[str]) -> str:
    """The text before the first stop string."""
    return text[: min((i for s in strings if (i := text.find(s)) >= 0), default=len(text))]


def finish(text: str, strings: Sequence[str], output: Output) -> Text:
    kept = cut(text, strings)
    return Text(kept, output.score, output.ended or kept != text)


@dataclasses.dataclass
class Stream:
    """Watches rows as they grow: passes new text on, and says which have met a stop string."""

    tokenizer: Tokenizer
    strings: Sequence[str]
    returns: int
    """rows of each prompt"""
    first: int
    """number of the batch's first prompt"""
    real: int
    """rows from here on only fill up the batch"""
    on_text: Callable[[int, int, str], None] | None
    sent: dict[int, int] = dataclasses.field(default_factory=dict)
    """row → characters passed on"""

    def __call__(self, rows: list[list[int]], done: Sequence[bool]) -> list[bool]:
        met = []
        for number, ids in enumerate(rows):
            text = self.tokenizer.decode(ids)
            kept = cut(text, self.strings)
            met.append(kept != text)
            if self.on_text is not None and number < self.real:
                end = len(kept)
                if not (done[number] or met[-1]):
                    # Half a character, or what may be the beginning of a stop string, waits for its rest.
                    end -= max([0, *(len(s) - 1 for s in self.strings)])
                    end = min(end, len(kept.rstrip("\ufffd")))
                start = self.sent.get(number, 0)
                if end > start:
                    self.on_text(self.first + number // self.returns, number % self.returns, kept[start:end])
                    self.sent[number] = end
        return met
