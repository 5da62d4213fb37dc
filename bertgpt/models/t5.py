"""T5 (Raffel et al. 2020) and T5 v1.1: an encoder, and a decoder that attends to the encoder's output.

    x ← x + f(RMSNorm(x)) for f = self-attention, in the decoder attention to the encoder, and feed-forward

There are no biases. Attention scores are not divided by √d; a learned bias for each bucket of relative positions,
shared by all layers, is added. v1.0: ReLU, and logits (h / √d) · E from the tied embedding. v1.1: gated GELU, and a
separate output matrix. With `experts`, some feed-forward networks are Switch layers (models/switch.py).
"""

import dataclasses
from typing import Annotated, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bertgpt.layers.attention import KeyValue, MultiHeadAttention, replace_row
from bertgpt.layers.dropout import Dropout
from bertgpt.layers.embed import drop_prefix, embed_tokens, include_prefix, positions_or_default, table
from bertgpt.layers.linear import Init, fan_in_normal, linear, normal, tied_matmul
from bertgpt.layers.masks import Attention, Mask, make_mask
from bertgpt.layers.mlp import Activation, FeedForward
from bertgpt.layers.moe import Experts, SwitchFeedForward
from bertgpt.layers.norm import RMSNorm
from bertgpt.layers.position import RelativeBias, RelativePositions
from bertgpt.layers.stack import layer_params, run_stack, stack
from bertgpt.models.apply import ModelModule
from bertgpt.ranges import Count, Epsilon, Layers, Natural, Range, Rate, Remat, Width, check_fields, remat_policy
from bertgpt.sharding import constrain, constrain_logits, gather
from bertgpt.types import Architecture, Inputs, ModelConfig, UserError


@dataclasses.dataclass(frozen=True)
class T5Config(ModelConfig):
    """Architecture of a T5 encoder–decoder."""

    vocab_size: Count = 32_128
    """rows of the embedding table; at least the tokens of the tokenizer"""
    d_model: Width = 768
    """width of the hidden states"""
    num_layers: Layers = 12
    """blocks of the encoder"""
    num_decoder_layers: Layers = 12
    """blocks of the decoder"""
    num_heads: Width = 12
    """attention heads in each block"""
    head_dim: Width = 64
    """width of a head; num_heads · head_dim need not be d_model"""
    d_ff: Width = 3072
    """width inside the feed-forward network"""
    activation: Activation = "relu"
    """nonlinearity of the feed-forward network"""
    gated: bool = False
    """multiply the activations by a second projection (v1.1)"""
    tied: bool = True
    """logits (h / √d) · E with the embedding (v1.0) instead of h · W with a separate matrix (v1.1)"""
    num_buckets: Annotated[int, Range(4, 1_000_000)] = 32
    """buckets of relative positions"""
    max_distance: Count = 128
    """relative positions from this distance on share a bucket"""
    norm_eps: Epsilon = 1e-6
    """epsilon of every norm"""
    dropout: Rate = 0.1
    """dropout on embeddings, attention weights, inner activations and sublayer outputs"""
    start_id: Natural = 0
    """token that the decoder starts with: T5 uses the padding token"""
    experts: Experts | None = None
    """Switch layers; None: all feed-forward networks are dense"""
    init_scale: Annotated[float, Range(0.0, 100.0, above=True)] = 1.0
    """variance of initial matrices times their number of inputs; Switch: 0.1"""
    truncated_init: bool = False
    """initialise from a truncated normal, as Switch does"""
    max_len: Count = 512
    """longest sequence in the data; relative positions themselves set no limit"""
    attention: Attention = "auto"
    """what computes attention: all scores at once (xla), blocks of them (chunked), a TPU kernel (flash) or cuDNN; auto:
    a kernel where it applies, else xla for up to 1,024 tokens and chunked beyond"""
    scan: bool = False
    """compile one block and loop over it (for deep models) instead of unrolling the stack"""
    remat: Remat = "none"
    """what the backward pass recomputes instead of storing it: nothing; all but the results of dense layers (dots); all
    but queries, keys, values, attention outputs and inner activations (names); everything (full)"""

    architecture: ClassVar[Architecture] = "encoder_decoder"
    outputs: ClassVar[frozenset[str]] = frozenset(("encode", "lm_logits", "lens_logits", "prefill", "extend"))
    stacks: ClassVar[tuple[str, ...]] = ("encoder", "decoder")

    def __post_init__(self):
        check_fields(self)
        object.__setattr__(self, "remat", remat_policy(self.remat))
        if self.num_buckets % 2 or self.max_distance <= self.num_buckets // 2:
            raise UserError(
                f"T5: num_buckets={self.num_buckets} must be even, and half of them fewer than"
                f" max_distance={self.max_distance}"
            )
        if self.start_id >= self.vocab_size:
            raise UserError(f"T5: start_id={self.start_id} must be below vocab_size={self.vocab_size}")
        if self.experts is not None:
            if self.gated:
                raise UserError("T5: gated=True: experts have no gate")
            for field in ("num_layers", "num_decoder_layers"):
                if vars(self)[field] % self.experts.every:
                    raise UserError(
                        f"T5: {field}={vars(self)[field]} is not divisible by experts.every={self.experts.every}"
                    )

    def make(self, dtype: str = "float32") -> "T5":
        """The flax module, computing in `dtype`."""
        return T5(self, jnp.dtype(dtype))


