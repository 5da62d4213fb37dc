"""GPT-2 (Radford et al. 2019) and GPT-3 (Brown et al. 2020): a decoder with causal attention.

h⁰ = E[token] + P[position];   hˡ = hˡ⁻¹ + Attention(LN(hˡ⁻¹)) + FFN(LN(·)), l = 1…L;   p(next) = softmax(E LN(h^L))
"""

import dataclasses
from typing import Annotated, Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bertgpt.layers.attention import KeyValue, replace_row
from bertgpt.layers.block import Block
from bertgpt.layers.embed import Embeddings, drop_prefix, include_prefix, total_length
from bertgpt.layers.heads import ClassificationHead, TaskLayers, ends_of_segments
from bertgpt.layers.linear import normal, tied_matmul
from bertgpt.layers.masks import Attention, Mask, make_mask
from bertgpt.layers.mlp import Activation
from bertgpt.layers.norm import LayerNorm
from bertgpt.layers.stack import layer_params, run_stack, stack
from bertgpt.models.apply import ModelModule
from bertgpt.models.config import TransformerConfig
from bertgpt.ranges import Count, Epsilon, Range, Rate, Remat, remat_policy
from bertgpt.sharding import constrain, constrain_logits, gather
from bertgpt.types import Architecture, Inputs, UserError


@dataclasses.dataclass(frozen=True)
class GptConfig(TransformerConfig):
    """Architecture of a GPT decoder."""

    vocab_size: Count = 50_257
    """rows of the embedding table; at least the tokens of the tokenizer"""
    max_len: Count = 1024
    """longest sequence: rows of the position table"""
    local_window: Count | None = None
    """GPT-3: in every second block a token attends to this many tokens, itself included; None: dense attention"""
    activation: Activation = "gelu_tanh"
    """nonlinearity of the feed-forward network"""
    norm_eps: Epsilon = 1e-5
    """epsilon of every layer norm"""
    dropout: Rate = 0.1
    """dropout on embeddings and sublayer outputs"""
    attention_dropout: Rate = 0.1
    """dropout on attention weights"""
    stddev: Annotated[float, Range(0.0, 1.0, above=True)] = 0.02
    """standard deviation of initial weights; position rows have half, residual projections 1/√(2·num_layers) of it"""
    attention: Attention = "auto"
    """what computes attention: all scores at once (xla), blocks of them (chunked), a TPU kernel (flash) or cuDNN; auto:
    a kernel where it applies, else xla for up to 1,024 tokens and chunked beyond"""
    scan: bool = False
    """compile one block and loop over it (for deep models) instead of unrolling the stack"""
    remat: Remat = "none"
    """what the backward pass recomputes instead of storing it: nothing; all but the results of dense layers (dots); all
    but queries, keys, values, attention outputs and inner activations (names); everything (full)"""

    architecture: ClassVar[Architecture] = "decoder"
    outputs: ClassVar[frozenset[str]] = frozenset(
        ("lm_logits", "lens_logits", "pool", "class_logits", "prefill", "extend")
    )
    stacks: ClassVar[tuple[str, ...]] = ("decoder",)

    def __post_init__(self):
        self.check("Gpt")
        object.__setattr__(self, "remat", remat_policy(self.remat))
        if self.local_window is not None and self.num_layers % 2:
            raise UserError(
                f"Gpt: local_window={self.local_window} needs num_layers={self.num_layers} even, because dense and"
                " local blocks alternate"
            )

    def make(self, dtype: str = "float32") -> "Gpt":
        """The flax module, computing in `dtype`."""
        return Gpt(self, jnp.dtype(dtype))


class Cache(NamedTuple):
    """State of decoding. Prompts of a batch are padded on the left, so that all rows write the same column.

    Rows that hold prompts of different times (`insert`) each have a column of their own to write.
    """

    layers: tuple[KeyValue, ...]
    """keys and values of T columns, one pair a block"""
    starts: Int[Array, " B"]
    """column of each row's first token"""
    index: Int[Array, ""] | Int[Array, " B"]
    """the next column to write, of all rows or of each"""

    def repeat(self, times: int) -> "Cache":
        """Each row this many times, one after another."""
        layers, starts = jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), (self.layers, self.starts))
        return Cache(layers, starts, self.index)

    def choose(self, rows: Int[Array, " B"]) -> "Cache":
        """For each row the cache of another row of the same prompt."""
        return self._replace(layers=jax.tree.map(lambda x: x[rows], self.layers))

    def insert(self, row: Int[Array, ""], other: "Cache") -> "Cache":
        """The cache with the only row of `other`, moved to column 0, in place of a row; each has its own `index`."""
        start = other.starts[0]
        # The padding ends up after the prompt, where tokens overwrite it before anything attends to it.
        moved = jax.tree.map(lambda x: jnp.roll(x, -start, axis=2), other.layers)
        return replace_row(self, row, Cache(moved, other.starts - start, (other.index - start)[None]))


