"""GPT-2 (Radford et al. 2019) and GPT-3 (Brown et al. 2020): a decoder that sees to the left only.

h⁰ = E[token] + P[position];   hˡ = hˡ⁻¹ + Attention(LN(hˡ⁻¹)) + FFN(LN(·)), l = 1…L;   p(next) = softmax(E LN(h^L))
"""

import dataclasses
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bertgpt.layers.attention import KeyValue, causal_mask, segment_mask
from bertgpt.layers.embed import Embeddings
from bertgpt.layers.heads import ClassificationHead, ends_of_segments
from bertgpt.layers.linear import LayerNorm, normal, tied_matmul
from bertgpt.layers.mlp import Activation
from bertgpt.layers.stack import Block, layer_params, run_stack, stack
from bertgpt.sharding import constrain
from bertgpt.types import UserError


@dataclasses.dataclass(frozen=True)
class GptConfig:
    """Architecture of a GPT decoder."""

    vocab_size: int = 50_257
    """rows of the embedding table; at least the tokens of the tokenizer"""
    d_model: int = 768
    """width of the hidden states"""
    num_layers: int = 12
    """Transformer blocks"""
    num_heads: int = 12
    """attention heads in each block; d_model must be divisible by it"""
    d_ff: int = 3072
    """width inside the feed-forward network"""
    max_len: int = 1024
    """longest sequence: rows of the position table"""
    local_window: int | None = None
    """GPT-3: in every second block a token sees only this many tokens up to and including itself; None: dense"""
    activation: Activation = "gelu_tanh"
    """nonlinearity of the feed-forward network"""
    norm_eps: float = 1e-5
    """epsilon of every layer norm"""
    dropout: float = 0.1
    """dropout on embeddings and sublayer outputs"""
    attention_dropout: float = 0.1
    """dropout on attention weights"""
    stddev: float = 0.02
    """standard deviation of initial weights; position rows have half, residual projections 1/√(2·num_layers) of it"""
    scan: bool = False
    """compile one block and loop over it (for deep models) instead of unrolling all"""
    remat: bool = False
    """recompute activations in the backward pass instead of keeping them"""

    start_id: ClassVar[None] = None
    """a decoder alone continues the prompt itself"""
    stacks: ClassVar[tuple[str, ...]] = ("decoder",)
    """parameters that have an axis of layers"""

    def __post_init__(self):
        for field in ("vocab_size", "d_model", "num_layers", "num_heads", "d_ff", "max_len"):
            if getattr(self, field) < 1:
                raise UserError(f"Gpt: {field}={getattr(self, field)} must be at least 1")
        if self.d_model % self.num_heads:
            raise UserError(f"Gpt: d_model={self.d_model} is not divisible by num_heads={self.num_heads}")
        if self.local_window is not None and (self.local_window < 1 or self.num_layers % 2):
            raise UserError(
                f"Gpt: local_window={self.local_window} must be at least 1, and num_layers={self.num_layers} even,"
                " for dense and local blocks alternate"
            )
        for field in ("dropout", "attention_dropout"):
            if not 0.0 <= getattr(self, field) < 1.0:
                raise UserError(f"Gpt: {field}={getattr(self, field)} must lie in [0, 1)")

    def make(self, dtype: str = "float32") -> "Gpt":
        """The flax module, computing in `dtype`."""
        return Gpt(self, jnp.dtype(dtype))


class Cache(NamedTuple):
    """What decoding remembers. Prompts are padded on the left, so that all rows write the same column."""

    layers: tuple[KeyValue, ...]
    """of each block, keys and values of T columns"""
    starts: Int[Array, " B"]
    """column of each row's first token"""
    index: Int[Array, ""]
    """the next column to write"""

    def repeat(self, times: int) -> "Cache":
        """Each row this many times, one after another."""
        layers, starts = jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), (self.layers, self.starts))
        return Cache(layers, starts, self.index)

    def choose(self, rows: Int[Array, " B"]) -> "Cache":
        """For each row what another row of the same prompt remembers."""
        return self._replace(layers=jax.tree.map(lambda x: x[rows], self.layers))


