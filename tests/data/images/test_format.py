"""Resizing, cropping and sampling of frames, for every size."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertgpt.data.images.decode import sampled
from bertgpt.data.images.format import ImageFormat, center_crop
from bertgpt.types import UserError

Image = pytest.importorskip("PIL.Image")
SIDES = st.integers(1, 40)


@given(SIDES, SIDES, SIDES, SIDES, SIDES, st.sampled_from(["bilinear", "bicubic", "nearest", "lanczos", "box"]))
@settings(max_examples=80, deadline=None)
def test_pixels_have_the_shape_of_the_format(height, width, rows, columns, edge, resample):
    picture = np.random.default_rng(0).integers(0, 256, (rows, columns, 3), np.uint8)
    for options in ({}, {"resize": "shortest", "edge": edge, "crop": True}, {"resize": "none", "crop": True}):
        fmt = ImageFormat(height, width, resample=resample, **options)
        pixels = fmt.pixels(picture)
        assert pixels.shape == fmt.shape == (1, height, width, 3) and pixels.dtype == np.uint8
        tall, wide = fmt.size_of(rows, columns)
        if options.get("resize") == "shortest":
            assert min(tall, wide) == edge
            assert max(tall, wide) <= edge * max(rows, columns) / min(rows, columns) < max(tall, wide) + 1
            assert (tall >= wide) == (rows >= columns) or tall == wide


@given(SIDES, SIDES, SIDES, SIDES)
@settings(max_examples=80, deadline=None)
def test_a_crop_keeps_the_centre_and_surrounds_it_with_black(rows, columns, height, width):
    picture = np.random.default_rng(0).integers(1, 256, (rows, columns, 3), np.uint8)
    found = center_crop(picture, height, width)
    assert found.shape == (height, width, 3)
    inside = found.any(-1)
    tall, wide = min(rows, height), min(columns, width)
    assert inside.sum() == tall * wide
    top, left = (int(np.argmax(inside.any(axis))) for axis in (1, 0))
    for start, kept, size in ((top, tall, height), (left, wide, width)):
        assert abs(start - (size - kept - start)) <= 1
    y, x = (max(0, (rows - height) // 2), max(0, (columns - width) // 2))
    np.testing.assert_array_equal(found[top : top + tall, left : left + wide], picture[y : y + tall, x : x + wide])


@given(st.integers(1, 200), st.integers(1, 60))
@settings(max_examples=200, deadline=None)
def test_sampled_frames_are_at_the_centres_of_equal_segments(count, frames):
    chosen = sampled(count, frames).tolist()
    assert chosen == [int((k + 0.5) * count / frames + 1e-9) for k in range(frames)]
    assert chosen == sorted(chosen) and 0 <= chosen[0] and chosen[-1] < count
    assert len(set(chosen)) == min(count, frames)
    assert abs(chosen[0] - (count - 1 - chosen[-1])) <= 1  # the same at both ends


def test_a_picture_of_the_right_size_is_unchanged():
    picture = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    for fmt in (
        ImageFormat(9, 7),
        ImageFormat(9, 7, resize="none"),
        ImageFormat(9, 7, resize="shortest", edge=7, crop=True, resample="bicubic"),
    ):
        np.testing.assert_array_equal(fmt.pixels(picture)[0], picture)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"resize": "shortest"}, "resize=shortest needs an edge"),
        ({"edge": 5}, "edge=5 needs crop=True"),
        ({"resize": "shortest", "edge": 5}, "edge=5 needs crop=True"),
        ({"resize": "none", "edge": 5, "crop": True}, "edge=5 needs crop=True and a resize"),
        ({"height": 0}, "height=0 must be at least 1"),
        ({"frames": 0}, "frames=0 must be at least 1"),
    ],
)
def test_impossible_formats_are_refused(fields, message):
    with pytest.raises(UserError, match=f"ImageFormat: {message}"):
        ImageFormat(**fields)


def test_a_picture_of_another_size_is_refused_where_nothing_resizes_it():
    with pytest.raises(UserError, match="image: has 7 × 9 pixels, not 9 × 9; let ImageFormat resize or crop it"):
        ImageFormat(9, 9, resize="none").pixels(np.zeros((9, 7, 3), np.uint8))


def test_a_picture_that_is_too_narrow_to_be_scaled_up_is_refused():
    fmt = ImageFormat(224, 224, resize="shortest", edge=224, crop=True)
    with pytest.raises(UserError, match="1 × 60,000 pixels would become 224 × 13,440,000, more than"):
        fmt.pixels(np.zeros((60_000, 1, 3), np.uint8))
