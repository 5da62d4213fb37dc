"""Text generation: batching, streaming and stop strings around the loops of `decoding`.

Prompts are padded to a power of two, so that few programs are compiled. The host interrupts the loop only to stream or
to find stop strings. The output depends on the prompt and the seed, not on the other prompts of the batch.
"""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree, UInt8

from bertgpt.data.tokenizer import Tokenizer
from bertgpt.inference.decoding import (
    Decoding,
    SampleState,
    Stops,
    continue_sampling,
    search_beams,
    start_sampling,
)
from bertgpt.inference.model import Model
from bertgpt.layers.stack import for_inference
from bertgpt.sharding import fetch
from bertgpt.types import Apply, ModelConfig, Pixels, UserError

SHORTEST_PROMPT = 16
"""tokens; shorter prompts are padded to this length"""
WATCH_EVERY = 8
"""new tokens between two calls of a `Watch`"""


class Output(NamedTuple):
    """One generated sequence."""

    ids: list[int]
    """new tokens without the stop token"""
    score: float
    """log probability of all new tokens; for beam search divided by length^length_penalty"""
    ended: bool
    """True if it ended with a stop token or stop string, False if max_new_tokens ended it"""


Watch = Callable[[list[list[int]], Sequence[bool]], Sequence[bool]]
"""(new tokens of each row, which rows have ended) → which rows to end."""


def prompt_length(length: int) -> int:
    """The smallest power of two that is at least `length`."""
    return max(SHORTEST_PROMPT, 1 << (length - 1).bit_length())


def generate_ids(
    apply: Apply,
    params: PyTree,
    config: ModelConfig,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    stops: Stops,
    watch: Watch | None = None,
    images: UInt8[np.ndarray, "B F H W C"] | Float[np.ndarray, "B F H W C"] | None = None,
) -> list[list[Output]]:
    """Generates from one batch of prompts, `num_return_sequences` outputs per prompt.

    Args:
      apply: runs a model that has `prefill` and `extend`.
      params: its parameters.
      config: its config.
      prompts: token ids.
      decoding: how to choose tokens.
      stops: which tokens end a sequence.
      watch: called every `WATCH_EVERY` tokens; not with beam search.
      images: the pixels that belong to each prompt; None: the prompts are texts alone.

    Raises:
      UserError: a prompt is empty, or prompt and new tokens exceed the model's context.
    """
    check_prompts(config, prompts, decoding)
    width = prompt_length(max(map(len, prompts)))
    ids = np.full((len(prompts), width), stops.pad, np.int32)
    for row, prompt in zip(ids, prompts, strict=True):
        row[width - len(prompt) :] = prompt
    starts = np.asarray([width - len(prompt) for prompt in prompts], np.int32)
    given = {"prompts": ids, "starts": starts} | ({} if images is None else {"images": images})
    static = {
        "apply": apply,
        "start_id": config.start_id,
        "decoding": dataclasses.replace(decoding, seed=0),  # the seed is no reason to compile again
        "stops": stops,
    }
    if decoding.num_beams > 1:
        if watch is not None:
            raise UserError("beam search can neither stream nor look for stop strings while it runs")
        state = search_beams(**static, params=params, **given)
        tokens, lengths, scores = fetch((state.results, state.result_length, state.result_score))
    else:
        seeds = np.stack([prompt_key(decoding.seed, prompt) for prompt in prompts])
        state = start_sampling(**static, params=params, **given, seeds=seeds)
        state = finish_sampling(
            state, functools.partial(continue_sampling, **static, params=params), decoding, stops, watch
        )
        tokens, lengths, scores = fetch((state.tokens, state.length, state.score))
        shape = (len(prompts), decoding.num_return_sequences)
        tokens, lengths, scores = tokens.reshape(*shape, -1), lengths.reshape(shape), scores.reshape(shape)
    new = tokens[..., tokens.shape[-1] - decoding.max_new_tokens :]
    return [
        [
            make_output(new[b, k, : lengths[b, k]], float(scores[b, k]), stops)
            for k in range(decoding.num_return_sequences)
        ]
        for b in range(len(prompts))
    ]


def prompt_key(seed: int, prompt: Sequence[int]) -> np.ndarray:
    """Data of a random key of the seed and the tokens of a prompt: other prompts do not change its samples."""
    tokens = zlib.crc32(np.asarray(prompt, np.int32).tobytes())
    return np.asarray(jax.random.key_data(jax.random.fold_in(jax.random.key(seed), tokens)))


