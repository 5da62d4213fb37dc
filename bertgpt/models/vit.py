"""The Vision Transformer (Dosovitskiy et al. 2021): an encoder of the patches of an image, or of the frames of a video.

h⁰ = [class token; W patch + b] + P[position];   hˡ = hˡ⁻¹ + Attention(LN(hˡ⁻¹)) + FFN(LN(·)), l = 1…L;   LN(h^L)

DeiT's and CLIP's towers are numbers on it. Videos have a learned position in time as well (Bertasius et al. 2021).
"""

import dataclasses
from typing import Annotated, ClassVar, Literal, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bertgpt.layers.block import Block
from bertgpt.layers.heads import ClassificationHead, TaskLayers
from bertgpt.layers.linear import Linear, truncated_normal
from bertgpt.layers.masks import Attention, Mask, make_mask
from bertgpt.layers.mlp import Activation
from bertgpt.layers.norm import LayerNorm
from bertgpt.layers.patches import PatchEmbeddings, normalize_pixels, resize_positions
from bertgpt.layers.space_time import DividedBlock
from bertgpt.layers.stack import run_stack, stack
from bertgpt.models.apply import ModelModule
from bertgpt.models.config import TransformerConfig
from bertgpt.ranges import Count, Epsilon, Positive, Range, Rate, Remat, Width, remat_policy
from bertgpt.sharding import constrain
from bertgpt.types import Architecture, Inputs, JsonObject, ModelConfig, Params, UserError

One = Annotated[int, Range(1, 1)]
Config = TypeVar("Config", bound=ModelConfig)


