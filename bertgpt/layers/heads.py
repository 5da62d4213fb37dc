"""Layers that turn hidden states into predictions. Parameters exist only for the heads that an objective calls."""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bertgpt.layers import crf
from bertgpt.layers.dropout import Dropout
from bertgpt.layers.linear import Init, Linear, tied_matmul
from bertgpt.layers.mlp import ACTIVATIONS, Activation
from bertgpt.layers.norm import LayerNorm
from bertgpt.layers.quantized import Quantized
from bertgpt.sharding import constrain_logits, gather

Chains = tuple[Bool[Array, "B W"], Bool[Array, "B W"], Bool[Array, "B W"], Bool[Array, "B W"]]
Rules = tuple[Bool[Array, " C"], Bool[Array, "C C"]]


class MlmHead(nn.Module):
    """Logits over the vocabulary at given positions, with output vectors tied to the input embedding E.

    plain: eᵥᵀh, without transform or bias, as the loss is derived in docs/mlm_loss.md.
    transform: eᵥᵀ LN(act(W h + b)) + cᵥ, as in BERT's released code; W maps to the embedding's width E, which is D
      except in ALBERT and ELECTRA.
    """

    kind: Literal["plain", "transform"]
    activation: Activation
    norm_eps: float
    kernel_init: Init

    @nn.compact
    def __call__(
        self, h: Float[Array, "*batch D"], embedding: Float[Array, "V E"] | Quantized
    ) -> Float[Array, "*batch V"]:
        if self.kind == "transform":
            h = Linear((embedding.shape[-1],), ("embed", "norm"), self.kernel_init, name="dense")(h)
            h = LayerNorm(self.norm_eps, name="norm")(ACTIVATIONS[self.activation](h))
        logits = tied_matmul(h, gather(embedding, ("vocab", "embed")))
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        if self.kind == "transform":
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("vocab",))
            logits = logits + self.param("bias", zeros, (embedding.shape[0],))
        return constrain_logits(logits)


class RtdHead(nn.Module):
    """wᵀ act(W h + b) + c for each token: log-odds that it was replaced (Clark et al. 2020 §2)."""

    activation: Activation
    kernel_init: Init

    @nn.compact
    def __call__(self, hidden: Float[Array, "B S D"]) -> Float[Array, "B S"]:
        inner = Linear((hidden.shape[-1],), ("embed", "norm"), self.kernel_init, name="dense")(hidden)
        logits = Linear((1,), ("embed", "labels"), self.kernel_init, name="score")(ACTIVATIONS[self.activation](inner))
        return logits[..., 0].astype(jnp.promote_types(logits.dtype, jnp.float32))


class CrfHead(nn.Module):
    """A linear-chain conditional random field on tag logits (`layers.crf`); its own scores are initialised to 0.

    Its methods take the tag logits, `chains` and `rules`. Chains are four masks [B, W]: the word exists, it continues
    the chain of the word before it, it begins a sentence, it ends one. Rules are two masks: [i], tag i may begin a
    sentence, and [i, j], tag j may follow tag i.
    """

    @nn.compact
    def __call__(self, num_labels: int) -> tuple[Float[Array, " C"], Float[Array, " C"], Float[Array, "C C"]]:
        """Scores of starting with each tag, of ending with it, and of each transition [i, j] from tag i to tag j."""

        def scores(name: str, *axes: str) -> Array:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, axes)
            return self.param(name, zeros, (num_labels,) * len(axes))

        return scores("start", "labels"), scores("end", "labels"), scores("transitions", "labels", "labels")

    def nll(
        self, emissions: Float[Array, "B W C"], tags: Int[Array, "B W"], chains: Chains, rules: Rules
    ) -> Float[Array, " B"]:
        """−log p(tags), in nats, summed over the chains of a sequence."""
        potentials = self.potentials(self(emissions.shape[-1]), emissions, chains, rules)
        return crf.negative_log_likelihood(*potentials, tags)

    def decode(
        self, emissions: Float[Array, "B W C"], chains: Chains, rules: Rules, learned: bool
    ) -> Int[Array, "B W"]:
        """The tag sequence with the highest score, −1 where there is no word; without `learned`, only rules count."""
        count = emissions.shape[-1]
        scores = self(count) if learned else (jnp.zeros(count), jnp.zeros(count), jnp.zeros((count, count)))
        return crf.viterbi(*self.potentials(scores, emissions, chains, rules))[0]

    @staticmethod
    def potentials(scores: tuple, emissions: Array, chains: Chains, rules: Rules) -> tuple[Array, ...]:
        """The arguments of the functions in `layers.crf`."""
        (start, end, transitions), (mask, joined, first, last) = scores, chains
        start, transitions = crf.forbid(start, transitions, rules)
        return crf.unary(emissions, start, end, first, last), transitions, mask, joined


class ClassificationHead(nn.Module):
    """Dropout and one fully connected layer: for each sequence (Devlin et al. 2019 §4.1) or token (§5.3)."""

    dropout: float
    kernel_init: Init

    @nn.compact
    def __call__(self, vectors: Float[Array, "*N D"], num_labels: int) -> Float[Array, "*N C"]:
        logits = Linear((num_labels,), ("embed", "labels"), self.kernel_init, name="dense")(
            Dropout(self.dropout)(vectors)
        )
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


class TaskLayers(nn.Module):
    """Heads of one task where several tasks share an encoder; parameters exist for those that its objective calls."""

    dropout: float
    kernel_init: Init

    def setup(self):
        self.classifier = ClassificationHead(self.dropout, self.kernel_init)
        self.tagger = ClassificationHead(self.dropout, self.kernel_init)
        self.crf = CrfHead()
        self.span_head = ClassificationHead(0.0, self.kernel_init)


def mean_pool(hidden: Float[Array, "B S D"], segment_ids: Int[Array, "B S"]) -> Float[Array, "B D"]:
    """Mean of the states of all tokens that are not padding."""
    real = (segment_ids > 0)[..., None].astype(hidden.dtype)
    return jnp.sum(hidden * real, axis=1) / jnp.maximum(jnp.sum(real, axis=1), 1)


def in_segment(segment_ids: Int[Array, "B S"], count: int) -> Bool[Array, "B N S"]:
    """Whether each token belongs to segment 1 … count of a packed sequence."""
    return segment_ids[:, None, :] == jnp.arange(1, count + 1)[:, None]


def mean_of_segments(
    hidden: Float[Array, "B S D"], segment_ids: Int[Array, "B S"], count: int
) -> Float[Array, "B N D"]:
    """Mean of the states of each segment of a packed sequence; 0 for segments that do not exist."""
    inside = in_segment(segment_ids, count).astype(hidden.dtype)
    return inside @ hidden / jnp.maximum(jnp.sum(inside, axis=-1), 1)[..., None]


def ends_of_segments(
    hidden: Float[Array, "B S D"], segment_ids: Int[Array, "B S"], count: int, end: Literal["first", "last"]
) -> Float[Array, "B N D"]:
    """State of the first or last token of each segment of a packed sequence."""
    inside, columns = in_segment(segment_ids, count), jnp.arange(segment_ids.shape[1])
    index = jnp.argmax(inside, axis=-1) if end == "first" else jnp.max(jnp.where(inside, columns, 0), axis=-1)
    return jnp.take_along_axis(hidden, index[..., None], axis=1)
