"""BERT (Devlin et al. 2019) and, as numbers on it, RoBERTa, DistilBERT, MiniLM and ALBERT.

    h⁰ = LN(E[token] + P[position] + T[type]);   hˡ = Block(hˡ⁻¹), l = 1…L

The module has one method for each output that an objective may ask for: hidden states, logits, pooled vectors.
"""

import dataclasses
from typing import Annotated, Any, ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bertgpt.layers.block import Block
from bertgpt.layers.dropout import Dropout
from bertgpt.layers.embed import Embeddings, drop_prefix, include_prefix, total_length
from bertgpt.layers.heads import (
    Chains,
    ClassificationHead,
    CrfHead,
    MlmHead,
    RtdHead,
    Rules,
    TaskLayers,
    ends_of_segments,
    mean_of_segments,
    mean_pool,
)
from bertgpt.layers.linear import Linear, truncated_normal
from bertgpt.layers.masks import Attention, Mask, make_mask
from bertgpt.layers.mlp import ACTIVATIONS, Activation
from bertgpt.layers.norm import LayerNorm
from bertgpt.layers.stack import run_stack, stack
from bertgpt.models.apply import ModelModule
from bertgpt.models.config import TransformerConfig
from bertgpt.ranges import Count, Epsilon, Layers, Natural, Range, Rate, Remat, Width, remat_policy
from bertgpt.sharding import constrain
from bertgpt.types import Architecture, Inputs, UserError


@dataclasses.dataclass(frozen=True)
class BertConfig(TransformerConfig):
    """Architecture of a BERT encoder."""

    vocab_size: Count = 30_522
    """rows of the embedding table; at least the tokens of the tokenizer"""
    embed_dim: Width | None = None
    """width of the embedding tables, projected up to d_model (ALBERT, ELECTRA); None: d_model"""
    shared_groups: Layers | None = None
    """this many different blocks, each shared by as many consecutive layers (ALBERT: 1); None: no sharing"""
    max_len: Count = 512
    """longest sequence: rows of the position table"""
    num_types: Annotated[int, Range(0, 1_000)] = 2
    """token types (sentence A and B); 0: none, as in RoBERTa"""
    first_position: Natural = 0
    """row of the position table used by the first token (RoBERTa: 2)"""
    activation: Activation = "gelu_tanh"
    """nonlinearity of the feed-forward network and of the MLM head"""
    norm_position: Literal["post", "pre"] = "post"
    """layer norm after each residual sum (BERT) or before each sublayer"""
    norm_eps: Epsilon = 1e-12
    """epsilon of every layer norm"""
    dropout: Rate = 0.1
    """dropout on embeddings, sublayer outputs and the pooled vector"""
    attention_dropout: Rate = 0.1
    """dropout on attention weights"""
    classifier_dropout: Rate | None = None
    """dropout before the head of a task; None: as `dropout`"""
    mlm_head: Literal["transform", "plain"] = "transform"
    """BERT's released head, or the derivation's plain product with the embedding"""
    pooler: Literal["tanh", "relu", "dropout_tanh", "dropout_gelu", "first", "mean"] = "tanh"
    """vector of the sequence: act(W h_[CLS] + b), with tanh in BERT, ReLU in DistilBERT, dropout before W and tanh in
    RoBERTa or GELU in ELECTRA; first: h_[CLS] itself; mean: the mean of h over all tokens"""
    adapter_dim: Width | None = None
    """width of adapters after attention and feed-forward in every block (Houlsby et al. 2019); None: none"""
    stddev: Annotated[float, Range(0.0, 1.0, above=True)] = 0.02
    """standard deviation of initial weights"""
    attention: Attention = "auto"
    """what computes attention: all scores at once (xla), blocks of them (chunked), a TPU kernel (flash) or cuDNN; auto:
    a kernel where it applies, else xla for up to 1,024 tokens and chunked beyond"""
    scan: bool = False
    """compile one block and loop over it (for deep models) instead of unrolling the stack"""
    remat: Remat = "none"
    """what the backward pass recomputes instead of storing it: nothing; all but the results of dense layers (dots); all
    but queries, keys, values, attention outputs and inner activations (names); everything (full)"""

    architecture: ClassVar[Architecture] = "encoder"
    outputs: ClassVar[frozenset[str]] = frozenset(
        """mlm_logits lens_logits pool nsp_logits class_logits tag_logits crf_nll best_tags span_logits rtd_logits
        project_states""".split()
    )

    def __post_init__(self):
        self.check("Bert")
        object.__setattr__(self, "remat", remat_policy(self.remat))
        if self.shared_groups is not None and self.num_layers % self.shared_groups:
            raise UserError(
                f"Bert: num_layers={self.num_layers} is not divisible by shared_groups={self.shared_groups}"
            )
        if self.mlm_head == "plain" and self.embed_dim not in (None, self.d_model):
            raise UserError(
                f"Bert: mlm_head='plain' is a product with the embedding, whose embed_dim={self.embed_dim} must then be"
                f" d_model={self.d_model}"
            )

    @property
    def stacks(self) -> tuple[str, ...]:
        """Paths of parameters that have a leading axis of layers."""
        return ("encoder",) if self.shared_groups is None else ()

    def make(self, dtype: str = "float32") -> "Bert":
        """The flax module, computing in `dtype`."""
        return Bert(self, jnp.dtype(dtype))