@dataclasses.dataclass(frozen=True)
class VitConfig(TransformerConfig):
    """Architecture of a Vision Transformer."""

    vocab_size: One = 1
    """always 1: the class token, which `input_ids` names, is the only token"""
    max_len: One = 1
    """always 1: patches come from `Inputs.images` and are no tokens"""
    image_size: tuple[Width, Width] = (224, 224)
    """height and width, in pixels, for which the positions are learned; others are interpolated"""
    patch_size: Width = 16
    """side of a patch, in pixels"""
    channels: Width = 3
    """numbers of a pixel"""
    frames: Count = 1
    """frames of a video that have a position in time; 1: still images"""
    time_attention: Literal["joint", "factorised"] = "joint"
    """of videos: all patches of all frames attend to each other; factorised: those of one place, then those of one
    frame, which is TimeSformer's divided attention"""
    image_mean: tuple[Annotated[float, Range(-1000.0, 1000.0)], ...] = (0.5, 0.5, 0.5)
    """mean of each channel, subtracted from pixels in [0, 1]"""
    image_std: tuple[Positive, ...] = (0.5, 0.5, 0.5)
    """standard deviation of each channel, by which pixels are then divided"""
    pre_norm: bool = False
    """a layer norm before the first block (CLIP)"""
    patch_bias: bool = True
    """the embedding of patches has a bias (CLIP: not)"""
    final_norm: bool = True
    """a layer norm after the last block; False: hidden states are the last block's (CLIP)"""
    pooler: Literal["first", "mean", "tanh"] = "first"
    """vector of the image: the class token's state h; the mean state of the patches; or tanh(W h + b)"""
    activation: Activation = "gelu"
    """nonlinearity of the feed-forward network"""
    norm_eps: Epsilon = 1e-12
    """epsilon of every layer norm, that of Hugging Face's files; the released code has 1e-6"""
    dropout: Rate = 0.0
    """dropout on embeddings and sublayer outputs"""
    attention_dropout: Rate = 0.0
    """dropout on attention weights"""
    classifier_dropout: Rate = 0.0
    """dropout before the head of a task"""
    stddev: Annotated[float, Range(0.0, 1.0, above=True)] = 0.02
    """standard deviation of initial weights"""
    attention: Attention = "auto"
    """what computes attention: all scores at once (xla), blocks of them (chunked), a TPU kernel (flash) or cuDNN; auto:
    a kernel where it applies, else xla for up to 1,024 patches and chunked beyond"""
    scan: bool = False
    """compile one block and loop over it (for deep models) instead of unrolling the stack"""
    remat: Remat = "none"
    """what the backward pass recomputes instead of storing it: nothing; all but the results of dense layers (dots); all
    but queries, keys, values, attention outputs and inner activations (names); everything (full)"""

    architecture: ClassVar[Architecture] = "encoder"
    outputs: ClassVar[frozenset[str]] = frozenset(("features", "pool", "class_logits"))
    stacks: ClassVar[tuple[str, ...]] = ("encoder",)

    def __post_init__(self):
        self.check("Vit")
        object.__setattr__(self, "remat", remat_policy(self.remat))
        for name in ("image_mean", "image_std"):
            if len(vars(self)[name]) != self.channels:
                raise UserError(f"Vit: {name}={vars(self)[name]} must have channels={self.channels} numbers")
        if any(side % self.patch_size for side in self.image_size):
            raise UserError(f"Vit: image_size={self.image_size} is not divisible by patch_size={self.patch_size}")
        if self.time_attention == "factorised" and self.frames == 1:
            raise UserError("Vit: time_attention='factorised' needs frames of at least 2")

    @property
    def image_shape(self) -> tuple[int, int, int, int]:
        """Frames, height, width and channels of the images that it reads."""
        return (self.frames, *self.image_size, self.channels)

    @property
    def num_patches(self) -> int:
        """Patches of all frames of an image of `image_size`; hidden states have one vector more, the class token's."""
        height, width = (side // self.patch_size for side in self.image_size)
        return self.frames * height * width

    def make(self, dtype: str = "float32") -> "Vit":
        """The flax module, computing in `dtype`."""
        return Vit(self, jnp.dtype(dtype))


class Vit(ModelModule):
    """The encoder, its pooler and a classifier."""

    config: VitConfig
    dtype: jnp.dtype

    task_methods: ClassVar[frozenset[str]] = frozenset(("class_logits",))

    def setup(self):
        c, init = self.config, truncated_normal(self.config.stddev)
        self.embeddings = PatchEmbeddings(
            c.d_model, c.image_size, c.patch_size, c.frames, c.patch_bias, c.dropout, init
        )
        if c.pre_norm:
            self.pre_norm = LayerNorm(c.norm_eps)
        self.encoder = self.blocks(c.num_layers)
        if c.final_norm:
            self.final_norm = LayerNorm(c.norm_eps)
        self.pooler = Linear((c.d_model,), ("embed", "norm"), init)
        self.classifier = ClassificationHead(c.classifier_dropout, init)

    @nn.nowrap
    def block(self) -> tuple[type[nn.Module], JsonObject]:
        """The class of the blocks and its arguments."""
        c = self.config
        settings: JsonObject = {
            "num_heads": c.num_heads,
            "d_ff": c.d_ff,
            "activation": c.activation,
            "norm_eps": c.norm_eps,
            "dropout": c.dropout,
            "attention_dropout": c.attention_dropout,
            "kernel_init": truncated_normal(c.stddev),
        }
        if c.time_attention == "joint":
            return Block, settings | {"norm_position": "pre", "head_dim": c.head_dim}
        return DividedBlock, settings | {"head_dim": c.head_width, "frames": c.frames, "attention": c.attention}

    @nn.nowrap
    def blocks(self, num_layers: int, **options: None) -> nn.Module:
        """A stack of this many blocks."""
        block, settings = self.block()
        return stack(block, num_layers, self.config.scan, self.config.remat)(**settings, **options)

    def __call__(self, inputs: Inputs) -> Float[Array, "B N D"]:
        """Hidden states of the class token and the patches, frame by frame, after the final norm.

        Dropout acts if a "dropout" key is given.

        Raises:
          UserError: there are no images, or they have other channels or frames than the model.
        """
        x, masks = self.embed(inputs)
        block, settings = self.block()
        x = run_stack(self.encoder, block(**settings, parent=None), x, *masks)
        return self.final_norm(x) if self.config.final_norm else x

    def embed(self, inputs: Inputs) -> tuple[Float[Array, "B N D"], tuple[Mask | Array | None, ...]]:
        """What the first block reads, and the arguments of all blocks beside the states."""
        c, images = self.config, inputs.images
        if images is None:
            raise UserError("Vit: reads images, and the inputs have none (data with an image field, or --image)")
        if images.shape[-1] != c.channels:
            raise UserError(f"Vit: images of {images.shape[-1]} channels, but model.channels={c.channels}")
        if c.time_attention == "factorised" and images.shape[1] != c.frames:
            raise UserError(f"Vit: {images.shape[1]} frames, but model.frames={c.frames}")
        x = self.embeddings(normalize_pixels(images, c.image_mean, c.image_std).astype(self.dtype))
        if c.pre_norm:
            x = self.pre_norm(x)
        x = constrain(x, ("batch", "seq", None))
        self.sow("intermediates", "embedded", x)
        if c.time_attention == "factorised":
            return x, ()
        dropout = c.attention_dropout > 0 and self.has_rng("dropout")
        return x, (make_mask(c.attention, (x.shape[1],) * 2, c.head_width, x.dtype, Mask(), dropout=dropout),)

    def features(
        self, inputs: Inputs, layer: Literal["last", "penultimate"] = "last", class_token: bool = True
    ) -> Float[Array, "B N D"]:
        """The vectors that language models read as a prefix.

        Args:
          inputs: images.
          layer: "last": hidden states after the final norm. "penultimate": after all blocks but the last, without the
            final norm, as LLaVA reads CLIP (Liu et al. 2023 §4.1). The last block then is not run; its parameters
            exist, so that weights can be loaded whole, and have no gradient.
          class_token: whether the class token's state comes first; False: patches only.

        Raises:
          UserError: as for hidden states, or the model has one block only.
        """
        if layer == "penultimate" and self.config.num_layers == 1:
            raise UserError("Vit: num_layers=1 has no penultimate block")
        if layer == "last" or self.is_initializing():
            x = self(inputs)
        else:
            x = self._all_but_last(*self.embed(inputs))
        return x if class_token else x[:, 1:]

    def _all_but_last(self, x: Float[Array, "B N D"], masks: tuple[Mask | Array | None, ...]) -> Float[Array, "B N D"]:
        params, count = self.encoder.variables["params"], self.config.num_layers - 1
        rngs = {"dropout": self.make_rng("dropout")} if self.has_rng("dropout") else {}
        if "0" not in params:  # stacked; layers that are split for inference are run one by one
            params = jax.tree.map(lambda leaf: leaf[:count], params)
            return self.blocks(count, parent=None).apply({"params": params}, x, *masks, rngs=rngs)[0]
        block, settings = self.block()
        for number in range(count):
            x, _ = block(**settings, parent=None).apply({"params": params[str(number)]}, x, *masks)
        return x

    def pool(
        self, hidden: Float[Array, "B N D"], segment_ids: Int[Array, "B S"], packed: int | None = None
    ) -> Float[Array, "B D"]:
        """The vector of each image; `segment_ids` change nothing, because every image is whole.

        Raises:
          UserError: several images are packed into a sequence.
        """
        del segment_ids
        if packed is not None:
            raise UserError("Vit: images cannot be packed into sequences (data.pack)")
        if self.config.pooler == "mean":
            return jnp.mean(hidden[:, 1:], axis=1)
        return jnp.tanh(self.pooler(hidden[:, 0])) if self.config.pooler == "tanh" else hidden[:, 0]

    def class_logits(
        self,
        hidden: Float[Array, "B N D"],
        segment_ids: Int[Array, "B S"],
        num_labels: int,
        packed: int | None = None,
        task: str | None = None,
    ) -> Float[Array, "B C"]:
        """Class logits of each image: one fully connected layer on its vector."""
        return self.layers(task).classifier(self.pool(hidden, segment_ids, packed), num_labels)

    @nn.compact
    def layers(self, task: str | None) -> "Vit | TaskLayers":
        """The module that holds the heads: the model itself, or the task's own where several tasks share a model."""
        if task is None:
            return self
        return TaskLayers(self.config.classifier_dropout, truncated_normal(self.config.stddev), name=f"task_{task}")


def vision_of(config: ModelConfig) -> VitConfig | None:
    """The part of a model that reads images: itself, or its field `vision`; None if no part does."""
    found = config if isinstance(config, VitConfig) else vars(config).get("vision")
    return found if isinstance(found, VitConfig) else None


def with_vision(config: Config, vision: VitConfig) -> Config:
    """A model that reads images, with another config of the part that does."""
    if isinstance(config, VitConfig):
        return dataclasses.replace(config, **vars(vision))
    return dataclasses.replace(config, **{"vision": vision})


def fit_images(target: ModelConfig, source: Config, params: Params) -> tuple[Config, Params]:
    """Pretrained weights for images of other sizes, and for videos.

    Positions are interpolated to the target's `image_size` (Dosovitskiy et al. 2021 §3.2). A model of still images may
    become one of videos; what only videos need is then not among the parameters.

    Args:
      target: the model that starts from the weights.
      source: the model that the weights belong to.
      params: the weights.

    Returns:
      Config and parameters of the source; as they are, if either model reads no images.
    """
    new, old = vision_of(target), vision_of(source)
    if new is None or old is None or new.patch_size != old.patch_size:
        return source, params
    videos = {"frames": new.frames, "time_attention": new.time_attention} if old.frames == 1 else {}
    if new.image_size != old.image_size:
        inner = params if isinstance(source, VitConfig) else params["vision"]
        table = jnp.asarray(inner["embeddings"]["position"])
        sides = (tuple(side // old.patch_size for side in size) for size in (old.image_size, new.image_size))
        resized = np.asarray(jnp.concatenate([table[:1], resize_positions(table[1:], *sides)]))
        inner = {**inner, "embeddings": {**inner["embeddings"], "position": resized}}
        params = inner if isinstance(source, VitConfig) else {**params, "vision": inner}
    return with_vision(source, dataclasses.replace(old, image_size=new.image_size, **videos)), params


# Ti and S: Touvron et al. 2021 (DeiT) table 1. B and L: Dosovitskiy et al. 2021 table 1. The number is the patch size.
VIT_B16 = VitConfig()
VIT_B32 = dataclasses.replace(VIT_B16, patch_size=32)
VIT_TI16 = dataclasses.replace(VIT_B16, d_model=192, num_heads=3, d_ff=768)
VIT_S16 = dataclasses.replace(VIT_B16, d_model=384, num_heads=6, d_ff=1536)
VIT_S32 = dataclasses.replace(VIT_S16, patch_size=32)
VIT_L16 = dataclasses.replace(VIT_B16, d_model=1024, num_layers=24, num_heads=16, d_ff=4096)
VIT_L32 = dataclasses.replace(VIT_L16, patch_size=32)
