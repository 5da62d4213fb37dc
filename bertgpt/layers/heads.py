"""Layers that turn hidden states into predictions. Each is created only if an objective calls it."""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bertgpt.layers import crf
from bertgpt.layers.linear import Dropout, Init, LayerNorm, Linear, tied_matmul
from bertgpt.layers.mlp import ACTIVATIONS, Activation
from bertgpt.sharding import constrain

Chains = tuple[Bool[Array, "B W"], Bool[Array, "B W"], Bool[Array, "B W"], Bool[Array, "B W"]]
Rules = tuple[Bool[Array, " C"], Bool[Array, "C C"]]


class MlmHead(nn.Module):
    """Scores of every word at given positions, with output vectors tied to the input embedding E.

    plain: eᵥᵀh, no transform and no bias, the form in which the loss is derived (docs/mlm_loss.md).
    transform: eᵥᵀ LN(act(W h + b)) + cᵥ, the form of BERT's released code; W goes to the embedding's width E, which is
      D except in ALBERT and ELECTRA.
    """

    form: Literal["plain", "transform"]
    activation: Activation
    norm_eps: float
    kernel_init: Init

    @nn.compact
    def __call__(self, h: Float[Array, "*batch D"], embedding: Float[Array, "V E"]) -> Float[Array, "*batch V"]:
        if self.form == "transform":
            h = Linear((embedding.shape[-1],), ("embed", "norm"), self.kernel_init, name="dense")(h)
            h = LayerNorm(self.norm_eps, name="norm")(ACTIVATIONS[self.activation](h))
        flat = tied_matmul(h.reshape(-1, h.shape[-1]), embedding)
        logits = flat.reshape(*h.shape[:-1], embedding.shape[0])
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        if self.form == "transform":
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("vocab",))
            logits = logits + self.param("bias", zeros, (embedding.shape[0],))
        return constrain(logits, ("batch",) + (None,) * (logits.ndim - 2) + ("vocab",))


class RtdHead(nn.Module):
    """wᵀ act(W h + b) + c for each token: log-odds that it was replaced (Clark et al. 2020 §2)."""

    activation: Activation
    kernel_init: Init

    @nn.compact
    def __call__(self, hidden: Float[Array, "B S D"]) -> Float[Array, "B S"]:
        inner = Linear((hidden.shape[-1],), ("embed", "norm"), self.kernel_init, name="dense")(hidden)
        logits = Linear((1,), ("embed", "labels"), self.kernel_init, name="score")(ACTIVATIONS[self.activation](inner))
        return logits[..., 0].astype(jnp.promote_types(logits.dtype, jnp.float32))


class TokenHead(nn.Module):
    """Dropout and one fully connected layer on every token."""

    dropout: float
    kernel_init: Init

    @nn.compact
    def __call__(self, hidden: Float[Array, "B S D"], num_labels: int) -> Float[Array, "B S C"]:
        logits = Linear((num_labels,), ("embed", "labels"), self.kernel_init, name="dense")(
            Dropout(self.dropout)(hidden)
        )
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


class CrfHead(nn.Module):
    """A linear-chain conditional random field on scores of tags (`layers.crf`); its own scores begin at 0.

    Arguments of its methods: the scores, arrays [B, W] that tell which words there are, which continue the chain of the
    word before them, begin a sentence and end one; and the rules (tags that may begin a sentence, [i, j]: tag j may
    follow tag i).
    """

    @nn.compact
    def __call__(self, num_labels: int) -> tuple[Float[Array, " C"], Float[Array, " C"], Float[Array, "C C"]]:
        """Scores of starting with each tag, of ending with it, of one [i] being followed by another [j]."""

        def scores(name: str, *axes: str) -> Array:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, axes)
            return self.param(name, zeros, (num_labels,) * len(axes))

        return scores("start", "labels"), scores("end", "labels"), scores("transitions", "labels", "labels")

    def nll(
        self, emissions: Float[Array, "B W C"], tags: Int[Array, "B W"], chains: Chains, rules: Rules
    ) -> Float[Array, " B"]:
        """−log p(tags), in nats, summed over the chains of a row."""
        potentials = self.potentials(self(emissions.shape[-1]), emissions, chains, rules)
        return crf.negative_log_likelihood(*potentials, tags)

    def decode(
        self, emissions: Float[Array, "B W C"], chains: Chains, rules: Rules, learned: bool
    ) -> Int[Array, "B W"]:
        """The tags with the highest score together, −1 where there is no word. Unless `learned`, by the rules alone."""
        count = emissions.shape[-1]
        scores = self(count) if learned else (jnp.zeros(count), jnp.zeros(count), jnp.zeros((count, count)))
        return crf.viterbi(*self.potentials(scores, emissions, chains, rules))[0]

    @staticmethod
    def potentials(scores: tuple, emissions: Array, chains: Chains, rules: Rules) -> tuple[Array, ...]:
        """What the functions of `layers.crf` take."""
        (start, end, transitions), (mask, joined, first, last) = scores, chains
        start, transitions = crf.forbid(start, transitions, rules)
        return crf.unary(emissions, start, end, first, last), transitions, mask, joined


class ClassificationHead(nn.Module):
    """Dropout and one fully connected layer on a vector per sequence (Devlin et al. 2019 §4.1)."""

    dropout: float
    kernel_init: Init

    @nn.compact
    def __call__(self, pooled: Float[Array, "*N D"], num_labels: int) -> Float[Array, "*N C"]:
        logits = Linear((num_labels,), ("embed", "labels"), self.kernel_init, name="dense")(
            Dropout(self.dropout)(pooled)
        )
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


class TaskLayers(nn.Module):
    """The layers that are a task's own where several share an encoder; those of them that its objective calls."""

    dropout: float
    kernel_init: Init

    def setup(self):
        self.classifier = ClassificationHead(self.dropout, self.kernel_init)
        self.tagger = TokenHead(self.dropout, self.kernel_init)
        self.crf = CrfHead()
        self.span_head = TokenHead(0.0, self.kernel_init)


def mean_pool(hidden: Float[Array, "B S D"], segment_ids: Int[Array, "B S"]) -> Float[Array, "B D"]:
    """Mean of the states of all tokens that are not padding."""
    real = (segment_ids > 0)[..., None].astype(hidden.dtype)
    return jnp.sum(hidden * real, axis=1) / jnp.maximum(jnp.sum(real, axis=1), 1)


def in_segment(segment_ids: Int[Array, "B S"], count: int) -> Bool[Array, "B N S"]:
    """Whether each token belongs to segment 1 … count of a packed row."""
    return segment_ids[:, None, :] == jnp.arange(1, count + 1)[:, None]


def mean_of_segments(
    hidden: Float[Array, "B S D"], segment_ids: Int[Array, "B S"], count: int
) -> Float[Array, "B N D"]:
    """Mean of the states of each segment of a packed row; 0 for a segment that is not there."""
    inside = in_segment(segment_ids, count).astype(hidden.dtype)
    return inside @ hidden / jnp.maximum(jnp.sum(inside, axis=-1), 1)[..., None]


def ends_of_segments(
    hidden: Float[Array, "B S D"], segment_ids: Int[Array, "B S"], count: int, end: Literal["first", "last"]
) -> Float[Array, "B N D"]:
    """State of the first or last token of each segment of a packed row."""
    inside, places = in_segment(segment_ids, count), jnp.arange(segment_ids.shape[1])
    place = jnp.argmax(inside, axis=-1) if end == "first" else jnp.max(jnp.where(inside, places, 0), axis=-1)
    return jnp.take_along_axis(hidden, place[..., None], axis=1)