class Pair(nn.Module):
    """A dense block and one with a local window."""

    config: GptConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"], mask: Array, local: Array) -> tuple[Float[Array, "B S D"], None]:
        for name, seen in (("dense", mask), ("local", local)):
            x, _ = Block(*block_settings(self.config), name=name)(x, seen)
        return x, None


def block_settings(c: GptConfig) -> tuple:
    """Arguments of `Block`: pre-norm, and residual projections scaled by 1/√N for N = 2·num_layers residual layers."""
    residual = normal(c.stddev * (2 * c.num_layers) ** -0.5)
    return (
        *(c.num_heads, c.d_ff, c.activation, "pre", c.norm_eps, c.dropout, c.attention_dropout),
        *(normal(c.stddev), residual),
    )


class Gpt(nn.Module):
    config: GptConfig
    dtype: jnp.dtype

    def setup(self):
        c = self.config
        self.embeddings = Embeddings(
            *(c.vocab_size, c.d_model, c.max_len, 0, None, c.dropout), normal(c.stddev), normal(c.stddev / 2)
        )
        if c.local_window is None:
            self.decoder = stack(Block, c.num_layers, c.scan, c.remat)(*block_settings(c))
        else:
            self.decoder = stack(Pair, c.num_layers // 2, c.scan, c.remat)(c)
        self.final_norm = LayerNorm(c.norm_eps)
        self.classifier = ClassificationHead(c.dropout, normal(c.stddev))

    def __call__(
        self,
        input_ids: Int[Array, "B S"],
        segment_ids: Int[Array, "B S"] | None = None,
        positions: Int[Array, "B S"] | None = None,
        type_ids: Int[Array, "B S"] | None = None,
        bidirectional: Bool[Array, "B S"] | None = None,
    ) -> Float[Array, "B S D"]:
        """Hidden states after the final norm. Dropout acts if a "dropout" key is given.

        Args:
          input_ids: token ids.
          segment_ids: which document of a packed row, 1, 2, …; 0 is padding. None: one document, no padding.
          positions: place within the document, from 0. None: 0 … S−1.
          type_ids: not used; there for the call that encoders take.
          bidirectional: tokens that all of their document may see, even those before them: the prefix of a prefix LM.
        """
        del type_ids
        c = self.config
        length = input_ids.shape[1]
        if length > c.max_len:
            raise UserError(f"Gpt: a sequence of {length} tokens exceeds max_len={c.max_len}")
        x = self.embeddings(input_ids, jnp.arange(length)[None] if positions is None else positions)
        x = constrain(x.astype(self.dtype), ("batch", "seq", None))
        self.sow("intermediates", "embedded", x)
        mask = causal_mask(length)
        if bidirectional is not None:
            mask = mask | bidirectional[:, None, None, :]
        if segment_ids is not None:
            mask = mask & segment_mask(segment_ids)
        masks = (mask,) if c.local_window is None else (mask, mask & window_mask(length, c.local_window))
        block = Block(*block_settings(c), parent=None) if c.local_window is None else Pair(c, parent=None)
        return self.final_norm(run_stack(self.decoder, block, x, *masks))

    def lm_logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Score of every word as the next one, with output vectors tied to the embedding."""
        table = self.embeddings.token
        flat = tied_matmul(hidden.reshape(-1, hidden.shape[-1]), table)
        logits = flat.reshape(*hidden.shape[:-1], table.shape[0])
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        return constrain(logits, ("batch",) + (None,) * (logits.ndim - 2) + ("vocab",))

    def pool(
        self, hidden: Float[Array, "B S D"], segment_ids: Int[Array, "B S"], packed: int | None = None
    ) -> Float[Array, "B *N D"]:
        """The last token that is not padding, or of each of `packed` segments: it alone has seen the whole text."""
        if packed is not None:
            return ends_of_segments(hidden, segment_ids, packed, "last")
        last = jnp.max(jnp.where(segment_ids > 0, jnp.arange(segment_ids.shape[1]), 0), axis=1)
        return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]

    def class_logits(
        self, hidden: Float[Array, "B S D"], segment_ids: Int[Array, "B S"], num_labels: int, packed: int | None = None
    ) -> Float[Array, "B *N C"]:
        """Class scores of a sequence, or of each of `packed` segments: one fully connected layer on its last token."""
        return self.classifier(self.pool(hidden, segment_ids, packed), num_labels)

    def prefill(
        self, prompt_ids: Int[Array, "B P"], starts: Int[Array, " B"], length: int, bidirectional: bool = False
    ) -> tuple[Float[Array, "B V"], Cache]:
        """Reads prompts that are padded on the left and end in the last column.

        Args:
          prompt_ids: token ids.
          starts: column of each prompt's first token.
          length: columns of the cache, for prompt and continuation; positions must stay below max_len.
          bidirectional: all of a prompt sees all of it, the prefix of a prefix LM.

        Returns:
          Scores of the token after each prompt, and the cache.
        """
        c = self.config
        shape = (prompt_ids.shape[0], c.num_heads, length, c.d_model // c.num_heads)
        empty = KeyValue(jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype))
        return self._extend(prompt_ids, Cache((empty,) * c.num_layers, starts, jnp.zeros((), jnp.int32)), bidirectional)

    def extend(self, ids: Int[Array, " B"], cache: Cache) -> tuple[Float[Array, "B V"], Cache]:
        """Appends one token to each row: scores of the token after it, and the cache that has it."""
        return self._extend(ids[:, None], cache)

    def _extend(
        self, ids: Int[Array, "B S"], cache: Cache, bidirectional: bool = False
    ) -> tuple[Float[Array, "B V"], Cache]:
        c, params = self.config, self.decoder.variables["params"]
        columns = cache.index + jnp.arange(ids.shape[1])
        x = self.embeddings(ids, jnp.maximum(columns[None] - cache.starts[:, None], 0)).astype(self.dtype)
        keys = jnp.arange(cache.layers[0].key.shape[2])
        distance = columns[:, None] - keys[None]
        # A row's padding sees column 0 … itself, so that no query is left without a key; nothing looks at it.
        seen = (keys[None, None] >= cache.starts[:, None, None]) | (
            columns[None, :, None] < cache.starts[:, None, None]
        )
        before = (distance >= 0) | (bidirectional & (keys < ids.shape[1]))
        mask = (seen & before)[:, None]
        layers = []
        for number, layer in enumerate(cache.layers):
            if c.local_window is None:
                p, near = layer_params(params, number), mask
            else:
                p = layer_params(params, number // 2)[("dense", "local")[number % 2]]
                near = mask & (distance < c.local_window) if number % 2 else mask
            block = Block(*block_settings(c), parent=None)
            x, layer = block.apply({"params": p}, x, near, layer, cache.index)
            layers.append(layer)
        logits = self.lm_logits(self.final_norm(x[:, -1]))
        return logits, Cache(tuple(layers), cache.starts, cache.index + ids.shape[1])


def window_mask(length: int, window: int) -> Bool[Array, "1 1 S S"]:
    """True where key t is fewer than `window` tokens before query s."""
    place = jnp.arange(length)
    return (place[:, None] - place[None, :] < window)[None, None]


GPT2_SMALL = GptConfig()
GPT2_MEDIUM = dataclasses.replace(GPT2_SMALL, d_model=1024, num_layers=24, num_heads=16, d_ff=4096)
GPT2_LARGE = dataclasses.replace(GPT2_SMALL, d_model=1280, num_layers=36, num_heads=20, d_ff=5120)
GPT2_XL = dataclasses.replace(GPT2_SMALL, d_model=1600, num_layers=48, num_heads=25, d_ff=6400)


def gpt3(d_model: int, num_layers: int, num_heads: int) -> GptConfig:
    """A row of Brown et al. 2020 table 2.1. The paper does not print the width of its local bands: 256 is ours."""
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
