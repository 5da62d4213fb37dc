"""Datasets with pixels: what they hold, keep, check at the start and warn of."""

from pathlib import Path

import numpy as np
import pytest

from bertgpt.data.examples import SequenceDataset, Side
from bertgpt.data.images import rows as module
from bertgpt.data.images.format import ImageFormat
from bertgpt.data.images.reading import ImageReference
from bertgpt.data.images.rows import ImageRows
from bertgpt.data.loader import Batches, Shards, prefetch
from bertgpt.types import IMAGE_SPEC, UserError

Image = pytest.importorskip("PIL.Image")
FORMAT = ImageFormat(4, 5)
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, array in enumerate(PIXELS):
        Image.fromarray(array).save(tmp_path / f"{number}.png")
    return tmp_path


def texts(count: int) -> SequenceDataset:
    return SequenceDataset(Side([[7, number] for number in range(count)], 3, 0), vocab_size=9)


def references(folder: Path, *numbers: int) -> list[list[ImageReference]]:
    return [[ImageReference(str(folder / f"{number}.png"), where=f"r.jsonl:{number}")] for number in numbers]


def test_batches_hold_the_texts_and_the_pixels_of_each(folder: Path) -> None:
    rows = ImageRows(texts(6), references(folder, *range(6)), FORMAT)
    batch = rows.gather(np.array([4, 1, 4]))
    np.testing.assert_array_equal(batch["images"], PIXELS[[4, 1, 4], None])
    np.testing.assert_array_equal(batch["input_ids"][:, 1], [4, 1, 4])
    assert rows.spec.items() >= IMAGE_SPEC.items() and batch.keys() == rows.spec.keys() and len(rows) == 6
    # In parts, filled up, and read ahead by a thread.
    batches = Batches(rows, 4, 0, shuffle=False)
    last = batches[1]
    np.testing.assert_array_equal(last["images"][:2], PIXELS[4:, None])
    assert not last["images"][2:].any() and last["row"].tolist() == [4, 5, -1, -1]
    part = batches.part(0, Shards((1,), 2))
    np.testing.assert_array_equal(part["images"], PIXELS[2:4, None])
    ahead = list(prefetch(batches, 0, 2, lambda batch: batch))
    np.testing.assert_array_equal(ahead[1]["images"], last["images"])


def test_pixels_are_kept_while_there_is_room_and_the_same_picture_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    original = module.read_frames
    monkeypatch.setattr(
        module, "read_frames", lambda source, frames: opened.append(source.file) or original(source, frames)
    )
    every = references(folder, 0, 1, 2, 0, 1, 2)
    every[3][0] = every[3][0]._replace(where="elsewhere.jsonl:9")
    rows = ImageRows(texts(6), every, FORMAT, cache_bytes=2 * PIXELS[0].nbytes)
    for _ in range(3):
        np.testing.assert_array_equal(rows.gather(np.arange(6))["images"][:, 0], PIXELS[[0, 1, 2, 0, 1, 2]])
    assert len(opened) == 2 + 6


def test_missing_pictures_are_errors_before_training(folder: Path) -> None:
    every = references(folder, 0, 1, 17)
    with pytest.raises(UserError, match=r"r\.jsonl:17: .*/17\.png: no such picture"):
        ImageRows(texts(3), every, FORMAT)
    with pytest.raises(UserError, match="3 pictures for 6 sequences"):
        ImageRows(texts(6), references(folder, 0, 1, 2), FORMAT)


def test_lists_of_pictures_are_frames_and_what_is_repeated_or_left_out_is_counted(folder: Path) -> None:
    video = [each[0] for each in references(folder, *range(6))]
    every = [video, video[:2], video[:1]]
    rows = ImageRows(texts(3), every, ImageFormat(4, 5, frames=3))
    found = rows.pixels(np.arange(3))
    np.testing.assert_array_equal(found[0], PIXELS[[1, 3, 5]])
    np.testing.assert_array_equal(found[1], PIXELS[[0, 1, 1]])
    np.testing.assert_array_equal(found[2], PIXELS[[0, 0, 0]])
    (warning,) = rows.warnings
    assert warning.kind == "repaired" and warning.count == 2 and warning.text.startswith("2 of 3 videos have fewer")
    (warning,) = ImageRows(texts(3), every, FORMAT).warnings
    assert warning.kind == "truncated" and warning.count == 2 and "frames=1" in warning.text
    assert ImageRows(texts(1), [video], ImageFormat(4, 5, frames=6)).warnings == ()
