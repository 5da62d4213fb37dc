"""Pixels equal those of transformers' image processors, which Pillow resizes as well."""

import numpy as np
import pytest

from bertgpt.data.images.format import ImageFormat, Resample
from parity.families import transformers

Image = pytest.importorskip("PIL.Image")
ViTProcessor, CLIPProcessor = transformers.ViTImageProcessorPil, transformers.CLIPImageProcessorPil

VIT = ImageFormat()
CLIP = ImageFormat(resize="shortest", edge=224, crop=True, resample="bicubic")
SIZES = [(224, 224), (375, 500), (500, 375), (17, 400), (400, 17), (223, 225), (1, 1), (333, 1000), (64, 48)]
"""height, width"""


def picture(size: tuple[int, int], mode: str = "RGB", seed: int = 0) -> "Image.Image":
    """Noise: every rounding shows."""
    rng = np.random.default_rng(seed)
    channels = {"L": (), "RGB": (3,), "RGBA": (4,), "LA": (2,)}.get(mode, (3,))
    array = rng.integers(0, 256, (*size, *channels), np.uint8)
    if mode in ("P", "1", "CMYK"):
        return Image.fromarray(array).convert(mode)
    return Image.fromarray(array)


def normalised(pixels: np.ndarray, mean: list[float], std: list[float]) -> np.ndarray:
    """[3, H, W] as models see it: uint8 → float32 in the graph."""
    values = (pixels.astype(np.float32) / np.float32(255) - np.float32(mean)) / np.float32(std)
    return values.transpose(2, 0, 1)


def check(fmt: ImageFormat, processor: object, image: "Image.Image", tmp_path: object) -> None:
    theirs = processor(image, do_convert_rgb=True, return_tensors="np")["pixel_values"][0]
    path = tmp_path / "a.tiff"
    image.save(path)  # without loss in every mode
    pixels = fmt.pixels(path)
    assert pixels.dtype == np.uint8 and pixels.shape == fmt.shape
    np.testing.assert_allclose(
        normalised(pixels[0], processor.image_mean, processor.image_std), theirs, rtol=0, atol=1e-6
    )
    raw = processor(image, do_convert_rgb=True, do_rescale=False, do_normalize=False, return_tensors="np")
    np.testing.assert_array_equal(pixels[0].transpose(2, 0, 1), raw["pixel_values"][0])


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("fmt", "processor"), [(VIT, ViTProcessor()), (CLIP, CLIPProcessor())])
def test_default_configs_give_the_same_pixels(
    fmt: ImageFormat, processor: object, size: tuple[int, int], tmp_path: object
) -> None:
    check(fmt, processor, picture(size), tmp_path)


@pytest.mark.parametrize("mode", ["L", "RGBA", "LA", "P", "1", "CMYK"])
@pytest.mark.parametrize(("fmt", "processor"), [(VIT, ViTProcessor()), (CLIP, CLIPProcessor())])
def test_every_colour_mode_gives_the_same_pixels(
    fmt: ImageFormat, processor: object, mode: str, tmp_path: object
) -> None:
    check(fmt, processor, picture((130, 207), mode), tmp_path)


@pytest.mark.parametrize("resample", ["nearest", "lanczos", "bilinear", "bicubic", "box"])
def test_every_filter_gives_the_same_pixels(resample: Resample, tmp_path: object) -> None:
    processor = ViTProcessor(
        size={"height": 33, "width": 57}, resample=Image.Resampling[resample.upper()], do_convert_rgb=True
    )
    check(ImageFormat(33, 57, resample=resample), processor, picture((130, 207)), tmp_path)


@pytest.mark.parametrize("crop", [(20, 300), (300, 20), (31, 30), (300, 301)], ids=str)
@pytest.mark.parametrize("size", [(99, 100), (100, 99), (20, 20)], ids=str)
def test_a_crop_larger_than_the_picture_is_padded_alike(
    crop: tuple[int, int], size: tuple[int, int], tmp_path: object
) -> None:
    height, width = crop
    processor = CLIPProcessor(size={"shortest_edge": 50}, crop_size={"height": height, "width": width})
    fmt = ImageFormat(height, width, resize="shortest", edge=50, crop=True, resample="bicubic")
    check(fmt, processor, picture(size), tmp_path)
    unresized = CLIPProcessor(do_resize=False, crop_size={"height": height, "width": width})
    check(ImageFormat(height, width, resize="none", crop=True), unresized, picture(size), tmp_path)