def make_output(ids: np.ndarray, score: float, stops: Stops) -> Output:
    """An output without its stop token."""
    ended = len(ids) > 0 and int(ids[-1]) in stops.tokens
    return Output(ids[: len(ids) - ended].tolist(), score, bool(ended))


def finish_sampling(
    state: SampleState, extend: Callable[..., SampleState], decoding: Decoding, stops: Stops, watch: Watch | None
) -> SampleState:
    """Extends the sequences until all have ended, with a call of `watch` every `WATCH_EVERY` tokens."""
    if watch is None:
        return extend(state=state, until=decoding.max_new_tokens)
    until = 1
    while True:
        tokens, lengths, done = fetch((state.tokens, state.length, state.done))
        new = tokens[:, tokens.shape[1] - decoding.max_new_tokens :]
        rows = [make_output(row[:n], 0.0, stops).ids for row, n in zip(new, lengths, strict=True)]
        done = done | np.asarray(watch(rows, (done | (until >= decoding.max_new_tokens)).tolist()), bool)
        state = state._replace(done=jnp.asarray(done))
        if done.all() or until >= decoding.max_new_tokens:
            return state
        until = min(until + WATCH_EVERY, decoding.max_new_tokens)
        state = extend(state=state, until=until)


def check_prompts(config: ModelConfig, prompts: Sequence[Sequence[int]], decoding: Decoding) -> None:
    """Raises UserError if a prompt is empty or too long, or the settings do not fit the model."""
    is_decoder = config.architecture == "decoder"
    if decoding.bidirectional and not is_decoder:
        raise UserError("bidirectional=True is for decoders; the encoder of this model is bidirectional anyway")
    for number, prompt in enumerate(prompts, start=1):
        if not len(prompt):
            raise UserError(f"prompt {number} is empty")
        if is_decoder and len(prompt) + decoding.max_new_tokens > config.max_len:
            room = config.max_len - len(prompt)
            advice = f"; lower max_new_tokens to {room}" if room > 0 else ""
            raise UserError(
                f"prompt {number} has {len(prompt)} tokens and asks for {decoding.max_new_tokens} more, but the model's"
                f" context is {config.max_len}{advice}"
            )


# -- text -------------------------------------------------------------------------------------------------------------


class Text(NamedTuple):
    """One generated text."""

    text: str
    score: float
    """log probability of its tokens; for beam search divided by length^length_penalty"""
    ended: bool
    """True if it ended with a stop token or stop string, False if max_new_tokens ended it"""


def generate(
    model: Model,
    prompts: Sequence[str],
    decoding: Decoding | None = None,
    *,
    stop: Sequence[str] = (),
    batch_size: int = 16,
    on_text: Callable[[int, int, str], None] | None = None,
    pixels: Pixels | None = None,
) -> Iterator[list[Text]]:
    """Continues each prompt (decoders) or answers it (encoder–decoders).

    Args:
      model: a decoder or encoder–decoder, from `bertgpt.load`.
      prompts: texts; special tokens in them are read as such.
      decoding: how to choose tokens; None: as generation_config.json of the model says, else greedy search, at most
        64 tokens.
      stop: special tokens or strings that end a text, besides the model's own end tokens; the text ends before them.
      batch_size: prompts per batch.
      on_text: called with (index of the prompt, index of the output, new text) while text is generated.
      pixels: gives the image of each prompt; None: the prompts are texts alone.

    Yields:
      The outputs of each prompt, in the order of the prompts.

    Raises:
      UserError: the model is an encoder or has no tokenizer, or a prompt is empty or too long.

    Examples:
      >>> model = bertgpt.load("runs/gpt2")  # doctest: +SKIP
      >>> next(bertgpt.generate(model, ["Once upon a time"]))[0].text  # doctest: +SKIP
      ' there was'
    """
    check_writes(model)
    ids = prompt_ids(model, prompts)
    how = {"stop": stop, "batch_size": batch_size, "on_text": on_text, "pixels": pixels}
    yield from continue_ids(model, ids, decoding or model.decoding, **how)


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
    pixels: Pixels | None = None,
) -> Iterator[list[Text]]:
    """`generate` for prompts that are token ids."""
    tokenizer = model.tokenizer
    check_prompts(model.config, ids, decoding)
    stops, strings = split_stops(model, stop)
    for first in range(0, len(ids), batch_size):
        part = ids[first : first + batch_size]
        returns = decoding.num_return_sequences
        stream = Stream(tokenizer, strings, returns, first, len(part) * returns, on_text)
        watch = stream if strings and decoding.num_beams == 1 or on_text else None
        # The last batch is filled up, so that no other batch size is compiled.
        chosen = [*range(first, first + len(part)), *[first] * (min(batch_size, len(ids)) - len(part))]
        filled, images = [ids[i] for i in chosen], None if pixels is None else pixels(np.asarray(chosen))
        outputs = generate_ids(model.apply, model.params, model.config, filled, decoding, stops, watch, images)
        for row in outputs[: len(part)]:
            yield [make_text(tokenizer.decode(output.ids), strings, output) for output in row]


