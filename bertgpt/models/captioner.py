"""Captioner: a ViT reads the image, a decoder that attends to all of its vectors writes the text.

    m = W ViT(image);   x ← x + f(x) for f = causal self-attention, attention to m, and feed-forward

transformers' VisionEncoderDecoderModel (Li et al. 2023, "TrOCR", §3.1): the decoder is GPT-2 or BERT, with a layer of
cross-attention added to each block. W exists only where the widths of the two differ.
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from bertgpt.layers.attention import KeyValue, MultiHeadAttention
from bertgpt.layers.block import Block
from bertgpt.layers.heads import MlmHead
from bertgpt.layers.linear import Linear, normal, tied_matmul, truncated_normal
from bertgpt.layers.masks import Mask, make_mask
from bertgpt.layers.norm import LayerNorm
from bertgpt.layers.stack import layer_params, run_stack, stack
from bertgpt.models import bert, gpt
from bertgpt.models.apply import ModelModule
from bertgpt.models.bert import BertConfig
from bertgpt.models.config import stacks_of_parts
from bertgpt.models.gpt import GptConfig
from bertgpt.models.t5 import Cache
from bertgpt.models.vit import VitConfig
from bertgpt.ranges import Natural, check_fields
from bertgpt.sharding import constrain, constrain_logits, gather
from bertgpt.types import Architecture, Inputs, JsonObject, ModelConfig, UserError


@dataclasses.dataclass(frozen=True)
class CaptionerConfig(ModelConfig):
    """A ViT and the decoder that attends to its output."""

    vision: VitConfig
    """the encoder of images"""
    language: GptConfig | BertConfig
    """the decoder; a BERT's self-attention is causal here, and its MLM head gives the next token"""
    start_id: Natural = 0
    """token that the decoder starts with: the padding token, where the tokenizer has one"""

    architecture: ClassVar[Architecture] = "encoder_decoder"
    outputs: ClassVar[frozenset[str]] = frozenset(("lm_logits", "lens_logits", "prefill", "extend"))

    def __post_init__(self):
        check_fields(self)
        usual = {"local_window": None, "embed_dim": None, "shared_groups": None, "adapter_dim": None,
                 "norm_position": "post"}  # fmt: skip
        for name, value in vars(self.language).items():
            if usual.get(name, value) != value:
                raise UserError(f"Captioner: language.{name}={value!r} is not supported; only {usual[name]!r}")
        if self.start_id >= self.vocab_size:
            raise UserError(f"Captioner: start_id={self.start_id} must be below vocab_size={self.vocab_size}")

    @property
    def vocab_size(self) -> int:
        """Rows of the decoder's embedding table."""
        return self.language.vocab_size

    @property
    def max_len(self) -> int:
        """Longest text: rows of the decoder's position table."""
        return self.language.max_len

    @property
    def image_shape(self) -> tuple[int, int, int, int]:
        """Frames, height, width and channels of the images."""
        return self.vision.image_shape

    @property
    def stacks(self) -> tuple[str, ...]:
        """Paths of parameters that have a leading axis of layers."""
        return stacks_of_parts({"vision": self.vision, "language": self.language})

    def make(self, dtype: str = "float32") -> "Captioner":
        """The flax module, computing in `dtype`."""
        return Captioner(self, jnp.dtype(dtype))


def block_settings(c: GptConfig | BertConfig) -> JsonObject:
    """Arguments of `Block`."""
    return gpt.block_settings(c) if isinstance(c, GptConfig) else bert.block_settings(c)


