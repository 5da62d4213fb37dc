"""Data URIs → pixels: those of the offline API, and one sentence for what is broken, huge or no picture."""

import time

import numpy as np
import pytest
from hostile_images import HOSTILE, TINY, encode, uri

from bertgpt.data.images.format import ImageFormat
from bertgpt.serving.errors import Refusal
from bertgpt.serving.limits import Limits
from bertgpt.serving.pictures import MOST_FRAMES, check_images, read_pixels, read_uri

STILL, VIDEO = ImageFormat(8, 6), ImageFormat(8, 6, frames=3)


@pytest.mark.parametrize("image", [STILL, VIDEO, ImageFormat(4, 4, resize="shortest", edge=5, crop=True)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
def test_pixels_are_those_of_the_file(image: ImageFormat, kind: str):
    content = encode(np.random.default_rng(1).integers(0, 256, (20, 17, 3), np.uint8), kind)
    (found,) = read_pixels([uri(content, "png")], image, Limits(), "inputs")  # the content decides, not the name
    assert np.array_equal(found, image.pixels(content)) and found.shape == image.shape


def test_frames_of_an_animated_picture_are_sampled():
    frames = [np.full((8, 6, 3), value, np.uint8) for value in (0, 50, 100, 150, 200, 250)]
    for kind in ("PNG", "GIF", "WEBP"):
        content = encode(frames[0], kind, frames[1:], **({"lossless": True} if kind == "WEBP" else {}))
        (found,) = read_pixels([uri(content)], VIDEO, Limits(), "inputs")
        assert found[:, 0, 0, 0].tolist() == [50, 150, 250], kind
        assert read_pixels([uri(content)], STILL, Limits(), "inputs")[0][0, 0, 0, 0] == 0


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_picture_is_refused_in_one_sentence(name: str):
    text, status, said = HOSTILE[name]
    begun = time.monotonic()
    if status == 200:
        read_pixels([text], STILL, Limits(), "inputs")
    else:
        with pytest.raises(Refusal) as refusal:
            read_pixels([uri(encode()), text], STILL, Limits(), "inputs")
        assert refusal.value.status == status and refusal.value.param == "inputs[1]"
        assert said in refusal.value.message and refusal.value.message.startswith("inputs[1]: ")
        assert "\n" not in refusal.value.message and len(refusal.value.message) < 400
    assert time.monotonic() - begun < 5


def test_frames_are_bounded_by_their_pixels_and_their_number():
    flat = [np.full((8, 6), 12 * value, np.uint8) for value in range(20)]
    for kind in ("PNG", "GIF", "WEBP"):
        content = encode(flat[0], kind, flat[1:])
        assert len(read_pixels([uri(content)], VIDEO, Limits(max_pixels=20 * 48), "image")) == 1
        with pytest.raises(Refusal, match=r"image: the image is too large: 6 × 8 in .*decodes 959 pixels"):
            read_pixels([uri(content)], VIDEO, Limits(max_pixels=20 * 48 - 1), "image")
        read_pixels([uri(content)], STILL, Limits(max_pixels=48), "image")  # whose frames nobody reads
    content = encode(np.zeros((1, 1), np.uint8), "GIF", [np.full((1, 1), i % 256, np.uint8) for i in range(12_000)])
    begun = time.monotonic()
    with pytest.raises(Refusal, match=f"{MOST_FRAMES:,} frames"):
        read_pixels([uri(content)], VIDEO, Limits(), "image")
    assert time.monotonic() - begun < 10


def test_a_request_has_some_images_but_not_too_many():
    check_images(["", ""], Limits(max_images=2), "inputs")
    for uris, status in (([], 422), ([""] * 3, 413)):
        with pytest.raises(Refusal) as refusal:
            check_images(uris, Limits(max_images=2), "inputs")
        assert refusal.value.status == status


def test_case_and_parameters_of_a_uri_do_not_matter():
    content = encode(TINY)
    text = uri(content)
    for other in (text.replace("data:image/png", "DATA:Image/PNG"), text.replace("png;", "png;charset=utf-8;")):
        assert read_uri(other, "inputs") == content