class Cache(NamedTuple):
    """State of decoding."""

    layers: tuple[KeyValue, ...]
    """keys and values of T columns, one pair a decoder block"""
    memory: tuple[KeyValue, ...]
    """keys and values of the encoder's output, one pair a decoder block"""
    real: Bool[Array, "B P"]
    """which of the encoder's positions are not padding"""
    index: Int[Array, ""] | Int[Array, " B"]
    """the next column to write, of all rows or of each"""

    def repeat(self, times: int) -> "Cache":
        """Each row this many times, one after another."""
        *rows, index = self
        return Cache(*jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), rows), index)

    def choose(self, rows: Int[Array, " B"]) -> "Cache":
        """For each row the cache of another row of the same input; the encoder's part is the same for both."""
        return self._replace(layers=jax.tree.map(lambda x: x[rows], self.layers))

    def insert(self, row: Int[Array, ""], other: "Cache") -> "Cache":
        """The cache with the only row of `other` in place of a row; each has its own `index`."""
        empty = self._replace(real=self.real.at[row].set(False))  # its own input may have been longer
        return replace_row(empty, row, other._replace(index=other.index[None]))


class Context(NamedTuple):
    """What all blocks of a stack share."""

    mask: Mask | Bool[Array, "#B 1 S T"] | None
    bias: RelativePositions | Float[Array, "#B H S T"]
    real: Bool[Array, "B S"]
    """positions that are not padding and may be routed to experts"""
    memory: Float[Array, "B P D"] | None = None
    memory_mask: Mask | Bool[Array, "B 1 S P"] | None = None


