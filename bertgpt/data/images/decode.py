"""Encoded pictures → RGB: every colour mode of PNG, JPEG, GIF, WebP, BMP, TIFF, PPM and AVIF files, by Pillow.

What happens to pictures that are not 8-bit RGB already:

  alpha, transparent palettes   composited on white, as `convert_to_rgb` of transformers does
  16 bits                       the high byte; Pillow does so for colours, but clips grey values at 255
  EXIF orientation              applied, as `load_image` of transformers does; EXIF data that cannot be read is ignored
  greyscale, palettes, CMYK     Pillow's `convert("RGB")`; colour profiles are ignored
  32-bit integers, floats       refused: they have no fixed range
  several pages (TIFF)          refused

A damaged, truncated or oversized picture is an error that names it, never a grey area or a skipped example.
"""

import contextlib
import importlib
import io
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from bertgpt.io.files import one_line
from bertgpt.types import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "DIB", "TIFF", "PPM", "AVIF")
ANIMATED = ("GIF", "PNG", "WEBP", "AVIF")
MAX_PIXELS = 89_478_485  # 2³⁰ / 12: from here on Pillow warns of decompression bombs
MAX_FRAMES = 10_000  # frames are found by decoding those before them


def pillow(module: str = "Image") -> ModuleType:
    """A module of Pillow.

    Raises:
      UserError: Pillow is not installed.
    """
    try:
        return importlib.import_module(f"PIL.{module}")
    except ImportError:
        raise UserError("images need Pillow: pip install 'bertgpt[vision]'") from None


def decode(content: bytes, name: str, frames: int = 1) -> tuple["list[Image]", int]:
    """Decodes a picture, or frames of an animated one.

    Args:
      content: the encoded picture.
      name: what errors call it.
      frames: 1 for the first frame; more for as many frames of an animated picture, see `sampled`. A picture with a
        single frame gives only this one.

    Returns:
      (RGB images of the size that the file says, the number of frames of the file if `frames` > 1, else 1).

    Raises:
      UserError: it cannot be decoded whole, or is larger than MAX_PIXELS or longer than MAX_FRAMES.
    """
    with _opened(content, name) as image:
        count = _count(image, content, name) if frames > 1 else 1
        if count == 1:
            return [_upright(image, name)], 1
        wanted = sampled(count, frames)
        found: dict[int, Image] = {}
        for index in np.unique(wanted).tolist():
            image.seek(index)
            frame = _upright(image, name)
            found[index] = frame.copy() if frame is image else frame
        return [found[index] for index in wanted.tolist()], count


def count_frames(content: bytes, name: str) -> int:
    """The number of frames of a picture: 1 of a still image. Raises UserError as `decode`."""
    with _opened(content, name) as image:
        return _count(image, content, name)


@contextlib.contextmanager
def _opened(content: bytes, name: str) -> "Iterator[Image]":
    """The picture, whose pixels Pillow reads when they are needed. Its errors there become a UserError, too."""
    if not content:
        raise UserError(f"{name}: is empty (0 bytes)")
    image_module = pillow()
    try:
        with image_module.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise image_module.DecompressionBombError
            if image.format == "TIFF" and image.n_frames > 1:
                raise UserError(f"{name}: has {image.n_frames} pages; save the one to read as a file of its own")
            yield image
    except UserError:
        raise
    except image_module.UnidentifiedImageError:
        known = ", ".join(FORMATS)
        raise UserError(f"{name}: is no picture, or damaged from its beginning; known are {known}") from None
    except (image_module.DecompressionBombError, image_module.DecompressionBombWarning):
        raise UserError(f"{name}: has more than {MAX_PIXELS:,} pixels, the limit; scale it down") from None
    except Exception as error:
        raise UserError(f"{name}: is a damaged or truncated picture: {one_line(error)[:200]}") from None


def sampled(count: int, frames: int) -> Int[np.ndarray, " frames"]:
    """Indices of `frames` frames of `count`: the centre of each of `frames` equal segments, ⌊(k + ½) · count / frames⌋.

    Durations of frames do not count. Where `count` is smaller, frames are repeated.
    """
    return (2 * np.arange(frames) + 1) * count // (2 * frames)


def from_array(array: np.ndarray, name: str = "array") -> "list[Image]":
    """The images of an array of pixels: uint8 [H, W], [H, W, C] or [F, H, W, C] with 1, 3 or 4 channels (RGBA).

    Raises:
      UserError: it has another type or shape.
    """
    array = array[..., None] if array.ndim == 2 else array
    stack = array[None] if array.ndim == 3 else array
    if stack.dtype != np.uint8 or stack.ndim != 4 or stack.shape[-1] not in (1, 3, 4) or not stack.size:
        shape = f"{array.dtype} {list(array.shape)}"
        raise UserError(f"{name}: pixels are {shape}, not uint8 [H, W, C] or [F, H, W, C] with 1, 3 or 4 channels")
    if stack.shape[1] * stack.shape[2] > MAX_PIXELS:
        raise UserError(f"{name}: has more than {MAX_PIXELS:,} pixels, the limit; scale it down")
    image = pillow()
    return [rgb(image.fromarray(np.ascontiguousarray(frame.squeeze(-1) if frame.shape[-1] == 1 else frame)), name)
            for frame in stack]  # fmt: skip


def rgb(image: "Image", name: str) -> "Image":
    """An image of any mode as 8-bit RGB: see the table above.

    Raises:
      UserError: its values have no fixed range.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return _from_sixteen_bits(image)
    if image.mode in ("I", "F"):
        kind = "32-bit integers" if image.mode == "I" else "floating-point numbers"
        raise UserError(f"{name}: its pixels are {kind}, without a fixed range; save it with 8 or 16 bits")
    if "A" in image.getbands() or "a" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        white = pillow().new("RGBA", image.size, (255, 255, 255, 255))
        return pillow().alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _from_sixteen_bits(image: "Image") -> "Image":
    values = np.asarray(image)
    grey = (values.astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
    if isinstance(transparent := image.info.get("transparency"), int):
        grey[values == transparent] = 255
    return pillow().fromarray(grey).convert("RGB")


def _count(image: "Image", content: bytes, name: str) -> int:
    if image.format not in ANIMATED or not image.is_animated:
        return 1
    if image.n_frames > MAX_FRAMES:
        raise UserError(f"{name}: has {image.n_frames:,} frames, more than {MAX_FRAMES:,}, the limit; shorten it")
    if image.format == "GIF" and not _gif_ends(content):
        raise UserError(f"{name}: is a truncated picture: its last frames are missing")
    return image.n_frames


def _gif_ends(content: bytes) -> bool:
    """Whether a GIF has the mark of its end. Pillow takes one that was cut for a shorter one.

    A header, a logical screen with a table of colours, then blocks, which are chains of sub-blocks of up to 255 bytes
    (GIF89a specification, §§ 17-27).
    """

    def table(flags: int) -> int:
        return 3 << (flags & 7) + 1 if flags & 0x80 else 0

    try:
        place = 13 + table(content[10])
        while content[place] in b"!,":
            place += 2 if content[place] == 0x21 else 11 + table(content[place + 9])
            while content[place]:
                place += 1 + content[place]
            place += 1
        return content[place] == 0x3B
    except IndexError:
        return False


def _upright(image: "Image", name: str) -> "Image":
    image.load()
    try:
        turned = image.getexif().get(0x0112, 1) not in (0, 1)  # the tag of the orientation
    except Exception:  # not EXIF data at all
        turned = False
    return rgb(pillow("ImageOps").exif_transpose(image) if turned else image, name)