class Pair(nn.Module):
    """A dense block and one with a local window."""

    config: GptConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B S D"], mask: Mask | Array, local: Mask | Array
    ) -> tuple[Float[Array, "B S D"], None]:
        for name, seen in (("dense", mask), ("local", local)):
            x, _ = Block(**block_settings(self.config), name=name)(x, seen)
        return x, None


def block_settings(c: GptConfig) -> dict[str, Any]:
    """Arguments of `Block`: pre-norm, and residual projections scaled by 1/√N for N = 2·num_layers residual layers."""
    return {
        "num_heads": c.num_heads,
        "head_dim": c.head_dim,
        "d_ff": c.d_ff,
        "activation": c.activation,
        "norm_position": "pre",
        "norm_eps": c.norm_eps,
        "dropout": c.dropout,
        "attention_dropout": c.attention_dropout,
        "kernel_init": normal(c.stddev),
        "residual_init": normal(c.stddev * (2 * c.num_layers) ** -0.5),
    }


def make_embeddings(c: GptConfig) -> Embeddings:
    """The embedding layer of a config."""
    return Embeddings(
        vocab_size=c.vocab_size,
        width=c.d_model,
        num_positions=c.max_len,
        num_types=0,
        norm_eps=None,
        dropout=c.dropout,
        kernel_init=normal(c.stddev),
        position_init=normal(c.stddev / 2),
    )


