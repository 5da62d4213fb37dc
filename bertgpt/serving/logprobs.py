"""Log probabilities of given tokens and of the most probable ones in their place, and the text of each token."""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from bertgpt.data.tokenizer import Tokenizer
from bertgpt.inference.encode import pad, padded_length
from bertgpt.inference.model import Model
from bertgpt.types import Apply, Inputs


class Alternative(NamedTuple):
    """A token that could stand in place of another."""

    id: int
    logprob: float


class Scored(NamedTuple):
    """Tokens as the model's unmodified logits see them: sampling settings do not enter."""

    logprobs: tuple[float, ...]
    """log probability of each token, in nats"""
    alternatives: tuple[tuple[Alternative, ...], ...]
    """the most probable tokens in place of each one, most probable first"""


def score_tokens(model: Model, prompt: Sequence[int], ids: Sequence[int], top: int) -> Scored:
    """Scores tokens that follow a prompt, in one pass over all of them.

    Args:
      model: a decoder, or an encoder–decoder, whose encoder reads the prompt.
      prompt: token ids, at least one.
      ids: the tokens to score.
      top: number of alternatives of each token.
    """
    if not ids:
        return Scored((), ())

    def padded(tokens: Sequence[int]) -> Inputs:
        width = max(min(padded_length(len(tokens)), model.config.max_len), len(tokens))
        return Inputs(*pad([tokens], 1, width))

    if model.config.architecture == "decoder":
        inputs, first = padded([*prompt, *ids[:-1]]), len(prompt) - 1
    else:
        inputs, first = padded(prompt)._replace(decoder=padded([model.config.start_id, *ids[:-1]])), 0
    asked = np.zeros((padded_length(len(ids)), 2), np.int32)
    asked[: len(ids)] = np.stack([first + np.arange(len(ids)), ids], axis=1)
    size = model.tokenizer.vocab.size
    own, best, values = _score(model.apply, size, min(max(top, 1), size), model.params, inputs, asked)
    rows = zip(np.asarray(best)[: len(ids), :top].tolist(), np.asarray(values)[: len(ids), :top].tolist(), strict=True)
    alternatives = tuple(tuple(map(Alternative, tokens, logprobs)) for tokens, logprobs in rows)
    return Scored(tuple(np.asarray(own)[: len(ids)].tolist()), alternatives)


@functools.partial(jax.jit, static_argnames=("apply", "vocab_size", "top"))
def _score(
    apply: Apply, vocab_size: int, top: int, params: PyTree, inputs: Inputs, asked: Int[Array, "N 2"]
) -> tuple[Float[Array, " N"], Int[Array, "N K"], Float[Array, "N K"]]:
    """(log p of each token, the best tokens in its place, their log p) for rows (position, token)."""
    hidden = apply(params, inputs)[0, asked[:, 0]]
    log_p = jax.nn.log_softmax(apply(params, method="lm_logits", hidden=hidden)[:, :vocab_size])
    values, best = jax.lax.top_k(log_p, top)
    return jnp.take_along_axis(log_p, asked[:, 1:], axis=-1)[:, 0], best, values


def token_texts(tokenizer: Tokenizer, ids: Sequence[int]) -> Iterator[str]:
    """The text that each token adds; together they are the text of all. Bytes of a character go with its last token."""
    start = read = 0
    for end in range(1, len(ids) + 1):
        known, now = tokenizer.decode(list(ids[start:read])), tokenizer.decode(list(ids[start:end]))
        if now.endswith("\ufffd") and end < len(ids):
            yield ""
            continue
        yield now[len(known) :]
        start, read = read, end


def token_name(tokenizer: Tokenizer, token: int) -> str:
    """The text of one token on its own; the name of a token that has none, such as an end token."""
    return tokenizer.decode([token]) or tokenizer.tokens([token])[0]