class Decoder(nn.Module):
    """GPT-2 or BERT with cross-attention. Its parameters are called as theirs, and `cross_attention` is added."""

    config: GptConfig | BertConfig
    dtype: jnp.dtype

    def setup(self):
        c = self.config
        blocks = stack(Block, c.num_layers, c.scan, c.remat)(**block_settings(c))
        if isinstance(c, GptConfig):
            self.embeddings = gpt.make_embeddings(c)
            self.decoder, self.final_norm = blocks, LayerNorm(c.norm_eps)
        else:
            self.embeddings, self.encoder = bert.make_embeddings(c), blocks
            self.mlm_head = MlmHead(c.mlm_head, c.activation, c.norm_eps, truncated_normal(c.stddev))

    @property
    def blocks(self) -> nn.Module:
        """The stack of blocks."""
        return self.decoder if isinstance(self.config, GptConfig) else self.encoder

    def __call__(self, inputs: Inputs, memory: Float[Array, "B P D"]) -> Float[Array, "B S D"]:
        """Hidden states of the tokens, given the vectors to attend to."""
        c, length = self.config, inputs.input_ids.shape[1]
        if length > c.max_len:
            raise UserError(f"Captioner: a text of {length} tokens exceeds language.max_len={c.max_len}")
        x = constrain(self.embeddings(inputs).astype(self.dtype), ("batch", "seq", None))
        self.sow("intermediates", "embedded", x)
        rule = Mask(inputs.segment_ids, inputs.segment_ids, causal=True)
        dropout = c.attention_dropout > 0 and self.has_rng("dropout")
        mask = make_mask(c.attention, (length, length), c.head_width, x.dtype, rule, dropout=dropout)
        block = Block(**block_settings(c), parent=None)
        return self.normed(run_stack(self.blocks, block, x, mask, None, 0, memory))

    def normed(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """The states after the final norm, which only GPT has."""
        return self.final_norm(x) if isinstance(self.config, GptConfig) else x

    def lm_logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Logits of the next token: GPT's tied output layer, or BERT's MLM head."""
        if isinstance(self.config, BertConfig):
            return self.mlm_head(hidden, self.embeddings.token)
        logits = tied_matmul(hidden, gather(self.embeddings.token, ("vocab", "embed")))
        return constrain_logits(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))

    def memory_key_values(self, memory: Float[Array, "B P D"]) -> tuple[KeyValue, ...]:
        """Keys and values of cross-attention in each block, for a cache."""
        c, params = self.config, self.blocks.variables["params"]
        cross = MultiHeadAttention(c.num_heads, c.head_width, normal(c.stddev), 0.0, parent=None)
        layers = (layer_params(params, layer)["cross_attention"] for layer in range(c.num_layers))
        return tuple(cross.apply({"params": layer}, memory, method="key_value") for layer in layers)

    def extend(self, ids: Int[Array, " B"], cache: Cache) -> tuple[Float[Array, "B V"], Cache]:
        """Appends one token to each text. Returns logits of the token after it, and the new cache."""
        c, params = self.config, self.blocks.variables["params"]
        position = cache.index.reshape(-1, 1)  # one row, unless each has its own
        x = self.embeddings(Inputs(ids[:, None], positions=position)).astype(self.dtype)
        mask = (jnp.arange(cache.layers[0].key.shape[2]) <= position)[:, None, None]
        block, layers = Block(**block_settings(c), parent=None), []
        for number, (layer, memory) in enumerate(zip(cache.layers, cache.memory, strict=True)):
            own = {"params": layer_params(params, number)}
            x, layer = block.apply(own, x, mask, layer, cache.index, memory)
            layers.append(layer)
        logits = self.lm_logits(self.normed(x[:, 0]))
        return logits, cache._replace(layers=tuple(layers), index=cache.index + 1)


class Captioner(ModelModule):
    """The ViT, the decoder, and decoding with a cache."""

    config: CaptionerConfig
    dtype: jnp.dtype

    def setup(self):
        c = self.config
        self.vision, self.language = c.vision.make(self.dtype.name), Decoder(c.language, self.dtype)
        if c.vision.d_model != c.language.d_model:
            self.projector = Linear((c.language.d_model,), ("norm", "embed"), normal(c.language.stddev))

    def __call__(self, inputs: Inputs) -> Float[Array, "B S D"]:
        """Hidden states of the decoder. Dropout acts if a "dropout" key is given.

        Args:
          inputs: `images`; `inputs.decoder`: the decoder's tokens so far, `start_id` first. Other fields are not read.

        Raises:
          UserError: there are no images or no `decoder`, or the text is longer than the decoder's positions.
        """
        if inputs.decoder is None:
            raise UserError("Captioner: the inputs have no `decoder`, which an encoder–decoder needs")
        return self.language(inputs.decoder, self.memory(inputs.images))

    def memory(self, images: UInt8[Array, "B F H W C"] | Float[Array, "B F H W C"] | None) -> Float[Array, "B P D"]:
        """The image's vectors, class token first, as wide as the decoder."""
        if images is None:
            raise UserError("Captioner: there are no images; give data whose batches have the field `images`")
        states = self.vision(Inputs(images=images))
        return states if self.config.vision.d_model == self.config.language.d_model else self.projector(states)

    def lm_logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Logits of the next token."""
        return self.language.lm_logits(hidden)

    def lens_logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Logits from the state after any block of the decoder, as if it were the last one."""
        return self.language.lm_logits(self.language.normed(hidden))

    def prefill(
        self,
        prompt_ids: Int[Array, "B P"],
        starts: Int[Array, " B"],
        length: int,
        images: UInt8[Array, "B F H W C"] | Float[Array, "B F H W C"] | None = None,
    ) -> tuple[Float[Array, "B V"], Cache]:
        """Reads images and starts the decoder.

        Args:
          prompt_ids: not read: the image is the prompt.
          starts: not read.
          length: columns of the cache, for `start_id` and the output.
          images: pixels.

        Returns:
          Logits of the first token of each output, and the cache.

        Raises:
          UserError: there are no images, or the output may be longer than the decoder's positions.
        """
        c = self.config.language
        if length - 1 > c.max_len:  # the last token is not read
            advice = f"lower max_new_tokens to {c.max_len}"
            raise UserError(f"Captioner: max_new_tokens={length - 1} exceeds language.max_len={c.max_len}; {advice}")
        memory = self.memory(images)
        shape = (len(memory), c.num_heads, length, c.head_width)
        empty = KeyValue(jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype))
        real, index = jnp.ones(memory.shape[:2], bool), jnp.zeros((), jnp.int32)
        cache = Cache((empty,) * c.num_layers, self.language.memory_key_values(memory), real, index)
        return self.extend(jnp.full(len(memory), self.config.start_id, prompt_ids.dtype), cache)

    def extend(self, ids: Int[Array, " B"], cache: Cache) -> tuple[Float[Array, "B V"], Cache]:
        """Appends one token to each output. Returns logits of the token after it, and the new cache."""
        return self.language.extend(ids, cache)
