"""Log probabilities of given tokens and of the most probable ones in their place, and the text of each token."""

import functools
import itertools
import os
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from bertgpt.data.tokenizer import Tokenizer
from bertgpt.inference.encode import pad, padded_length
from bertgpt.inference.model import Model
from bertgpt.inference.slots import MAX_ALTERNATIVES
from bertgpt.types import Apply, Inputs

CONTEXT = 16
"""tokens before one that say how its text begins"""


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
      top: number of alternatives of each token, at most `MAX_ALTERNATIVES`.
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
    # As many alternatives for all callers, so that their number does not compile another program.
    own, best, values = _score(model.apply, size, min(MAX_ALTERNATIVES, size), model.params, inputs, asked)
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


def token_texts(
    tokenizer: Tokenizer, ids: Sequence[int], before: Sequence[int] = (), complete: bool = True
) -> list[str]:
    """The text that each token adds; together they are the text of all.

    A character that needs several tokens goes with the last of them.

    Args:
      tokenizer: of the ids.
      ids: the tokens.
      before: the tokens before them, of which the last ones say how the first text begins.
      complete: whether the text ends with them; otherwise further tokens may complete its last character.
    """
    context = list(before[-CONTEXT:])
    every, start = [*context, *ids], len(context)
    whole = tokenizer.decode(every)
    if not complete:
        whole = whole.rstrip("\ufffd")
    ends = [_common(tokenizer.decode(every[:end]), whole) for end in range(start, len(every))] + [len(whole)]
    ends = list(itertools.accumulate(ends, max))
    return [whole[a:b] for a, b in itertools.pairwise(ends)] if ids else []


def name_alternatives(
    tokenizer: Tokenizer,
    ids: Sequence[int],
    texts: Sequence[str],
    alternatives: Sequence[Sequence[Alternative]],
    before: Sequence[int] = (),
) -> list[dict[str, float]]:
    """For each token: name → log probability of the most probable tokens in its place, most probable first.

    The name of the token itself is its own text, so that it is found among them; the others are called by the text that
    they would add there. Where that is none or taken, the vocabulary's name stands.

    Args:
      tokenizer: of the ids.
      ids: the tokens.
      texts: the text of each, from `token_texts`.
      alternatives: the tokens that could stand in place of each.
      before: the tokens before all of them.
    """
    every, named = [*before[-CONTEXT:], *ids], []
    for end, token, text, row in zip(range(len(every) - len(ids), len(every)), ids, texts, alternatives, strict=True):
        context = every[max(end - CONTEXT, 0) : end]
        known, names = tokenizer.decode(context), {}
        for item in row:
            if item.id == token:
                name = text
            else:
                now = tokenizer.decode([*context, item.id])
                name = now[_common(known, now) :]
                if not name or name in names or name == text:
                    (name,) = tokenizer.tokens([item.id])
            names[name] = item.logprob
        named.append(names)
    return named


def _common(first: str, second: str) -> int:
    """How many characters two texts begin with alike."""
    return len(first) if second.startswith(first) else len(os.path.commonprefix((first, second)))
