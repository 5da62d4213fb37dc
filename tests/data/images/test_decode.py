"""Pictures of every mode and condition: decoded to the right pixels, or refused with an error that names them."""

import io
import math
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bertgpt.data.images import decode as decoding
from bertgpt.data.images.decode import decode, from_array
from bertgpt.data.images.format import ImageFormat
from bertgpt.data.images.reading import ImageReference, open_image
from bertgpt.types import UserError

Image = pytest.importorskip("PIL.Image")
HEIGHT, WIDTH = 6, 8
RGB = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
GREY = RGB[..., 0]
ALPHA = np.random.default_rng(1).choice([0, 255], (HEIGHT, WIDTH)).astype(np.uint8)
ON_WHITE = np.where(ALPHA[..., None] == 0, 255, RGB)
SIXTEEN = np.random.default_rng(2).integers(0, 65536, (HEIGHT, WIDTH), np.uint16)
FULL = np.linspace(0, 65535, HEIGHT * WIDTH).round().astype(np.uint16).reshape(HEIGHT, WIDTH)


def encoded(image: "Image.Image | np.ndarray", kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(stream, kind, **options)
    return stream.getvalue()


def colours(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey.astype(np.uint8)[..., None], 3, -1)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, depth: int, colour: int, content: bytes, *more: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IDAT", zlib.compress(content)) + chunk(b"IEND", b"")


def png16(values: np.ndarray, colour: int, *more: bytes) -> bytes:
    lines = values.astype(">u2").reshape(HEIGHT, -1)
    return png(WIDTH, HEIGHT, 16, colour, b"".join(b"\0" + line.tobytes() for line in lines), *more)


def palette(transparent: bool) -> tuple["Image.Image", np.ndarray]:
    image = Image.fromarray(np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH), "P")
    image.putpalette(RGB.tobytes())
    expected = RGB.copy()
    if transparent:
        expected[0, 3] = 255
        image.info["transparency"] = 3
    return image, expected


