"""Pictures that are broken, huge, or no pictures, as data URIs."""

import base64
import io
import struct
import zlib

import numpy as np
from PIL import Image

TINY = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(8, 6, 3)


def encode(array: np.ndarray = TINY, kind: str = "PNG", more: list[np.ndarray] | None = None, **options) -> bytes:
    """An encoded picture; with `more` frames an animated one."""
    frames = [Image.fromarray(frame) for frame in more or []]
    options |= {"save_all": True, "append_images": frames, "duration": 10} if frames else {}
    Image.fromarray(array).save(stream := io.BytesIO(), kind, **options)
    return stream.getvalue()


def uri(content: bytes, kind: str = "png") -> str:
    """A data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def png_head(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG that says it has this size."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
PNG, JPEG = encode(NOISE), encode(NOISE, "JPEG")
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
DOCUMENT, FORMATS = "data:image/…;base64,", "must be an intact PNG, JPEG, GIF or WEBP file"
HOSTILE = {
    "empty text": ("", 422, "the server fetches no addresses"),
    "an address": ("https://example.org/cat.png", 422, "the server fetches no addresses"),
    "a file": ("file:///etc/passwd", 422, "the server fetches no addresses"),
    "a path": ("../../etc/passwd", 422, "the server fetches no addresses"),
    "no content": ("data:image/png;base64", 422, "the server fetches no addresses"),
    "0 bytes": ("data:image/png;base64,", 422, "has 0 bytes"),
    "no base64": ("data:image/png,hello", 422, DOCUMENT),
    "another kind": ("data:text/html;base64,aGVsbG8=", 422, DOCUMENT),
    "nested": ("data:image/png;base64,data:image/png;base64,aGVsbG8=", 422, "no valid base64"),
    "wrong alphabet": ("data:image/png;base64,aGVs-bG8_", 422, "no valid base64"),
    "wrong padding": (uri(PNG)[:-1] + "A=A", 422, "no valid base64"),
    "not ASCII": ("data:image/png;base64,猫猫猫猫", 422, "no valid base64"),
    "white space": (uri(PNG)[:60] + "\n" + uri(PNG)[60:], 422, "no valid base64"),
    "text named png": (uri(b"hello, this is no picture"), 422, FORMATS),
    "svg": (uri(SVG, "svg+xml"), 422, FORMATS),
    "tiff": (uri(encode(kind="TIFF"), "tiff"), 422, FORMATS),
    "postscript": (uri(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), 422, FORMATS),
    "signature alone": (uri(PNG[:8]), 422, "intact"),
    "truncated png": (uri(PNG[: len(PNG) // 2]), 422, "damaged or truncated"),
    "truncated jpeg": (uri(JPEG[: len(JPEG) // 2], "jpeg"), 422, "damaged or truncated"),
    "damaged png": (uri(PNG[:200] + bytes(50) + PNG[250:]), 422, "damaged or truncated"),
    "no pixels": (uri(png_head(0, 0)), 422, "intact"),
    "huge width": (uri(png_head(2**31 - 1, 1)), 413, "pixels"),
    "huge area": (uri(png_head(60_000, 60_000)), 413, "pixels"),
    "bomb": (uri(png_head(8_000, 8_000, bytes(8_001 * 8_000))), 413, "too large: 8000 × 8000"),
    "bomb that lies": (uri(png_head(8, 8, bytes(50_000_000))), 200, ""),
}
"""name → the URI, the status of the answer, and what it says"""