def make_embeddings(c: BertConfig) -> Embeddings:
    """The embedding layer of a config."""
    return Embeddings(
        vocab_size=c.vocab_size,
        width=c.embed_dim or c.d_model,
        num_positions=c.max_len + c.first_position,
        num_types=c.num_types,
        norm_eps=c.norm_eps,
        dropout=c.dropout,
        kernel_init=truncated_normal(c.stddev),
        first_position=c.first_position,
    )


class SharedBlocks(nn.Module):
    """Consecutive layers that share the parameters of one block (Lan et al. 2020 §3.1)."""

    config: BertConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"], mask: Mask | Array | None) -> tuple[Float[Array, "B S D"], None]:
        c = self.config
        repeats = c.num_layers // c.shared_groups
        return stack(Block, repeats, c.scan, c.remat, shared=True)(**block_settings(c), name="block")(x, mask)


def block_settings(c: BertConfig) -> dict[str, Any]:
    """Arguments of `Block`."""
    return {
        "num_heads": c.num_heads,
        "head_dim": c.head_dim,
        "d_ff": c.d_ff,
        "activation": c.activation,
        "norm_position": c.norm_position,
        "norm_eps": c.norm_eps,
        "dropout": c.dropout,
        "attention_dropout": c.attention_dropout,
        "kernel_init": truncated_normal(c.stddev),
        "adapter_dim": c.adapter_dim,
    }


POOLERS = {
    "tanh": jnp.tanh,
    "dropout_tanh": jnp.tanh,
    "dropout_gelu": ACTIVATIONS["gelu"],
    "relu": ACTIVATIONS["relu"],
}