def split_stops(model: Model, stop: Sequence[str]) -> tuple[Stops, list[str]]:
    """The tokens that end a text of the model, special tokens among `stop` included, and the other strings."""
    tokenizer = model.tokenizer
    special = {text: i for text in stop if (i := tokenizer.backend.token_to_id(text)) in tokenizer.vocab.special}
    return stops_of(tokenizer, special.values(), model.stop_ids), [text for text in stop if text not in special]


def stops_of(tokenizer: Tokenizer, more: Iterable[int] = (), own: Sequence[int] = ()) -> Stops:
    """The tokens that end a text: those of the model, or the tokenizer's end token if it names none, and `more`."""
    vocab = tokenizer.vocab
    end = vocab.sep if vocab.eos is None else vocab.eos
    own = [i for i in own if i < vocab.size] or ([] if end is None else [end])
    return Stops(tuple(dict.fromkeys([*own, *more])), vocab.pad or 0, vocab.size)


def answers(
    apply: Apply,
    params: PyTree,
    config: ModelConfig,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    batch_size: int,
    pixels: Pixels | None = None,
) -> list[str]:
    """The best text for each prompt of token ids, for evaluations. Prompts of similar length are batched together.

    Args:
      apply: runs the model.
      params: parameters as training arranges them.
      config: the model's config.
      tokenizer: its tokenizer.
      prompts: token ids.
      decoding: how to choose tokens.
      batch_size: prompts per batch.
      pixels: gives the images of prompts; None: the prompts are texts alone.
    """
    params, stops = for_inference(params, config.stacks, "float32"), stops_of(tokenizer)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found = [""] * len(prompts)
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        rows = [*chosen, *[chosen[0]] * (min(batch_size, len(order)) - len(chosen))]
        filled, images = [prompts[i] for i in rows], None if pixels is None else pixels(np.asarray(rows))
        outputs = generate_ids(apply, params, config, filled, decoding, stops, images=images)
        for number, row in zip(chosen, outputs, strict=False):
            found[number] = tokenizer.decode(row[0].ids)
    return found


def prompt_ids(model: Model, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of the prompts in the tokenizer's template; decoders get no end token after a prompt."""
    before, after = model.tokenizer.template
    ids = model.tokenizer.encode(list(prompts), parse_special=True)
    if model.config.architecture == "decoder":
        after = []
    return [[*before, *row, *after] if row else [] for row in ids]


def cut(text: str, strings: Sequence[str]) -> str:
    """The text before the first stop string."""
    return text[: min((i for s in strings if (i := text.find(s)) >= 0), default=len(text))]


def final_length(text: str, strings: Sequence[str]) -> int:
    """Characters of an unfinished text that further tokens do not change.

    Incomplete characters at its end, and what may be the beginning of a stop string, do not count.
    """
    text = text.rstrip("\ufffd")
    return len(text) - max((n for s in strings for n in range(1, len(s)) if text.endswith(s[:n])), default=0)


def make_text(text: str, strings: Sequence[str], output: Output) -> Text:
    """A decoded output, cut before the first stop string."""
    kept = cut(text, strings)
    return Text(kept, output.score, output.ended or kept != text)


@dataclasses.dataclass
class Stream:
    """A `Watch` that passes new text on and ends rows that contain a stop string."""

    tokenizer: Tokenizer
    strings: Sequence[str]
    returns: int
    """rows per prompt"""
    first: int
    """index of the first prompt of the batch"""
    real: int
    """number of rows that are not just filling up the batch"""
    on_text: Callable[[int, int, str], None] | None
    sent: dict[int, int] = dataclasses.field(default_factory=dict)
    """row → number of characters passed on"""

    def __call__(self, rows: list[list[int]], done: Sequence[bool]) -> list[bool]:
        ends = []
        for number, ids in enumerate(rows):
            text = self.tokenizer.decode(ids)
            kept = cut(text, self.strings)
            ends.append(kept != text)
            if self.on_text is not None and number < self.real:
                end = len(kept) if done[number] or ends[-1] else final_length(kept, self.strings)
                start = self.sent.get(number, 0)
                if end > start:
                    self.on_text(self.first + number // self.returns, number % self.returns, kept[start:end])
                    self.sent[number] = end
        return ends