def gif_of(size: int, *frames: tuple[int, int, int, int]) -> bytes:
    """A square animation of squares in one of black, red, blue or transparent: (place, side, colour, disposal) each."""
    palette = bytes([0, 0, 0, 255, 0, 0, 0, 0, 255, 0, 255, 0])
    parts = [b"GIF89a", struct.pack("<HHBBB", size, size, 0x81, 0, 0), palette]
    for place, side, colour, disposal in frames:
        # Codes of 3 bits: before each pixel the table is cleared (4), so that codes never grow; 5 ends.
        codes = [code for _ in range(side * side) for code in (4, colour)] + [5]
        bits = sum(code << 3 * index for index, code in enumerate(codes))
        data = bits.to_bytes(-(-3 * len(codes) // 8), "little")
        control = b"\x21\xf9\x04" + struct.pack("<BHB", disposal << 2 | 1, 0, 3) + b"\0"
        descriptor = b"\x2c" + struct.pack("<HHHHB", place, place, side, side, 0)
        parts += [control, descriptor, b"\x02", bytes([len(data)]), data, b"\0"]
    return b"".join(parts) + b";"


def gif(frames: int) -> bytes:
    return gif_of(1, *[(0, 1, 0, 0)] * frames)


def animation(kind: str, count: int = 5) -> tuple[bytes, np.ndarray]:
    frames = np.random.default_rng(3).integers(0, 4, (count, HEIGHT, WIDTH, 3)).astype(np.uint8) * 85
    first, *others = map(Image.fromarray, frames)
    options = {"lossless": True} if kind == "WEBP" else {}
    return encoded(first, kind, save_all=True, append_images=others, duration=[10, 200, 30, 5, 40], **options), frames


P, P_EXPECTED = palette(transparent=False)
P_CLEAR, P_CLEAR_EXPECTED = palette(transparent=True)
LUMA = np.asarray(Image.fromarray(RGB).convert("L"))
BITS = GREY > 127
CMYK = Image.fromarray(RGB).convert("CMYK")

GOOD: dict[str, tuple[bytes, np.ndarray]] = {
    "rgb.png": (encoded(RGB), RGB),
    "rgb.bmp": (encoded(RGB, "BMP"), RGB),
    "rgb.tiff": (encoded(RGB, "TIFF"), RGB),
    "rgb.ppm": (encoded(RGB, "PPM"), RGB),
    "rgb.webp": (encoded(RGB, "WEBP", lossless=True), RGB),
    "named wrongly.jpg": (encoded(RGB), RGB),
    "interlaced.png": (encoded(RGB, "PNG", interlace=1), RGB),
    "grey.png": (encoded(GREY), colours(GREY)),
    "grey.gif": (encoded(GREY, "GIF"), colours(GREY)),
    "1 bit.png": (encoded(Image.fromarray(BITS)), colours(BITS * 255)),
    "1 bit.tiff": (encoded(Image.fromarray(BITS), "TIFF"), colours(BITS * 255)),
    "16 bit grey.png": (encoded(SIXTEEN), colours(SIXTEEN >> 8)),
    "16 bit ramp.png": (encoded(FULL), colours(FULL >> 8)),
    "16 bit grey.tiff": (encoded(SIXTEEN, "TIFF"), colours(SIXTEEN >> 8)),
    "16 bit big-endian.tiff": (encoded(Image.fromarray(SIXTEEN.astype(">u2")), "TIFF"), colours(SIXTEEN >> 8)),
    "16 bit grey.pgm": (b"P5 8 6 65535\n" + SIXTEEN.astype(">u2").tobytes(), colours(SIXTEEN >> 8)),
    "16 bit transparent.png": (
        png16(SIXTEEN, 0, chunk(b"tRNS", struct.pack(">H", int(SIXTEEN[0, 0])))),
        colours(np.where(SIXTEEN[0, 0] == SIXTEEN, 255, SIXTEEN >> 8)),
    ),
    "16 bit colours.png": (png16(np.stack([SIXTEEN] * 3, -1), 2), colours(SIXTEEN >> 8)),
    "alpha.png": (encoded(np.concatenate([RGB, ALPHA[..., None]], -1)), ON_WHITE),
    "alpha.webp": (encoded(np.concatenate([RGB, ALPHA[..., None]], -1), "WEBP", lossless=True), ON_WHITE),
    "grey alpha.png": (
        encoded(Image.fromarray(np.stack([GREY, ALPHA], -1))),
        colours(np.where(ALPHA == 0, 255, GREY)),
    ),
    "transparent colour.png": (
        encoded(Image.fromarray(RGB), transparency=tuple(map(int, RGB[0, 3]))),
        np.where((RGB == RGB[0, 3]).all(-1, keepdims=True), 255, RGB),
    ),
    "palette.png": (encoded(P), P_EXPECTED),
    "palette.gif": (encoded(P, "GIF"), P_EXPECTED),
    "palette transparent.png": (encoded(P_CLEAR), P_CLEAR_EXPECTED),
    "palette transparent.gif": (encoded(P_CLEAR, "GIF"), P_CLEAR_EXPECTED),
    "cmyk.tiff": (encoded(CMYK, "TIFF"), np.asarray(CMYK.convert("RGB"))),
    "no exif.png": (png(1, 1, 8, 0, b"\0\x80", chunk(b"eXIf", b"not EXIF data")), np.full((1, 1, 3), 128)),
    "one pixel.gif": (gif(1), np.full((1, 1, 3), 0)),
    "many frames.gif": (gif(100_000), np.full((1, 1, 3), 0)),
}


@pytest.mark.parametrize("name", GOOD)
def test_every_mode_and_format_gives_its_pixels(name: str) -> None:
    content, expected = GOOD[name]
    (image,), count = decode(content, name)
    assert image.mode == "RGB" and count == 1
    np.testing.assert_array_equal(np.asarray(image), expected)


def test_half_transparent_colours_are_mixed_with_white() -> None:
    half = np.concatenate([RGB, np.full((HEIGHT, WIDTH, 1), 128, np.uint8)], -1)
    (image,), _ = decode(encoded(half), "half.png")
    np.testing.assert_allclose(np.asarray(image), RGB * (128 / 255) + 255 * (127 / 255), atol=1.0)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_gives_the_pixels_of_pillow(mode: str) -> None:
    content = encoded(Image.fromarray(RGB).convert(mode), "JPEG", quality=90)
    (image,), _ = decode(content, "a.jpg")
    with Image.open(io.BytesIO(content)) as expected:
        assert expected.mode == mode
        np.testing.assert_array_equal(np.asarray(image), np.asarray(expected.convert("RGB")))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_orientation_of_cameras_is_applied(kind: str) -> None:
    turns: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a),
    }
    flat = np.repeat(np.repeat(np.array([[0, 80], [160, 240]], np.uint8), 16, 0), 24, 1)
    for orientation, turn in turns.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = encoded(colours(flat), kind, exif=exif, **({"quality": 100} if kind in ("JPEG", "WEBP") else {}))
        (image,), _ = decode(content, "a")
        expected = turn(colours(flat))
        assert np.asarray(image).shape == expected.shape, orientation
        assert np.abs(np.asarray(image).astype(int) - expected).max() <= 4, orientation


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_frames_of_animated_pictures_are_sampled_whatever_their_durations(kind: str) -> None:
    content, frames = animation(kind)
    for count, chosen in ((5, [0, 1, 2, 3, 4]), (2, [1, 3]), (3, [0, 2, 4]), (10, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4])):
        images, found = decode(content, "a", count)
        assert found == 5
        np.testing.assert_array_equal(np.stack([np.asarray(image) for image in images]), frames[chosen])
        np.testing.assert_array_equal(ImageFormat(HEIGHT, WIDTH, frames=count).pixels(content), frames[chosen])
    (image,), found = decode(content, "a")
    assert found == 1 and np.array_equal(np.asarray(image), frames[0])
    still = ImageFormat(HEIGHT, WIDTH, frames=3).pixels(encoded(RGB))
    np.testing.assert_array_equal(still, [RGB] * 3)


