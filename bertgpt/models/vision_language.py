"""Language models that read images: patch vectors of a ViT, projected, stand before the tokens as a prefix.

    p = W · ViT(image);   h = LanguageModel([p; E[token]])

After ClipCap (Mokady et al. 2021) and LLaVA (Liu et al. 2023, 2024) with a decoder; with T5 the prefix goes into the
encoder, with BERT an image and a statement are classified together. Frames of a video are more patches, whose time the
ViT tells by a position of its own.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from bertgpt.layers.embed import embed_tokens, place_prefix
from bertgpt.layers.linear import Linear, fan_in_normal
from bertgpt.layers.mlp import ACTIVATIONS
from bertgpt.models.apply import ModelModule
from bertgpt.models.bert import BertConfig
from bertgpt.models.config import stacks_of_parts
from bertgpt.models.gpt import Cache, GptConfig
from bertgpt.models.t5 import T5, T5Config
from bertgpt.models.t5 import Cache as T5Cache
from bertgpt.models.vit import VitConfig
from bertgpt.ranges import Count, check_fields
from bertgpt.types import Architecture, Inputs, JsonObject, ModelConfig, Params, UserError

ProjectorKind = Literal["linear", "mlp", "clipcap"]
Features = Literal["patches", "all", "class"]
Layer = Literal["last", "penultimate"]


@dataclasses.dataclass(frozen=True)
class PrefixConfig(ModelConfig):
    """A ViT, a projector, and a language model, whose architecture and outputs the whole has."""

    vision: VitConfig
    """reads the images"""
    language: BertConfig | GptConfig | T5Config
    """reads prefix and tokens"""
    projector: ProjectorKind = "mlp"
    """one layer (LLaVA); two with GELU (LLaVA-1.5); two with tanh that make `num_vectors` of each feature (ClipCap)"""
    features: Features = "patches"
    """which of the ViT's vectors are projected: patches alone, with the class token, or the class token alone"""
    layer: Layer = "last"
    """after which of the ViT's blocks; LLaVA reads CLIP's penultimate one"""
    num_vectors: Count = 10
    """clipcap: vectors of the prefix for each feature"""

    def __post_init__(self):
        check_fields(self)
        if self.language.architecture != "encoder_decoder" and self.max_len < 1:
            raise UserError(
                f"VisionLanguage: a prefix of {self.prefix_length} vectors leaves no token of"
                f" language.max_len={self.language.max_len}"
            )

    @property
    def prefix_length(self) -> int:
        """Vectors before the tokens, of images of the configured size."""
        patches = self.vision.num_patches
        features = {"patches": patches, "all": patches + 1, "class": 1}[self.features]
        return features * (self.num_vectors if self.projector == "clipcap" else 1)

    @property
    def architecture(self) -> Architecture:
        """That of the language model."""
        return self.language.architecture

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding table."""
        return self.language.vocab_size

    @property
    def max_len(self) -> int:
        """Longest sequence of tokens: what the prefix leaves of the language model's positions; T5 sets no limit."""
        limit = self.language.max_len
        return limit if self.architecture == "encoder_decoder" else limit - self.prefix_length

    @property
    def num_types(self) -> int:
        """Token types of the language model."""
        return self.language.num_types

    @property
    def start_id(self) -> int | None:
        """The token that the decoder of T5 starts with."""
        return self.language.start_id

    @property
    def image_shape(self) -> tuple[int, int, int, int]:
        """Frames, height, width and channels of the images."""
        return self.vision.image_shape

    @property
    def outputs(self) -> frozenset[str]:
        """Methods of the language model."""
        return self.language.outputs

    @property
    def stacks(self) -> tuple[str, ...]:
        """Paths of parameters that have a leading axis of layers."""
        return stacks_of_parts({"vision": self.vision, "language": self.language})

    def networks(self, params: Params) -> Mapping[str, tuple[ModelConfig, Params]]:
        """The language model and the ViT."""
        return {"language": (self.language, params["language"]), "vision": (self.vision, params["vision"])}

    def make(self, dtype: str = "float32") -> "VisionLanguage":
        """The flax module, computing in `dtype`."""
        return VisionLanguage(self, jnp.dtype(dtype))


