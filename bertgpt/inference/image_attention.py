"""Where a model looks while it writes: the attention of each word of a text to the patches of an image."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from bertgpt.inference.decoding import Decoding
from bertgpt.inference.generate import check_writes, generate_ids, split_stops
from bertgpt.inference.image_tasks import image_prompts
from bertgpt.inference.inspect import attention_leaves
from bertgpt.inference.model import Model
from bertgpt.models.captioner import CaptionerConfig
from bertgpt.models.vision_language import PrefixConfig
from bertgpt.types import Apply, Inputs, JsonObject, Params, UserError


class ImageAttention(NamedTuple):
    """Attention weights of each layer L and head H, for each of T tokens of a text, while the token was predicted."""

    tokens: tuple[str, ...]
    """of the text"""
    text: str
    words: tuple[tuple[str, int, int], ...]
    """of each word of the text: the word, its first token, and the one after its last"""
    weights: Float[np.ndarray, "L H T K"]
    """to everything that the model attends to there, which sums to 1: the image's vectors and, of models that read the
    image as a prefix, the tokens after it"""
    first: int
    """index of the first patch"""
    grid: tuple[int, int, int]
    """frames, rows and columns of patches"""
    pixels: UInt8[np.ndarray, "F H W C"]
    """the image as the model reads it"""

    def maps(self, layer: int = -1) -> Float[np.ndarray, "T F h w"]:
        """The weights of the patches, averaged over the heads of a layer; they sum to at most 1 for each token."""
        patches = self.weights[layer].mean(0)[:, self.first : self.first + int(np.prod(self.grid))]
        return patches.reshape(-1, *self.grid)


def image_attention(
    model: Model, record: JsonObject, text: str | None = None, decoding: Decoding | None = None
) -> ImageAttention:
    """Attention of the words of a text to an image: cross-attention of a captioner (Xu et al. 2015 show it so), or of
    models that read an image as a prefix the self-attention, or T5's cross-attention, to the prefix.

    A token's weights are those of the position that predicts it. They are no explanations by themselves (Jain & Wallace
    2019).

    Args:
      model: a model that reads images and writes texts, from `bertgpt.load`.
      record: the image and, for a model that reads one, the prompt: see `image_prompts`.
      text: what the model is to write; None: what it generates.
      decoding: how it generates; None: as its directory says, else greedily.

    Raises:
      UserError: the model reads no images or writes no text, its image is not seen patch by patch, or there is no
        token.
    """
    check_writes(model)
    config = model.config
    if not isinstance(config, CaptionerConfig | PrefixConfig):
        raise UserError(f"{model.name}: writes no text about images")
    if isinstance(config, PrefixConfig) and (config.features == "class" or config.projector == "clipcap"):
        raise UserError(f"{model.name}: its prefix stands for the whole image, so that no patch is attended to")
    (prompt,), read = image_prompts(model, [record])
    images = read(np.array([0]))
    if text is None:
        stops, _ = split_stops(model, ())
        ((output,),) = generate_ids(
            model.apply, model.params, config, [prompt], decoding or model.decoding, stops, None, images
        )
        ids = output.ids
    else:
        ids = model.tokenizer.encode([text])[0]
    if not ids:
        raise UserError(f"{model.name}: the text has no token, so that nothing attends to the image")
    weights = np.asarray(_weights(model.apply, model.params, inputs_of(model, prompt, ids, images)))
    grid = (config.image_shape[0], *(side // config.vision.patch_size for side in config.image_shape[1:3]))
    first = 1 if isinstance(config, CaptionerConfig) or config.features == "all" else 0
    return ImageAttention(
        tokens=tuple(model.tokenizer.tokens(ids)),
        text=model.tokenizer.decode(ids),
        words=words_of(model, ids),
        weights=weights[:, :, -len(ids) :],
        first=first,
        grid=grid,
        pixels=images[0],
    )


def inputs_of(model: Model, prompt: list[int], ids: list[int], images: UInt8[np.ndarray, "1 F H W C"]) -> Inputs:
    """What the model reads when it predicts the last of the tokens."""
    before, pixels = ids[:-1], jnp.asarray(images)
    if model.config.architecture == "decoder":
        return Inputs(jnp.asarray([[*prompt, *before]], jnp.int32), images=pixels)
    decoder = Inputs(jnp.asarray([[model.config.start_id, *before]], jnp.int32))
    return Inputs(jnp.asarray([prompt], jnp.int32), images=pixels, decoder=decoder)


@functools.partial(jax.jit, static_argnames=("apply",))
def _weights(apply: Apply, params: Params, inputs: Inputs) -> Float[Array, "L H T K"]:
    """Of the decoder's cross-attention, if it has any, else of its self-attention."""
    tree = apply(params, inputs, auxiliary="attention")[1]["language"]
    found = attention_leaves(tree.get("decoder", tree))
    return found.get("cross_attention", found["attention"])


def words_of(model: Model, ids: list[int]) -> tuple[tuple[str, int, int], ...]:
    """(word, first token, the one after the last) of each word."""
    continued = set(model.tokenizer.vocab.continuation)
    starts = [i for i, token in enumerate(ids) if i == 0 or token not in continued]
    ends = [*starts[1:], len(ids)]
    return tuple((model.tokenizer.decode(ids[i:j]).strip(), i, j) for i, j in zip(starts, ends, strict=True))
