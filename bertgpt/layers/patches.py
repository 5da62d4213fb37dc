"""Images as sequences: normalised pixels, patches, their embedding, and positions for images of any size."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from bertgpt.layers.dropout import Dropout
from bertgpt.layers.embed import table
from bertgpt.layers.linear import Init, Linear
from bertgpt.sharding import gather
from bertgpt.types import UserError


def normalize_pixels(
    images: UInt8[Array, "B F H W C"] | Float[Array, "B F H W C"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Array, "B F H W C"]:
    """(x / 255 − mean) / std of each channel in float32; pixels that are floats already are normalised and stay so."""
    if jnp.issubdtype(images.dtype, jnp.floating):
        return images
    return (images.astype(jnp.float32) / 255 - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)


def patchify(images: Float[Array, "B F H W C"], size: int) -> Float[Array, "B F P D"]:
    """The patches of `size` × `size` pixels of each frame, row by row, each as one vector of row, column, channel."""
    batch, frames, height, width, channels = images.shape
    rows, columns = height // size, width // size
    x = images.reshape(batch, frames, rows, size, columns, size, channels)
    return x.swapaxes(3, 4).reshape(batch, frames, rows * columns, size * size * channels)


def bicubic_weights(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """The matrix that interpolates `new` values from `old` ones by cubic convolution (Keys 1981).

    As torch's `interpolate(mode="bicubic", align_corners=False)`: a = −0.75, centres of pixels at half numbers, values
    beyond the edge equal those at the edge, and no smoothing where the size shrinks.
    """
    a = -0.75
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(centres).astype(int)
    weights = np.zeros((new, old))
    for tap in range(-1, 3):
        distance = np.abs(centres - (first + tap))
        near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
        far = a * (distance**3 - 5 * distance**2 + 8 * distance - 4)
        np.add.at(weights, (np.arange(new), np.clip(first + tap, 0, old - 1)), np.where(distance <= 1, near, far))
    return weights.astype(np.float32)


def resize_positions(positions: Float[Array, "N D"], old: tuple[int, int], new: tuple[int, int]) -> Float[Array, "M D"]:
    """Position vectors of a grid of `new` patches (rows, columns), interpolated from those of `old` patches."""
    if old == new:
        return positions
    grid = positions.reshape(*old, positions.shape[-1])
    rows, columns = (bicubic_weights(*sizes) for sizes in zip(old, new, strict=True))
    return jnp.einsum("rh,cw,hwd->rcd", rows, columns, grid).reshape(-1, positions.shape[-1])


class PatchEmbeddings(nn.Module):
    """[class token; W patch + b] + P[position] + T[frame] (Dosovitskiy et al. 2021 eq. 1; Bertasius et al. 2021 §3).

    The class token has the first row of the position table and no time.
    """

    width: int
    image_size: tuple[int, int]
    patch_size: int
    frames: int
    """rows of the table of times; 1: there is none"""
    patch_bias: bool
    dropout: float
    kernel_init: Init

    @nn.compact
    def __call__(self, images: Float[Array, "B F H W C"]) -> Float[Array, "B N D"]:
        """Embeds F frames of P patches as N = 1 + F·P vectors, frame by frame.

        Raises:
          UserError: the pixels cannot be cut into patches, or there are more frames than times.
        """
        batch, frames, *size = images.shape[:4]
        if any(side % self.patch_size for side in size):
            raise UserError(f"Vit: images of {size[0]} × {size[1]} pixels cannot be cut into patches of"
                            f" {self.patch_size} × {self.patch_size}")  # fmt: skip
        if frames > self.frames:
            raise UserError(f"Vit: {frames} frames exceed model.frames={self.frames}")
        linear = Linear((self.width,), ("patch", "embed"), self.kernel_init, self.patch_bias, name="patch")
        x = linear(patchify(images, self.patch_size))
        old, new = (tuple(side // self.patch_size for side in sides) for sides in (self.image_size, size))
        names = ("positions", "embed")
        shape = (1 + old[0] * old[1], self.width)
        position = gather(table(self, "position", "positions", shape, self.kernel_init), names).astype(x.dtype)
        x = x + resize_positions(position[1:], old, new).astype(x.dtype)
        if self.frames > 1:
            time = gather(table(self, "time", "positions", (self.frames, self.width), self.kernel_init), names)
            x = x + time[:frames, None].astype(x.dtype)
        first = gather(table(self, "class_token", "positions", (1, self.width), self.kernel_init), names)
        first = jnp.broadcast_to((first.astype(x.dtype) + position[:1])[None], (batch, 1, self.width))
        x = jnp.concatenate([first, x.reshape(batch, -1, self.width)], axis=1)
        return Dropout(self.dropout)(x)
