"""CLIP (Radford et al. 2021): an encoder of images and one of texts, whose vectors are compared by their cosine.

    image → ViT → class token → W_I → unit vector;   text → GPT → state of its end token → W_T → unit vector
    logit of image i and text j = exp(s) · cos(i, j), with a learned scalar s

Both towers are models of their own: `Vit` and `Gpt`, whose parameters lie under vision/ and text/.
"""

import dataclasses
from typing import Annotated, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bertgpt.layers.linear import Linear, normal
from bertgpt.models.apply import ModelModule
from bertgpt.models.config import stacks_of_parts
from bertgpt.models.gpt import Gpt, GptConfig
from bertgpt.models.vit import VIT_B16, VIT_B32, VIT_L16, Vit, VitConfig
from bertgpt.ranges import Natural, Range, Width, check_fields
from bertgpt.types import Architecture, Inputs, ModelConfig, UserError


@dataclasses.dataclass(frozen=True)
class ClipConfig(ModelConfig):
    """The two towers of CLIP, and the space in which they meet."""

    vision: VitConfig
    """the encoder of images; its pooled vector is projected"""
    text: GptConfig
    """the encoder of texts"""
    projection_dim: Width = 512
    """width of the vectors that are compared"""
    initial_log_scale: Annotated[float, Range(-10.0, 10.0)] = 2.6592
    """s at the start of training; log(1 / 0.07) in the paper (§2.5)"""
    end_id: Natural | None = None
    """the token whose state, at its first place in a text, is the text's vector (CLIP: 49,407, <|endoftext|>); None:
    the last token, whichever it is"""

    architecture: ClassVar[Architecture] = "encoder"
    outputs: ClassVar[frozenset[str]] = frozenset(("image_features", "text_features", "log_scale"))

    def __post_init__(self):
        check_fields(self)
        if self.end_id is not None and self.end_id >= self.text.vocab_size:
            raise UserError(f"Clip: end_id={self.end_id} must be less than text.vocab_size={self.text.vocab_size}")

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding table of texts."""
        return self.text.vocab_size

    @property
    def max_len(self) -> int:
        """Longest text."""
        return self.text.max_len

    @property
    def image_shape(self) -> tuple[int, int, int, int]:
        """Frames, height, width and channels of the images that it reads."""
        return self.vision.image_shape

    @property
    def stacks(self) -> tuple[str, ...]:
        """Paths of parameters that have a leading axis of layers."""
        return stacks_of_parts({"vision": self.vision, "text": self.text})

    def make(self, dtype: str = "float32") -> "Clip":
        """The flax module, computing in `dtype`."""
        return Clip(self, jnp.dtype(dtype))


class LogScale(nn.Module):
    """The scalar s. Its name exempts it from weight decay, as all gains are (Radford et al. 2021 §2.5)."""

    initial: float

    @nn.compact
    def __call__(self) -> Float[Array, ""]:
        value = nn.with_logical_partitioning(nn.initializers.constant(self.initial), ())
        return self.param("scale", value, ())


class Clip(ModelModule):
    """The two towers, their projections and the scale of the logits."""

    config: ClipConfig
    dtype: jnp.dtype

    def setup(self):
        c = self.config
        self.vision, self.text = Vit(c.vision, self.dtype), Gpt(c.text, self.dtype)
        self.vision_projection, self.text_projection = (
            Linear((c.projection_dim,), ("embed", "norm"), normal(width**-0.5), use_bias=False)
            for width in (c.vision.d_model, c.text.d_model)
        )
        self.logit_scale = LogScale(c.initial_log_scale)

    def __call__(self, inputs: Inputs) -> Float[Array, "B 2 E"]:
        """The unit vectors of the image and of the text of each example."""
        return jnp.stack([self.image_features(inputs), self.text_features(inputs)], axis=1)

    def image_features(self, inputs: Inputs) -> Float[Array, "B E"]:
        """The unit vector of each image, in float32 at least; texts in the inputs are not read."""
        hidden = self.vision(Inputs(images=inputs.images))
        segments = jnp.ones((hidden.shape[0], 1), jnp.int32)
        return unit(self.vision_projection(self.vision.pool(hidden, segments)))

    def text_features(self, inputs: Inputs) -> Float[Array, "B E"]:
        """The unit vector of each text, in float32 at least; images in the inputs are not read.

        Raises:
          UserError: the texts are longer than max_len.
        """
        inputs = inputs._replace(images=None)
        hidden = self.text(inputs)
        if self.config.end_id is None:
            segments = jnp.ones(hidden.shape[:2], jnp.int32) if inputs.segment_ids is None else inputs.segment_ids
            pooled = self.text.pool(hidden, segments)
        else:
            first = jnp.argmax(inputs.input_ids == self.config.end_id, axis=1)
            pooled = jnp.take_along_axis(hidden, first[:, None, None], axis=1)[:, 0]
        return unit(self.text_projection(pooled))

    def log_scale(self) -> Float[Array, ""]:
        """s: the logarithm of the factor on cosines."""
        return self.logit_scale()


def unit(x: Float[Array, "B E"]) -> Float[Array, "B E"]:
    """Vectors divided by their norm, in float32 at least."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-24))


# Radford et al. 2021 table 20 and the released configurations: the text tower of every size has 12 layers.
_VISION = {"pre_norm": True, "patch_bias": False, "activation": "quick_gelu", "norm_eps": 1e-5}
_VISION |= {"image_mean": (0.48145466, 0.4578275, 0.40821073), "image_std": (0.26862954, 0.26130258, 0.27577711)}
_TEXT = GptConfig(
    vocab_size=49_408, max_len=77, d_model=512, num_heads=8, d_ff=2048, activation="quick_gelu", dropout=0.0,
    attention_dropout=0.0,
)  # fmt: skip
CLIP_VIT_B32 = ClipConfig(dataclasses.replace(VIT_B32, **_VISION), _TEXT, end_id=49_407)
CLIP_VIT_B16 = dataclasses.replace(CLIP_VIT_B32, vision=dataclasses.replace(VIT_B16, **_VISION))
CLIP_VIT_L14 = ClipConfig(
    dataclasses.replace(VIT_L16, patch_size=14, **_VISION),
    dataclasses.replace(_TEXT, d_model=768, num_heads=12, d_ff=3072),
    projection_dim=768,
    end_id=49_407,
)