class T5Block(nn.Module):
    """Self-attention, cross-attention in the decoder, and feed-forward."""

    config: T5Config
    decoder: bool
    sparse: bool = False

    def setup(self):
        c, init = self.config, matrix_init(self.config)
        names = ["attention", *(["cross_attention"] if self.decoder else []), "mlp"]
        self.norms = {name: RMSNorm(c.norm_eps, name=f"{name}_norm") for name in names}

        def attention() -> MultiHeadAttention:
            smaller = matrix_init(c, 1 / c.head_dim)  # in place of dividing scores by √head_dim
            return MultiHeadAttention(
                c.num_heads, c.head_dim, init, c.dropout, use_bias=False, scale=False, query_init=smaller
            )

        self.attention = attention()
        if self.decoder:
            self.cross_attention = attention()
        if self.sparse:
            self.mlp = SwitchFeedForward(c.experts, c.d_ff, c.activation, init)
        else:
            self.mlp = FeedForward(c.d_ff, c.activation, init, use_bias=False, gated=c.gated, dropout=c.dropout)
        self.drop = Dropout(c.dropout)

    def memory_key_value(self, memory: Float[Array, "B P D"]) -> KeyValue:
        """Keys and values of the encoder's output, for a cache."""
        return self.cross_attention.key_value(memory)

    def __call__(
        self,
        x: Float[Array, "B S D"],
        context: Context,
        cache: KeyValue | None = None,
        memory: KeyValue | None = None,
        index: Int[Array, ""] | Int[Array, " B"] | int = 0,
    ) -> tuple[Float[Array, "B S D"], KeyValue | None]:
        """Returns the new states and, if a cache is given, the cache with the keys and values of x at `index`."""
        y = self.norms["attention"](x)
        if cache is not None:
            cache = cache.write(self.attention.key_value(y), index)
        x = x + self.drop(self.attention(y, context.mask, context.bias, cache))
        if self.decoder:
            y = self.norms["cross_attention"](x)
            memory = self.memory_key_value(context.memory) if memory is None else memory
            x = x + self.drop(self.cross_attention(y, context.memory_mask, memory=memory))
        y = self.norms["mlp"](x)
        x = constrain(x + self.drop(self.mlp(y, context.real) if self.sparse else self.mlp(y)), ("batch", "seq", None))
        self.sow("intermediates", "hidden", x)
        return x, cache


class Group(nn.Module):
    """`experts.every` blocks, the second of which (or the only one) is sparse."""

    config: T5Config
    decoder: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"], context: Context) -> tuple[Float[Array, "B S D"], None]:
        every = self.config.experts.every
        for i in range(every):
            x, _ = T5Block(self.config, self.decoder, i == min(1, every - 1), name=f"block_{i}")(x, context)
        return x, None


def matrix_init(c: T5Config, scale: float = 1.0) -> Init:
    """Initialiser of matrices: variance init_scale · scale / number of inputs."""
    return fan_in_normal(c.init_scale * scale, c.truncated_init)


def make_block(c: T5Config, decoder: bool) -> nn.Module:
    """The module that a stack repeats."""
    return T5Block(c, decoder, parent=None) if c.experts is None else Group(c, decoder, parent=None)