class Projector(nn.Module):
    """Features of an image as vectors that a language model reads in place of embedded tokens."""

    kind: ProjectorKind
    width: int
    """of the language model's embeddings"""
    num_vectors: int
    """clipcap: vectors for each feature"""

    @nn.compact
    def __call__(self, features: Float[Array, "B N V"]) -> Float[Array, "B P D"]:
        init = fan_in_normal(1 / 3)  # the variance of torch's default, with which the released projectors began
        if self.kind == "linear":
            return Linear((self.width,), ("norm", "embed"), init, name="up")(features)
        vectors = self.num_vectors if self.kind == "clipcap" else 1
        inner = self.width * vectors // 2 if self.kind == "clipcap" else self.width
        act = ACTIVATIONS["tanh" if self.kind == "clipcap" else "gelu"]
        hidden = act(Linear((inner,), ("embed", "mlp"), init, name="up")(features))
        projected = Linear((self.width * vectors,), ("mlp", "embed"), init, name="down")(hidden)
        return projected.reshape(len(features), -1, self.width)


class VisionLanguage(ModelModule):
    """The ViT, the projector, and the language model; it has the methods of the language model."""

    config: PrefixConfig
    dtype: jnp.dtype

    def setup(self):
        c = self.config
        self.vision, self.language = c.vision.make(self.dtype.name), c.language.make(self.dtype.name)
        width = (
            (c.language.embed_dim or c.language.d_model) if isinstance(c.language, BertConfig) else c.language.d_model
        )
        self.projector = Projector(c.projector, width, c.num_vectors)

    def run(self, inputs: Inputs | None, method: str, task: str | None, named: JsonObject) -> object:
        """Calls a method by its name: `prefill` here, any other of the language model with the images as its prefix."""
        if method == "prefill":
            return super().run(inputs, method, task, named)
        return self.language.run(None if inputs is None else self.with_prefix(inputs), method, task, named)

    def __call__(self, inputs: Inputs) -> Float[Array, "B S D"]:
        """Hidden states of the tokens. Dropout acts if a "dropout" key is given.

        Raises:
          UserError: prefix and tokens are longer than the language model allows, the sequences are packed, or the
            model is being initialised without images.
        """
        return self.language(self.with_prefix(inputs))

    def with_prefix(self, inputs: Inputs) -> Inputs:
        """The inputs with the prefix in place of the images; inputs without images are texts alone."""
        if inputs.images is not None:
            return inputs._replace(prefix=self.prefix(inputs.images), images=None)
        if self.is_initializing():
            raise UserError("VisionLanguage: the data has no images; give data whose batches have the field `images`")
        return inputs

    def prefix(self, images: UInt8[Array, "B F H W C"] | Float[Array, "B F H W C"]) -> Float[Array, "B P D"]:
        """The vectors that stand for the images."""
        c = self.config
        states = self.vision.features(Inputs(images=images), c.layer, class_token=c.features != "patches")
        return self.projector(states[:, :1] if c.features == "class" else states)

    def prefill(
        self,
        prompt_ids: Int[Array, "B P"],
        starts: Int[Array, " B"],
        length: int,
        images: UInt8[Array, "B F H W C"] | Float[Array, "B F H W C"] | None = None,
        **own: bool,
    ) -> tuple[Float[Array, "B V"], Cache | T5Cache]:
        """Reads images and prompts, which are padded on the left: padding, then the prefix, then the tokens.

        Args:
          prompt_ids: token ids.
          starts: column of each prompt's first token.
          length: columns of the cache for tokens; those of the prefix are added.
          images: pixels; None: the prompts are texts alone.
          own: further arguments of the language model's `prefill`.

        Returns:
          Logits of the token after each prompt, and the cache.
        """
        if images is None:
            return self.language.prefill(prompt_ids, starts, length, **own)
        prefix = self.prefix(images)
        table = self.language.token if isinstance(self.language, T5) else self.language.embeddings.token
        embeds = place_prefix(prefix, embed_tokens(table, Inputs(prompt_ids)), starts)
        if self.config.architecture == "decoder":
            length += prefix.shape[1]
        return self.language.prefill(prompt_ids, starts, length, embeds=embeds, **own)