class Bert(ModelModule):
    """The encoder and its heads."""

    config: BertConfig
    dtype: jnp.dtype
    shared_embeddings: Embeddings | None = None
    """embeddings of another model to use instead of its own (ELECTRA)"""

    task_methods: ClassVar[frozenset[str]] = frozenset(
        ("class_logits", "tag_logits", "crf_nll", "best_tags", "span_logits")
    )

    def setup(self):
        c, init = self.config, truncated_normal(self.config.stddev)
        if self.shared_embeddings is None:
            self.embeddings = make_embeddings(c)
        if c.embed_dim is not None and c.embed_dim != c.d_model:
            self.embedding_projection = Linear((c.d_model,), ("norm", "embed"), init)
        if c.shared_groups is None:
            self.encoder = stack(Block, c.num_layers, c.scan, c.remat)(**block_settings(c))
        else:
            self.encoder = stack(SharedBlocks, c.shared_groups, c.scan)(c)
        if c.norm_position == "pre":
            self.final_norm = LayerNorm(c.norm_eps)
        task_dropout = self.task_dropout
        self.mlm_head = MlmHead(c.mlm_head, c.activation, c.norm_eps, init)
        self.pooler = Linear((c.d_model,), ("embed", "norm"), init)
        self.nsp_head = ClassificationHead(0.0, init)
        self.rtd_head = RtdHead(c.activation, init)
        self.classifier = ClassificationHead(task_dropout, init)
        self.tagger = ClassificationHead(task_dropout, init)
        self.crf = CrfHead()
        self.span_head = ClassificationHead(0.0, init)
        self.state_projection = ClassificationHead(0.0, init)
        self.drop = Dropout(task_dropout)

    @property
    def task_dropout(self) -> float:
        """Dropout before the heads."""
        return self.config.dropout if self.config.classifier_dropout is None else self.config.classifier_dropout

    def __call__(self, inputs: Inputs) -> Float[Array, "B S D"]:
        """Hidden states H^L of the tokens. Dropout acts if a "dropout" key is given.

        Raises:
          UserError: the sequence is longer than max_len, or has a prefix and is packed.
        """
        c = self.config
        if total_length(inputs) > c.max_len:
            raise UserError(f"Bert: a sequence of {total_length(inputs)} tokens exceeds max_len={c.max_len}")
        inputs = include_prefix(inputs)
        embeddings = self.shared_embeddings or self.embeddings
        x = embeddings(inputs).astype(self.dtype)
        if c.embed_dim is not None and c.embed_dim != c.d_model:
            x = self.embedding_projection(x)
        x = constrain(x, ("batch", "seq", None))
        self.sow("intermediates", "embedded", x)
        mask = make_mask(
            c.attention, (x.shape[1],) * 2, c.head_width, x.dtype,
            Mask(inputs.segment_ids, inputs.segment_ids),
            dropout=c.attention_dropout > 0 and self.has_rng("dropout"),
        )  # fmt: skip
        x = run_stack(self.encoder, Block(**block_settings(c), parent=None), x, mask)
        x = drop_prefix(x, inputs)
        return self.final_norm(x) if c.norm_position == "pre" else x

    def mlm_logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Logits over the vocabulary at each given position; see `MlmHead`."""
        return self.mlm_head(hidden, (self.shared_embeddings or self.embeddings).token)

    def lens_logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """`mlm_logits` of the state after any block, as if it were the last one (`bertgpt.inspect.logit_lens`)."""
        return self.mlm_logits(self.final_norm(hidden) if self.config.norm_position == "pre" else hidden)

    def pool(
        self, hidden: Float[Array, "B S D"], segment_ids: Int[Array, "B S"], packed: int | None = None
    ) -> Float[Array, "B *N D"]:
        """The vector of each sequence: from its first token, [CLS], or the mean over all that are not padding.

        With `packed`, one vector for each of this many segments of a packed sequence.
        """
        if self.config.pooler == "mean":
            return mean_pool(hidden, segment_ids) if packed is None else mean_of_segments(hidden, segment_ids, packed)
        first = hidden[:, 0] if packed is None else ends_of_segments(hidden, segment_ids, packed, "first")
        if self.config.pooler == "first":
            return first
        first = self.drop(first) if self.config.pooler.startswith("dropout") else first
        return POOLERS[self.config.pooler](self.pooler(first))

    def nsp_logits(self, hidden: Float[Array, "B S D"], segment_ids: Int[Array, "B S"]) -> Float[Array, "B 2"]:
        """Logits of “B follows A” (0) and “B is random” (1)."""
        return self.nsp_head(self.pool(hidden, segment_ids), 2)

    def class_logits(
        self,
        hidden: Float[Array, "B S D"],
        segment_ids: Int[Array, "B S"],
        num_labels: int,
        packed: int | None = None,
        task: str | None = None,
    ) -> Float[Array, "B *N C"]:
        """Class logits of a sequence, or of each of `packed` segments: one fully connected layer on its vector."""
        return self.layers(task).classifier(self.pool(hidden, segment_ids, packed), num_labels)

    def tag_logits(
        self, hidden: Float[Array, "B S D"], num_labels: int, task: str | None = None
    ) -> Float[Array, "B S C"]:
        """Class logits of every token."""
        return self.layers(task).tagger(hidden, num_labels)

    def crf_nll(
        self,
        emissions: Float[Array, "B W C"],
        tags: Int[Array, "B W"],
        chains: Chains,
        rules: Rules,
        task: str | None = None,
    ) -> Float[Array, " B"]:
        """−log p(tags) of the conditional random field on these tag logits, for each sequence; see `CrfHead`."""
        return self.layers(task).crf.nll(emissions, tags, chains, rules)

    def best_tags(
        self, emissions: Float[Array, "B W C"], chains: Chains, rules: Rules, crf: bool, task: str | None = None
    ) -> Int[Array, "B W"]:
        """The best tags of each sequence, by the conditional random field or, without `crf`, by logits and rules."""
        return self.layers(task).crf.decode(emissions, chains, rules, crf)

    def span_logits(self, hidden: Float[Array, "B S D"], task: str | None = None) -> Float[Array, "B S 2"]:
        """Logits of every token as start and as end of an answer (Devlin et al. 2019 §4.2)."""
        return self.layers(task).span_head(hidden, 2)

    def project_states(self, hidden: Float[Array, "*batch D"], width: int) -> Float[Array, "*batch W"]:
        """W_h H: hidden states as wide as those of a teacher (Jiao et al. 2020 eq. 8)."""
        return self.state_projection(hidden, width)

    @nn.compact
    def layers(self, task: str | None) -> "Bert | TaskLayers":
        """The module that holds the heads: the model itself, or the task's own where several tasks share a model."""
        if task is None:
            return self
        return TaskLayers(self.task_dropout, truncated_normal(self.config.stddev), name=f"task_{task}")

    def rtd_logits(self, hidden: Float[Array, "B S D"]) -> Float[Array, "B S"]:
        """Log-odds that each token was replaced (Clark et al. 2020)."""
        return self.rtd_head(hidden)