def block_stack(c: T5Config, num_layers: int, decoder: bool) -> nn.Module:
    """The stack of one side."""
    if c.experts is None:
        return stack(T5Block, num_layers, c.scan, c.remat)(c, decoder)
    return stack(Group, num_layers // c.experts.every, c.scan, c.remat)(c, decoder)


class T5(ModelModule):
    """The encoder–decoder, its output layer, and decoding with a cache."""

    config: T5Config
    dtype: jnp.dtype

    def setup(self):
        c = self.config
        self.token = table(self, "token", "vocab", (c.vocab_size, c.d_model), normal(1.0))

        def relative_bias(bidirectional: bool) -> RelativeBias:
            init = normal(c.d_model**-0.5)
            return RelativeBias(c.num_heads, bidirectional, c.num_buckets, c.max_distance, init)

        self.encoder_bias = relative_bias(bidirectional=True)
        self.decoder_bias = relative_bias(bidirectional=False)
        self.encoder = block_stack(c, c.num_layers, decoder=False)
        self.decoder = block_stack(c, c.num_decoder_layers, decoder=True)
        self.encoder_norm = RMSNorm(c.norm_eps)
        self.decoder_norm = RMSNorm(c.norm_eps)
        self.drop = Dropout(c.dropout)
        if not c.tied:
            init = nn.with_logical_partitioning(matrix_init(c), ("embed", "vocab"))
            self.lm_head = self.param("lm_head", init, (c.d_model, c.vocab_size))

    def __call__(self, inputs: Inputs) -> Float[Array, "B S D"]:
        """Hidden states of the decoder. Dropout acts if a "dropout" key is given.

        Args:
          inputs: what the encoder reads; `inputs.decoder`: the decoder's tokens so far, `start_id` first. In packed
            sequences both sides have the same segment ids.

        Raises:
          UserError: `inputs.decoder` is missing, or sequences with a prefix are packed.
        """
        if inputs.decoder is None:
            raise UserError("T5: the inputs have no `decoder`, which an encoder–decoder needs")
        memory, segment_ids = self._memory(inputs)
        return self.decode(inputs.decoder, memory, segment_ids)

    def encode(self, inputs: Inputs) -> Float[Array, "B S D"]:
        """The encoder's states of the tokens."""
        return drop_prefix(self._memory(inputs)[0], inputs)

    def _memory(self, inputs: Inputs) -> tuple[Float[Array, "B P D"], Int[Array, "B P"] | None]:
        """The encoder's output, prefix included, and its segment ids."""
        inputs = include_prefix(inputs)
        x, positions = self._embed(inputs), positions_or_default(inputs)
        mask = self._mask(x, x, Mask(inputs.segment_ids, inputs.segment_ids))
        bias = self.encoder_bias(positions, positions, dense=not isinstance(mask, Mask))
        context = Context(mask, bias, is_real(inputs.segment_ids, x))
        x = run_stack(self.encoder, make_block(self.config, decoder=False), x, context)
        return self.drop(self.encoder_norm(x)), inputs.segment_ids

    def decode(
        self, inputs: Inputs, memory: Float[Array, "B P D"], memory_segment_ids: Int[Array, "B P"] | None = None
    ) -> Float[Array, "B S D"]:
        """The decoder's states of the tokens, given the encoder's output."""
        inputs = include_prefix(inputs)
        x, positions = self._embed(inputs), positions_or_default(inputs)
        mask = self._mask(x, x, Mask(inputs.segment_ids, inputs.segment_ids, causal=True))
        own = inputs.segment_ids
        if own is None and memory_segment_ids is not None:
            own = jnp.ones(x.shape[:2], jnp.int32)
        memory_mask = self._mask(x, memory, Mask(None if memory_segment_ids is None else own, memory_segment_ids))
        real = is_real(inputs.segment_ids, x)
        bias = self.decoder_bias(positions, positions, dense=not isinstance(mask, Mask))
        context = Context(mask, bias, real, memory, memory_mask)
        x = run_stack(self.decoder, make_block(self.config, decoder=True), x, context)
        return self.drop(self.decoder_norm(drop_prefix(x, inputs)))

    def lm_logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Logits of the next token."""
        if self.config.tied:
            logits = tied_matmul(hidden * self.config.d_model**-0.5, gather(self.token, ("vocab", "embed")))
        else:
            logits = linear(hidden, gather(self.lm_head, ("embed", "vocab")))
        return constrain_logits(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))

    def lens_logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Logits from the state after any block of the decoder, as if it were the last one."""
        return self.lm_logits(self.decoder_norm(hidden))

    def prefill(
        self, prompt_ids: Int[Array, "B P"], starts: Int[Array, " B"], length: int, embeds: Array | None = None
    ) -> tuple[Float[Array, "B V"], Cache]:
        """Encodes inputs that are padded on the left, and starts the decoder.

        Args:
          prompt_ids: token ids of the inputs.
          starts: column of each input's first token.
          length: columns of the cache, for `start_id` and the output.
          embeds: vectors [B, N, D] in place of the tokens.

        Returns:
          Logits of the first token of each output, and the cache.
        """
        c = self.config
        inputs = Inputs(prompt_ids) if embeds is None else Inputs(embeds=embeds)
        real = positions_or_default(inputs) >= starts[:, None]
        encoded = self.encode(inputs._replace(segment_ids=real.astype(jnp.int32)))
        shape = (prompt_ids.shape[0], c.num_heads, length, c.head_dim)
        empty = KeyValue(jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype))
        memory = tuple(b.apply({"params": p}, encoded, method="memory_key_value") for b, p in self._decoder_blocks())
        cache = Cache((empty,) * c.num_decoder_layers, memory, real, jnp.zeros((), jnp.int32))
        return self.extend(jnp.full(prompt_ids.shape[:1], c.start_id, prompt_ids.dtype), cache)

    def extend(self, ids: Int[Array, " B"], cache: Cache) -> tuple[Float[Array, "B V"], Cache]:
        """Appends one token to each output. Returns logits of the token after it, and the new cache."""
        x = self._embed(Inputs(ids[:, None]))
        keys = jnp.arange(cache.layers[0].key.shape[2])
        position = cache.index.reshape(-1, 1)  # one row, unless each has its own
        mask = (keys <= position)[:, None, None]
        bias = self.decoder_bias(position, keys[None])
        context = Context(mask, bias, jnp.ones(x.shape[:2], bool), None, cache.real[:, None, None])
        layers = []
        for (block, params), layer, memory in zip(self._decoder_blocks(), cache.layers, cache.memory, strict=True):
            x, layer = block.apply({"params": params}, x, context, layer, memory, cache.index)
            layers.append(layer)
        return self.lm_logits(self.decoder_norm(x[:, 0])), cache._replace(layers=tuple(layers), index=cache.index + 1)

    def _mask(
        self, x: Float[Array, "B S D"], y: Float[Array, "B T D"], mask: Mask
    ) -> Mask | Bool[Array, "#B 1 S T"] | None:
        """The mask of attention from x to y, which has a relative bias if they are the same."""
        c = self.config
        dropout = c.dropout > 0 and self.has_rng("dropout")
        return make_mask(c.attention, (x.shape[1], y.shape[1]), c.head_dim, x.dtype, mask, bias=x is y, dropout=dropout)

    def _embed(self, inputs: Inputs) -> Float[Array, "B N D"]:
        x = constrain(self.drop(embed_tokens(self.token, inputs)).astype(self.dtype), ("batch", "seq", None))
        self.sow("intermediates", "embedded", x)
        return x

    def _decoder_blocks(self) -> list[tuple[T5Block, dict]]:
        c, params, layers = self.config, self.decoder.variables["params"], range(self.config.num_decoder_layers)
        if c.experts is None:
            return [(T5Block(c, True, parent=None), layer_params(params, layer)) for layer in layers]
        every, sparse = c.experts.every, min(1, c.experts.every - 1)
        blocks = [T5Block(c, True, layer % every == sparse, parent=None) for layer in layers]
        return [(blocks[i], layer_params(params, i // every)[f"block_{i % every}"]) for i in layers]


def is_real(segment_ids: Int[Array, "B S"] | None, x: Float[Array, "B S D"]) -> Bool[Array, "B S"]:
    """True where there is no padding."""
    return jnp.ones(x.shape[:2], bool) if segment_ids is None else segment_ids > 0


# Raffel et al. 2020 §3.7.
T5_BASE = T5Config()
T5_SMALL = dataclasses.replace(T5_BASE, d_model=512, num_layers=6, num_decoder_layers=6, num_heads=8, d_ff=2048)
T5_LARGE = dataclasses.replace(T5_BASE, d_model=1024, num_layers=24, num_decoder_layers=24, num_heads=16, d_ff=4096)
T5_3B = dataclasses.replace(T5_LARGE, num_heads=32, head_dim=128, d_ff=16384)
T5_11B = dataclasses.replace(T5_3B, num_heads=128, d_ff=65536)

# The released v1.1 checkpoints.
T5_V1_1_BASE = dataclasses.replace(T5_BASE, d_ff=2048, activation="gelu_tanh", gated=True, tied=False)
T5_V1_1_SMALL = dataclasses.replace(
    T5_V1_1_BASE, d_model=512, num_layers=8, num_decoder_layers=8, num_heads=6, d_ff=1024
)
T5_V1_1_LARGE = dataclasses.replace(
    T5_V1_1_BASE, d_model=1024, num_layers=24, num_decoder_layers=24, num_heads=16, d_ff=2816
)
T5_V1_1_XL = dataclasses.replace(T5_V1_1_LARGE, d_model=2048, num_heads=32, d_ff=5120)
T5_V1_1_XXL = dataclasses.replace(T5_V1_1_LARGE, d_model=4096, num_heads=64, d_ff=10240)