def test_disposed_frames_of_gifs_are_composed() -> None:
    # A part of the second frame is drawn. What it leaves out stays, or was cleared, or became what it was before.
    red, blue, white = (255, 0, 0), (0, 0, 255), (255, 255, 255)
    for disposal, rest in ((1, red), (2, white)):
        images, _ = decode(gif_of(4, (0, 4, 1, disposal), (1, 1, 2, 1)), "a.gif", 2)
        expected = np.full((4, 4, 3), rest)
        assert (np.asarray(images[0]) == red).all()
        expected[1, 1] = blue
        np.testing.assert_array_equal(np.asarray(images[1]), expected)
    images, _ = decode(gif_of(4, (0, 4, 1, 1), (0, 3, 2, 3), (1, 1, 0, 1)), "a.gif", 3)
    expected = np.full((4, 4, 3), red)
    expected[1, 1] = 0
    np.testing.assert_array_equal(np.asarray(images[2]), expected)


BOMB = chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0))
PAGES = encoded(RGB, "TIFF", save_all=True, append_images=[Image.fromarray(RGB)] * 2)
BAD: dict[str, tuple[bytes, str]] = {
    "empty.png": (b"", r"is empty \(0 bytes\)"),
    "text.png": (b"This is not a picture.\n" * 100, "is no picture"),
    "zeros.png": (bytes(1000), "is no picture"),
    "vector.svg": (b'<svg xmlns="http://www.w3.org/2000/svg"></svg>', "is no picture"),
    "script.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is no picture"),
    "half.png": (encoded(RGB)[:120], "is a damaged or truncated picture"),
    "header.png": (encoded(RGB)[:40], "is (no|a damaged or truncated) picture"),
    "checksum.png": (encoded(RGB).replace(b"IDAT", b"IDAT\1"), "is (no|a damaged or truncated) picture"),
    "half.jpg": (encoded(np.tile(RGB, (9, 9, 1)), "JPEG")[:1200], "is a damaged or truncated picture"),
    "half.gif": (encoded(RGB, "GIF")[:-40], "is a damaged or truncated picture"),
    "half.bmp": (encoded(RGB, "BMP")[:-40], "is a damaged or truncated picture"),
    "half.webp": (encoded(RGB, "WEBP")[:-40], "is (no|a damaged or truncated) picture"),
    "bomb.png": (b"\x89PNG\r\n\x1a\n" + BOMB + chunk(b"IDAT", b""), "has more than 89,478,485 pixels"),
    "edge of a bomb.png": (png(9460, 9460, 1, 0, b""), "has more than 89,478,485 pixels"),
    "absurd.png": (png(2**31 - 1, 2**31 - 1, 8, 2, b""), "has more than 89,478,485 pixels"),
    "absurd.gif": (b"GIF89a\xff\xff\xff\xff\0\0\0" + b",\0\0\0\0\xff\xff\xff\xff\0\x02\x02D\1\0;", "pixels, the limit"),
    "absurd.ppm": (b"P6 99999999 99999999 255\n", "pixels, the limit"),
    "no width.png": (png(0, 5, 8, 2, b""), "is (no|a damaged or truncated) picture"),
    "pages.tiff": (PAGES, "has 3 pages"),
    "floats.tiff": (encoded(Image.fromarray(GREY.astype(np.float32)), "TIFF"), "floating-point numbers"),
    "integers.tiff": (encoded(Image.fromarray(GREY.astype(np.int32)), "TIFF"), "32-bit integers"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_decoded_is_refused_by_name(name: str, tmp_path: Path) -> None:
    content, message = BAD[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        open_image(ImageReference(str(path), where="records.jsonl:12"))
    assert str(error.value).startswith(f"records.jsonl:12: {path}: ") and "\n" not in str(error.value)


def test_a_folder_is_no_picture_and_a_folder_of_other_files_no_video(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UserError, match="is a folder without pictures"):
        open_image(str(tmp_path))


def test_too_many_frames_are_refused() -> None:
    with pytest.raises(UserError, match=r"long\.gif: has 100,000 frames, more than 10,000, the limit"):
        decode(gif(100_000), "long.gif", 2)
    assert decode(gif(10_000), "long.gif", 2)[1] == 10_000


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM", "WEBP"])
def test_a_picture_cut_at_any_length_is_refused_or_whole(kind: str) -> None:
    content = encoded(RGB, kind)
    (whole,), _ = decode(content, "a")
    refused = 0
    for length in range(len(content)):
        try:
            (image,), _ = decode(content[:length], "a")
        except UserError:
            refused += 1
        else:
            np.testing.assert_array_equal(np.asarray(image), np.asarray(whole), err_msg=str(length))
    assert refused > 0.9 * len(content) - 20


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP"])
def test_an_animation_cut_at_any_length_is_refused_or_whole(kind: str) -> None:
    content, frames = animation(kind)
    for length in range(0, len(content) - 1, 7):
        try:
            images, count = decode(content[:length], "a", 5)
        except UserError:
            continue
        assert count == 5, length
        np.testing.assert_array_equal([np.asarray(image) for image in images], frames, err_msg=str(length))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM", "WEBP"])
def test_damaged_bytes_raise_no_other_error(kind: str) -> None:
    random = np.random.default_rng(0)
    content = encoded(RGB, kind, **({"exif": Image.Exif()} if kind == "JPEG" else {}))
    for _ in range(200):
        damaged = bytearray(content)
        for place in random.integers(0, min(len(content), 120), 3):
            damaged[place] = random.integers(256)
        try:
            (image,), _ = decode(bytes(damaged), "a")
        except UserError as error:
            assert str(error).startswith("a: ")
        else:
            assert image.mode == "RGB"


@pytest.mark.parametrize("shape", [(6, 8), (6, 8, 1), (6, 8, 3), (6, 8, 4), (2, 6, 8, 3)])
def test_arrays_of_pixels_are_images(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    found = np.stack([np.asarray(image) for image in from_array(array)])
    if shape[-1] == 4:
        opaque = array[..., 3:] / 255.0
        np.testing.assert_allclose(found[0], array[..., :3] * opaque + 255 * (1 - opaque), atol=1.0)
    else:
        expected = array[..., None] if array.ndim == 2 else array
        np.testing.assert_array_equal(found, np.broadcast_to(expected, (*expected.shape[:-1], 3)).reshape(found.shape))


@pytest.mark.parametrize(
    ("shape", "kind"), [((4, 4), "float32"), ((4, 4, 2), "uint8"), ((4,), "uint8"), ((0, 4, 3), "uint8")]
)
def test_arrays_of_other_shapes_and_types_are_refused(shape: tuple[int, ...], kind: str) -> None:
    with pytest.raises(UserError, match=r"a: pixels are .*, not uint8 \[H, W, C\]"):
        from_array(np.zeros(shape, kind), "a")


def test_without_pillow_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(decoding.importlib, "import_module", missing)
    with pytest.raises(UserError, match=r"pip install 'bertgpt\[vision\]'"):
        decode(b"x", "a")


def test_the_limit_is_pillows() -> None:
    assert decoding.MAX_PIXELS == int(Image.MAX_IMAGE_PIXELS) == math.floor(2**30 / 12)
