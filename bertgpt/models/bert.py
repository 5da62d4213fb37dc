"""BERT (Devlin et al. 2019) and, as numbers on it, RoBERTa (Liu et al. 2019).

    h⁰ = LN(E[token] + P[position] + T[type]);   hˡ = Block(hˡ⁻¹), l = 1…L

The module has a method for each thing an objective may ask for: hidden states, MLM scores, pooled vector, class scores.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bertgpt.config import UserError
from bertgpt.layers.attention import segment_mask
from bertgpt.layers.linear import Dropout, LayerNorm, Linear, truncated_normal
from bertgpt.layers.mlp import Activation
from bertgpt.layers.stack import EncoderBlock, stack
from bertgpt.models.heads import ClassificationHead, MlmHead
from bertgpt.sharding import constrain


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Architecture of a BERT encoder."""

    vocab_size: int = 30_522
    """rows of the embedding table; at least the tokens of the tokenizer"""
    d_model: int = 768
    """width of the hidden states"""
    num_layers: int = 12
    """Transformer blocks"""
    num_heads: int = 12
    """attention heads in each block; d_model must be divisible by it"""
    d_ff: int = 3072
    """width inside the feed-forward network"""
    max_len: int = 512
    """longest sequence: rows of the position table"""
    num_types: int = 2
    """token types (sentence A and B); 0 leaves them out, as RoBERTa does"""
    first_position: int = 0
    """row of the position table used by the first token (RoBERTa: 2)"""
    activation: Activation = "gelu_tanh"
    """nonlinearity of the feed-forward network and of the MLM head"""
    norm_position: Literal["post", "pre"] = "post"
    """layer norm after each residual sum (BERT) or before each sublayer"""
    norm_eps: float = 1e-12
    """epsilon of every layer norm"""
    dropout: float = 0.1
    """dropout on embeddings, sublayer outputs and the pooled vector"""
    attention_dropout: float = 0.1
    """dropout on attention weights"""
    mlm_head: Literal["transform", "plain"] = "transform"
    """BERT's released head, or the derivation's plain product with the embedding"""
    pooler: Literal["tanh", "first", "mean"] = "tanh"
    """vector of the sequence: tanh(W h_[CLS] + b) (BERT), h_[CLS] itself, or the mean of h over all tokens"""
    stddev: float = 0.02
    """standard deviation of initial weights"""
    scan: bool = False
    """compile one block and loop over it (for deep models) instead of unrolling all"""

    def __post_init__(self):
        for field in ("vocab_size", "d_model", "num_layers", "num_heads", "d_ff", "max_len"):
            if getattr(self, field) < 1:
                raise UserError(f"Bert: {field}={getattr(self, field)} must be at least 1")
        if self.d_model % self.num_heads:
            raise UserError(f"Bert: d_model={self.d_model} is not divisible by num_heads={self.num_heads}")
        for field in ("dropout", "attention_dropout"):
            if not 0.0 <= getattr(self, field) < 1.0:
                raise UserError(f"Bert: {field}={getattr(self, field)} must lie in [0, 1)")

    def make(self, dtype: str = "float32") -> "Bert":
        """The flax module, computing in `dtype`."""
        return Bert(self, jnp.dtype(dtype))


