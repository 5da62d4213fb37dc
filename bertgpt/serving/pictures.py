"""Images in requests: data URIs within limits. Nothing is fetched: an address is refused, not followed."""

import base64
import binascii
import contextlib
import io
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from bertgpt.data.images.decode import decode, pillow
from bertgpt.data.images.format import ImageFormat
from bertgpt.serving.errors import Refusal
from bertgpt.serving.limits import Limits
from bertgpt.types import UserError

KINDS = ("PNG", "JPEG", "GIF", "WEBP")
"""formats that are decoded, by their content, whatever the URI calls them"""
MOST_FRAMES = 10_000
"""of an animated picture"""


def check_images(uris: Sequence[str], limits: Limits, param: str) -> None:
    """Raises Refusal if a request has no image or too many."""
    if not uris:
        raise Refusal(422, f"{param} is empty", param=param)
    if len(uris) > limits.max_images:
        text = f"{param} has {len(uris)} images, but a request may have {limits.max_images} at most"
        raise Refusal(413, text, param=param)


def read_uri(uri: str, param: str) -> bytes:
    """The bytes of a data URI such as data:image/png;base64,iVBORw0…

    Raises:
      Refusal: it is none, or no base64.
    """
    scheme, _, rest = uri.partition(":")
    head, comma, data = rest.partition(",")
    if scheme.lower() != "data" or not comma:
        text = f"{param}: an image is a data URI, data:image/png;base64,…; the server fetches no addresses"
        raise Refusal(422, text, param=param)
    media, *options = head.lower().split(";")
    if not media.startswith("image/") or options[-1:] != ["base64"]:
        raise Refusal(422, f"{param}: the data URI must begin with data:image/…;base64,", param=param)
    try:
        content = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):  # ValueError: characters outside ASCII
        raise Refusal(422, f"{param}: the image is no valid base64", param=param) from None
    if not content:
        raise Refusal(422, f"{param}: the image has 0 bytes", param=param)
    return content


def check_head(content: bytes, limits: Limits, param: str, animated: bool = False) -> None:
    """Raises Refusal unless the bytes are a picture of one of the `KINDS` within the limits. No pixel is decoded.

    Args:
      content: of the file.
      limits: bounds on the pixels, of all frames together.
      param: the field of the request.
      animated: whether frames after the first one are read.
    """
    image_module = pillow()
    try:
        with image_module.open(io.BytesIO(content), formats=KINDS) as picture:
            frames, most = 1, most_frames(picture.size, limits)
            if animated and picture.format != "GIF":
                frames = vars(picture).get("n_frames", 1)
            elif animated:  # a GIF tells how many only after reading them all, and may grow meanwhile
                with contextlib.suppress(EOFError):
                    while frames <= most:
                        picture.seek(frames)
                        frames, most = frames + 1, most_frames(picture.size, limits)
    except image_module.UnidentifiedImageError:
        text = f"{param}: the image cannot be read; it must be an intact {', '.join(KINDS[:-1])} or {KINDS[-1]} file"
        raise Refusal(422, text, param=param) from None
    except image_module.DecompressionBombError:
        raise Refusal(413, f"{param}: the image has more than {limits.max_pixels:,} pixels", param=param) from None
    except Exception:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, EOFError and more
        raise Refusal(422, f"{param}: the image is damaged", param=param) from None
    if frames > most:
        size = f"{picture.size[0]} × {picture.size[1]}" + (f" in {frames:,} frames or more" if animated else "")
        text = f"{param}: the image is too large: {size}; the server decodes {limits.max_pixels:,} pixels"
        raise Refusal(413, text + (f" and {MOST_FRAMES:,} frames" if animated else ""), param=param)


def most_frames(size: tuple[int, int], limits: Limits) -> int:
    """Frames of this size that are decoded; 0 if not even one is."""
    return min(limits.max_pixels // max(math.prod(size), 1), MOST_FRAMES)


def read_pixels(
    uris: Sequence[str], image: ImageFormat, limits: Limits, param: str
) -> list[UInt8[np.ndarray, "F H W C"]]:
    """The pixels of data URIs, as the model reads them. To be called off the event loop.

    Raises:
      Refusal: 422 if an image is broken, 413 if it has too many pixels or frames.
    """
    found = []
    for number, uri in enumerate(uris):
        name = param if len(uris) == 1 else f"{param}[{number}]"
        content = read_uri(uri, name)
        check_head(content, limits, name, animated=image.frames > 1)
        try:
            found.append(image.arrange(decode(content, name, image.frames)[0], name))
        except UserError as error:
            raise Refusal(422, str(error), param=name) from None
    return found