# Sizes of google-research/bert: the paper's two and the compact models of Turc et al. 2019.
BERT_BASE = BertConfig()
BERT_LARGE = dataclasses.replace(BERT_BASE, d_model=1024, num_layers=24, num_heads=16, d_ff=4096)
BERT_MEDIUM = dataclasses.replace(BERT_BASE, d_model=512, num_layers=8, num_heads=8, d_ff=2048)
BERT_SMALL = dataclasses.replace(BERT_MEDIUM, num_layers=4)
BERT_MINI = dataclasses.replace(BERT_BASE, d_model=256, num_layers=4, num_heads=4, d_ff=1024)
BERT_TINY = dataclasses.replace(BERT_BASE, d_model=128, num_layers=2, num_heads=2, d_ff=512)

# RoBERTa: byte-level BPE of 50,265 tokens, no token types, positions counted from padding_idx + 1 = 2, GELU by erf.
ROBERTA_BASE = dataclasses.replace(
    BERT_BASE,
    vocab_size=50_265,
    num_types=0,
    first_position=2,
    activation="gelu",
    norm_eps=1e-5,
    pooler="dropout_tanh",
)
ROBERTA_LARGE = dataclasses.replace(ROBERTA_BASE, d_model=1024, num_layers=24, num_heads=16, d_ff=4096)

# DistilBERT (Sanh et al. 2019): half of BERT's layers, no token types, GELU by erf; its classifier has a ReLU pooler.
DISTILBERT_BASE = dataclasses.replace(BERT_BASE, num_layers=6, num_types=0, activation="gelu", pooler="relu")

# MiniLM (Wang et al. 2020): narrow BERTs distilled from wide ones.
MINILM_L6_H384 = dataclasses.replace(BERT_BASE, num_layers=6, d_model=384, d_ff=1536, activation="gelu")
MINILM_L12_H384 = dataclasses.replace(MINILM_L6_H384, num_layers=12)