class Gpt(ModelModule):
    """The decoder, its tied output layer, a classifier, and decoding with a cache."""

    config: GptConfig
    dtype: jnp.dtype

    task_methods: ClassVar[frozenset[str]] = frozenset(("class_logits",))

    def setup(self):
        c = self.config
        self.embeddings = make_embeddings(c)
        if c.local_window is None:
            self.decoder = stack(Block, c.num_layers, c.scan, c.remat)(**block_settings(c))
        else:
            self.decoder = stack(Pair, c.num_layers // 2, c.scan, c.remat)(c)
        self.final_norm = LayerNorm(c.norm_eps)
        self.classifier = ClassificationHead(c.dropout, normal(c.stddev))

    def __call__(self, inputs: Inputs) -> Float[Array, "B S D"]:
        """Hidden states of the tokens after the final norm. Dropout acts if a "dropout" key is given.

        Raises:
          UserError: the sequence is longer than max_len, or has a prefix and is packed.
        """
        c, length = self.config, total_length(inputs)
        if length > c.max_len:
            raise UserError(f"Gpt: a sequence of {length} tokens exceeds max_len={c.max_len}")
        inputs = include_prefix(inputs)
        x = constrain(self.embeddings(inputs).astype(self.dtype), ("batch", "seq", None))
        self.sow("intermediates", "embedded", x)
        dense = Mask(inputs.segment_ids, inputs.segment_ids, inputs.bidirectional, causal=True)
        rules = (dense,) if c.local_window is None else (dense, dataclasses.replace(dense, window=c.local_window))
        dropout = c.attention_dropout > 0 and self.has_rng("dropout")
        masks = tuple(
            make_mask(c.attention, (length, length), c.head_width, x.dtype, rule, dropout=dropout) for rule in rules
        )
        block = Block(**block_settings(c), parent=None) if c.local_window is None else Pair(c, parent=None)
        return self.final_norm(drop_prefix(run_stack(self.decoder, block, x, *masks), inputs))

    def lm_logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Logits of the next token, with output vectors tied to the embedding."""
        logits = tied_matmul(hidden, gather(self.embeddings.token, ("vocab", "embed")))
        return constrain_logits(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))

    def lens_logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Logits from the state after any block, as if it were the last one (`bertgpt.inspect.logit_lens`)."""
        return self.lm_logits(self.final_norm(hidden))

    def pool(
        self, hidden: Float[Array, "B S D"], segment_ids: Int[Array, "B S"], packed: int | None = None
    ) -> Float[Array, "B *N D"]:
        """State of the last token, or of that of each of `packed` segments: it alone sees the whole text."""
        if packed is not None:
            return ends_of_segments(hidden, segment_ids, packed, "last")
        last = jnp.max(jnp.where(segment_ids > 0, jnp.arange(segment_ids.shape[1]), 0), axis=1)
        return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]

    def class_logits(
        self,
        hidden: Float[Array, "B S D"],
        segment_ids: Int[Array, "B S"],
        num_labels: int,
        packed: int | None = None,
        task: str | None = None,
    ) -> Float[Array, "B *N C"]:
        """Class logits of a sequence, or of each of `packed` segments: one fully connected layer on its last token."""
        return self.layers(task).classifier(self.pool(hidden, segment_ids, packed), num_labels)

    @nn.compact
    def layers(self, task: str | None) -> "Gpt | TaskLayers":
        """The module that holds the heads: the model itself, or the task's own where several tasks share a model."""
        if task is None:
            return self
        return TaskLayers(self.config.dropout, normal(self.config.stddev), name=f"task_{task}")

    def prefill(
        self,
        prompt_ids: Int[Array, "B P"],
        starts: Int[Array, " B"],
        length: int,
        bidirectional: bool | Bool[Array, ""] = False,
        embeds: Float[Array, "B N D"] | None = None,
    ) -> tuple[Float[Array, "B V"], Cache]:
        """Reads prompts that are padded on the left and end in the last column.

        Args:
          prompt_ids: token ids.
          starts: column of each prompt's first token.
          length: columns of the cache, for prompt and continuation; positions must stay below max_len.
          bidirectional: the tokens of a prompt attend to all of it, as in the prefix of a prefix LM.
          embeds: vectors in place of the tokens, before positions are added.

        Returns:
          Logits of the token after each prompt, and the cache.
        """
        c = self.config
        shape = (prompt_ids.shape[0], c.num_heads, length, c.head_width)
        empty = KeyValue(jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype))
        inputs = Inputs(prompt_ids) if embeds is None else Inputs(embeds=embeds)
        return self._extend(inputs, Cache((empty,) * c.num_layers, starts, jnp.zeros((), jnp.int32)), bidirectional)

    def extend(self, ids: Int[Array, " B"], cache: Cache) -> tuple[Float[Array, "B V"], Cache]:
        """Appends one token to each row. Returns logits of the token after it, and the new cache."""
        return self._extend(Inputs(ids[:, None]), cache)

    def _extend(
        self, inputs: Inputs, cache: Cache, bidirectional: bool | Bool[Array, ""] = False
    ) -> tuple[Float[Array, "B V"], Cache]:
        c, params, count = self.config, self.decoder.variables["params"], total_length(inputs)
        columns = cache.index.reshape(-1, 1) + jnp.arange(count)  # one row, unless each has its own
        positions = jnp.maximum(columns - cache.starts[:, None], 0)
        x = self.embeddings(inputs._replace(positions=positions)).astype(self.dtype)
        keys = jnp.arange(cache.layers[0].key.shape[2])
        distance = columns[:, :, None] - keys
        # Padding attends to columns 0 … itself, so that each query has a key; nothing attends to padding.
        seen = (keys >= cache.starts[:, None, None]) | (columns[:, :, None] < cache.starts[:, None, None])
        before = (distance >= 0) | (bidirectional & (keys < count))
        mask = (seen & before)[:, None]
        layers = []
        for number, layer in enumerate(cache.layers):
            if c.local_window is None:
                p, near = layer_params(params, number), mask
            else:
                p = layer_params(params, number // 2)[("dense", "local")[number % 2]]
                near = mask & (distance < c.local_window)[:, None] if number % 2 else mask
            block = Block(**block_settings(c), parent=None)
            x, layer = block.apply({"params": p}, x, near, layer, cache.index)
            layers.append(layer)
        logits = self.lm_logits(self.final_norm(x[:, -1]))
        return logits, Cache(tuple(layers), cache.starts, cache.index + count)


GPT2_SMALL = GptConfig()
GPT2_MEDIUM = dataclasses.replace(GPT2_SMALL, d_model=1024, num_layers=24, num_heads=16, d_ff=4096)
GPT2_LARGE = dataclasses.replace(GPT2_SMALL, d_model=1280, num_layers=36, num_heads=20, d_ff=5120)
GPT2_XL = dataclasses.replace(GPT2_SMALL, d_model=1600, num_layers=48, num_heads=25, d_ff=6400)


def gpt3(d_model: int, num_layers: int, num_heads: int) -> GptConfig:
    """A row of Brown et al. 2020 table 2.1. The paper gives no width of the local bands; 256 is our choice."""
    return GptConfig(
        d_model=d_model, num_layers=num_layers, num_heads=num_heads, d_ff=4 * d_model, max_len=2048,
        local_window=256, dropout=0.0, attention_dropout=0.0, scan=True,
    )  # fmt: skip


GPT3_125M = gpt3(768, 12, 12)
GPT3_350M = gpt3(1024, 24, 16)
GPT3_760M = gpt3(1536, 24, 16)
GPT3_1B3 = gpt3(2048, 24, 16)  # printed with 24 heads of 128, which is not 2048
GPT3_2B7 = gpt3(2560, 32, 32)
GPT3_6B7 = gpt3(4096, 32, 32)
GPT3_13B = gpt3(5120, 40, 40)  # printed with width 5140, which 40 heads of 128 do not fill
GPT3_175B = gpt3(12288, 96, 96)
