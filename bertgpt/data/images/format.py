"""How a picture of any size becomes an array of pixels: resize, centre crop, sampling of frames.

The steps are those of Hugging Face's image processors, by Pillow on 8-bit values. Normalisation is the model's.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import UInt8

from bertgpt.data.images.decode import MAX_PIXELS, pillow
from bertgpt.data.images.reading import ImageSource, read_frames, source_name
from bertgpt.ranges import Count, check_fields
from bertgpt.types import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

Resize = Literal["stretch", "shortest", "none"]
Resample = Literal["bilinear", "bicubic", "nearest", "lanczos", "box"]


@dataclasses.dataclass(frozen=True)
class ImageFormat:
    """Size of the images that a model reads, and how pictures of other sizes are brought to it.

    ViT's processor is `ImageFormat(224, 224)`; CLIP's is
    `ImageFormat(224, 224, resize="shortest", edge=224, crop=True, resample="bicubic")`.
    """

    height: Count = 224
    """pixels"""
    width: Count = 224
    """pixels"""
    resize: Resize = "stretch"
    """to height × width, whatever the ratio; so that the shortest edge is `edge`, keeping the ratio; or not at all"""
    edge: Count | None = None
    """pixels of the shortest edge, for resize="shortest"; for "stretch" of both edges before the crop (DeiT: 256)"""
    crop: bool = False
    """cut out the centre, height × width, after resizing; what is missing is filled with black"""
    resample: Resample = "bilinear"
    """Pillow's filter"""
    frames: Count = 1
    """frames of a video or animated picture, at the centres of equal segments; 1: a still image, of an animated picture
    the first frame"""

    def __post_init__(self):
        check_fields(self)
        if self.edge is None and self.resize == "shortest":
            raise UserError("ImageFormat: resize=shortest needs an edge")
        if self.edge is not None and (self.resize == "none" or not self.crop):
            raise UserError(f"ImageFormat: edge={self.edge} needs crop=True and a resize of shortest or stretch")

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(frames, height, width, 3), the shape of `pixels`."""
        return self.frames, self.height, self.width, 3

    def pixels(self, source: ImageSource) -> UInt8[np.ndarray, "F H W 3"]:
        """The pixels of a picture or video.

        Args:
          source: path or URL of a file, folder of frames, reference, encoded picture (bytes), or array of pixels: uint8
            [H, W], [H, W, C] or [F, H, W, C].

        Returns:
          uint8 [frames, height, width, 3], RGB.

        Raises:
          UserError: it cannot be read, or resize is none and it has another size.
        """
        images, _ = read_frames(source, self.frames)
        return self.arrange(images, source_name(source))

    def arrange(self, images: "list[Image]", name: str = "image") -> UInt8[np.ndarray, "F H W 3"]:
        """The pixels of RGB images, as many as `frames`; one alone stands for all frames."""
        return self.stack(images, lambda image: self.fit(image, name))

    def stack(
        self, images: "list[Image]", fit: "Callable[[Image], UInt8[np.ndarray, 'H W 3']]"
    ) -> UInt8[np.ndarray, "F H W 3"]:
        """What `fit` makes of each of the frames; one alone stands for all."""
        made = {id(image): fit(image) for image in images}  # frames that are repeated are the same objects
        arrays = [made[id(image)] for image in images]
        if self.frames == len(arrays) == 1:
            return arrays[0][None]  # without a copy
        return np.stack(arrays * (self.frames if len(arrays) == 1 else 1))

    def fit(self, image: "Image", name: str = "image") -> UInt8[np.ndarray, "H W 3"]:
        """Resizes and crops one RGB image."""
        size = self.size_of(image.height, image.width)
        if size[0] * size[1] > MAX_PIXELS:
            found, scaled = f"{image.width:,} × {image.height:,}", f"{size[1]:,} × {size[0]:,}"
            raise UserError(
                f"{name}: {found} pixels would become {scaled}, more than {MAX_PIXELS:,}, the limit; crop it"
            )
        if size != (image.height, image.width):
            image = image.resize(size[::-1], pillow().Resampling[self.resample.upper()])
        pixels = np.asarray(image)
        if self.crop:
            pixels = center_crop(pixels, self.height, self.width)
        if pixels.shape[:2] != (self.height, self.width):
            found, wanted = f"{pixels.shape[1]} × {pixels.shape[0]}", f"{self.width} × {self.height}"
            raise UserError(f"{name}: has {found} pixels, not {wanted}; let ImageFormat resize or crop it")
        return pixels

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) after resizing, before cropping, as `get_resize_output_image_size` of transformers."""
        if self.resize == "stretch":
            return (self.height, self.width) if self.edge is None else (self.edge, self.edge)
        if self.edge is None:
            return height, width
        longest = math.floor(self.edge * max(height, width) / min(height, width))
        return (longest, self.edge) if width <= height else (self.edge, longest)


def center_crop(image: UInt8[np.ndarray, "h w C"], height: int, width: int) -> UInt8[np.ndarray, "height width C"]:
    """The centre of an image; one that is too small is surrounded by black, as `center_crop` of transformers."""
    (top, bottom), (left, right) = (_padding(image.shape[0], height), _padding(image.shape[1], width))
    if top or bottom or left or right:
        image = np.pad(image, ((top, bottom), (left, right), (0, 0)))
    y, x = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[y : y + height, x : x + width]


def _padding(size: int, wanted: int) -> tuple[int, int]:
    missing = max(0, wanted - size)
    return math.ceil(missing / 2), missing // 2