class Bert(nn.Module):
    config: BertConfig
    dtype: jnp.dtype

    def setup(self):
        c = self.config

        def table(name: str, axis: str, rows: int) -> Float[Array, "rows D"]:
            init = nn.with_logical_partitioning(truncated_normal(c.stddev), (axis, "embed"))
            return self.param(name, init, (rows, c.d_model))

        self.token_embedding = table("token_embedding", "vocab", c.vocab_size)
        self.position_embedding = table("position_embedding", "positions", c.max_len + c.first_position)
        if c.num_types:
            self.type_embedding = table("type_embedding", "types", c.num_types)
        self.embedding_norm = LayerNorm(c.norm_eps)
        self.embedding_dropout = Dropout(c.dropout)
        self.encoder = stack(EncoderBlock, c.num_layers, c.scan)(
            c.num_heads, c.d_ff, c.activation, c.norm_position, c.norm_eps, c.dropout, c.attention_dropout, c.stddev
        )
        if c.norm_position == "pre":
            self.final_norm = LayerNorm(c.norm_eps)
        self.mlm_head = MlmHead(c.mlm_head, c.activation, c.norm_eps, c.stddev)
        self.pooler = Linear((c.d_model,), ("embed", "norm"), c.stddev)
        self.nsp_head = ClassificationHead(0.0, c.stddev)
        self.classifier = ClassificationHead(c.dropout, c.stddev)

    def __call__(
        self,
        input_ids: Int[Array, "B S"],
        segment_ids: Int[Array, "B S"] | None = None,
        positions: Int[Array, "B S"] | None = None,
        type_ids: Int[Array, "B S"] | None = None,
    ) -> Float[Array, "B S D"]:
        """Hidden states H^L. Dropout acts if a "dropout" key is given.

        Args:
          input_ids: token ids.
          segment_ids: which document of a packed row, 1, 2, …; 0 is padding. None: one document, no padding.
          positions: place within the document, from 0. None: 0 … S−1.
          type_ids: token types. None: all 0.
        """
        c = self.config
        batch, length = input_ids.shape
        if length > c.max_len:
            raise UserError(f"Bert: a sequence of {length} tokens exceeds max_len={c.max_len}")
        positions = jnp.arange(length)[None] if positions is None else positions
        x = lookup(self.token_embedding, "vocab", input_ids)
        x = x + lookup(self.position_embedding, "positions", positions + c.first_position)
        if c.num_types:
            x = x + lookup(self.type_embedding, "types", jnp.zeros((1, 1), int) if type_ids is None else type_ids)
        x = self.embedding_dropout(self.embedding_norm(x)).astype(self.dtype)
        x = constrain(x, ("batch", "seq", None))
        x, _ = self.encoder(x, None if segment_ids is None else segment_mask(segment_ids))
        return self.final_norm(x) if c.norm_position == "pre" else x

    def mlm_logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Score of every word at each given position; see `MlmHead`."""
        return self.mlm_head(hidden, self.token_embedding)

    def pool(self, hidden: Float[Array, "B S D"], segment_ids: Int[Array, "B S"]) -> Float[Array, "B D"]:
        """The vector of each row: from its first token, [CLS], or from all that are not padding."""
        if self.config.pooler == "mean":
            real = (segment_ids > 0)[..., None].astype(hidden.dtype)
            return jnp.sum(hidden * real, axis=1) / jnp.maximum(jnp.sum(real, axis=1), 1)
        first = hidden[:, 0]
        return first if self.config.pooler == "first" else jnp.tanh(self.pooler(first))

    def nsp_logits(self, hidden: Float[Array, "B S D"], segment_ids: Int[Array, "B S"]) -> Float[Array, "B 2"]:
        """Scores of “B follows A” (0) and “B is random” (1)."""
        return self.nsp_head(self.pool(hidden, segment_ids), 2)

    def class_logits(
        self, hidden: Float[Array, "B S D"], segment_ids: Int[Array, "B S"], num_labels: int
    ) -> Float[Array, "B C"]:
        """Class scores of a sequence: one fully connected layer on the pooled vector."""
        return self.classifier(self.pool(hidden, segment_ids), num_labels)


def lookup(table: Float[Array, "rows D"], axis: str, ids: Int[Array, "*batch"]) -> Float[Array, "*batch D"]:
    """table[ids]. A table whose width is sharded is gathered first, as every weight is before use."""
    return constrain(table, (axis, None))[ids]


# Sizes of google-research/bert: the paper's two and the compact models of Turc et al. 2019.
BERT_BASE = BertConfig()
BERT_LARGE = dataclasses.replace(BERT_BASE, d_model=1024, num_layers=24, num_heads=16, d_ff=4096)
BERT_MEDIUM = dataclasses.replace(BERT_BASE, d_model=512, num_layers=8, num_heads=8, d_ff=2048)
BERT_SMALL = dataclasses.replace(BERT_MEDIUM, num_layers=4)
BERT_MINI = dataclasses.replace(BERT_BASE, d_model=256, num_layers=4, num_heads=4, d_ff=1024)
BERT_TINY = dataclasses.replace(BERT_BASE, d_model=128, num_layers=2, num_heads=2, d_ff=512)

# RoBERTa: byte-level BPE of 50,265 tokens, no token types, positions counted from padding_idx + 1 = 2, GELU by erf.
ROBERTA_BASE = dataclasses.replace(
    BERT_BASE, vocab_size=50_265, num_types=0, first_position=2, activation="gelu", norm_eps=1e-5
)
ROBERTA_LARGE = dataclasses.replace(ROBERTA_BASE, d_model=1024, num_layers=24, num_heads=16, d_ff=4096)
