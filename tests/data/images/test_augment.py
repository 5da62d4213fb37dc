"""Augmentation is a function of (seed, row, epoch): of nothing else, and of all three."""

from pathlib import Path

import numpy as np
import pytest

from bertgpt.data.images.augment import Augment, AugmentedBatches
from bertgpt.data.images.format import ImageFormat
from bertgpt.data.images.reading import ImageReference
from bertgpt.data.images.rows import ImageRows
from bertgpt.data.loader import Batches, Shards
from bertgpt.types import Batch, BatchSpec, Field, UserError

Image = pytest.importorskip("PIL.Image")
FORMAT = ImageFormat(12, 16)


class Numbers:
    """Examples without texts."""

    spec: BatchSpec = {"number": Field("int32", ("batch",))}
    warnings = ()
    padding = 0.0

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def gather(self, indices: np.ndarray) -> Batch:
        return {"number": indices.astype(np.int32)}


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> list[list[ImageReference]]:
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(10):
        Image.fromarray(rng.integers(0, 256, (30, 40 + number, 3), np.uint8)).save(folder / f"{number}.png")
    return [[ImageReference(str(folder / f"{number}.png"))] for number in range(10)]


def rows_of(references: list[list[ImageReference]], fmt: ImageFormat = FORMAT, cache_bytes: int = 1 << 20) -> ImageRows:
    return ImageRows(Numbers(len(references)), references, fmt, cache_bytes)


@pytest.mark.parametrize("augment", [Augment(), Augment(crop="padded"), Augment(crop="none")], ids=lambda a: a.crop)
def test_images_depend_on_seed_row_and_epoch_alone(augment: Augment, references: list) -> None:
    whole = AugmentedBatches(rows_of(references), augment, 8, 3, shuffle=True)
    found: dict[tuple[int, int], np.ndarray] = {}
    for step in range(5):
        batch = whole[step]
        for row, epoch, image in zip(batch["row"], batch["epoch"], batch["images"], strict=True):
            found[int(row), int(epoch)] = image
    # Without a cache, in parts, from the middle, in batches of another size.
    again = AugmentedBatches(rows_of(references, cache_bytes=0), augment, 4, 3, shuffle=True)
    for step in (9, 8, 5):
        parts = [again.part(step, Shards((k,), 4)) for k in range(4)]
        assert [int(p["row"][0]) for p in parts] == again[step]["row"].tolist()
        for part in parts:
            np.testing.assert_array_equal(part["images"][0], found[int(part["row"][0]), int(part["epoch"][0])])
    # Epochs and seeds differ.
    assert any((found[row, 0] != found[row, 1]).any() for row in range(10))
    other = AugmentedBatches(rows_of(references), augment, 8, 4, shuffle=True)
    images = {}
    for step in range(5):
        batch = other[step]
        images |= {
            (int(row), int(epoch)): image
            for row, epoch, image in zip(batch["row"], batch["epoch"], batch["images"], strict=True)
        }
    assert any((images[row, 0] != found[row, 0]).any() for row in range(10))


def test_all_frames_of_a_video_are_varied_alike(tmp_path: Path) -> None:
    folder = tmp_path / "video"
    folder.mkdir()
    array = np.random.default_rng(1).integers(0, 256, (30, 40, 3), np.uint8)
    for number in range(4):
        Image.fromarray(array).save(folder / f"{number}.png")
    rows = rows_of([[ImageReference(str(folder))]] * 2, ImageFormat(12, 16, frames=4))
    for crop in ("resized", "padded"):
        for epoch in range(8):
            pixels = Augment(crop=crop).pixels(rows, 0, 0, epoch)
            assert pixels.shape == (4, 12, 16, 3)
            assert (pixels == pixels[:1]).all()


def test_a_resized_crop_is_that_part_of_the_picture_resized(references: list) -> None:
    rows = rows_of(references)
    augment = Augment(flip=0.0)
    for epoch in range(10):
        random = np.random.default_rng(epoch)
        box = augment.box(40, 30, np.random.default_rng(epoch))
        found = augment.resized_crop(rows.images(0), FORMAT, random)
        with Image.open(references[0][0].file) as image:
            expected = image.crop(box).resize((16, 12), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(found[0], np.asarray(expected))


def test_boxes_have_the_area_and_ratio_asked_for_and_lie_inside() -> None:
    random = np.random.default_rng(0)
    augment = Augment(area=(0.2, 0.6), ratio=(0.5, 2.0))
    boxes = np.array([augment.box(300, 200, random) for _ in range(500)])
    wide, tall = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert boxes.min() >= 0 and boxes[:, 2].max() <= 300 and boxes[:, 3].max() <= 200
    assert 0.19 < (wide * tall / 60_000).min() < 0.25 and 0.55 < (wide * tall / 60_000).max() < 0.61
    assert 0.49 < (wide / tall).min() < 0.6 and 1.7 < (wide / tall).max() < 2.02
    # What fits nowhere becomes the largest centre that has an allowed ratio.
    assert Augment(area=(1.0, 1.0), ratio=(1.0, 1.0)).box(300, 100, random) == (100, 0, 200, 100)
    assert Augment().box(1, 1, random) == (0, 0, 1, 1)


def test_a_padded_crop_shifts_within_the_border_and_flips_as_often_as_asked(references: list) -> None:
    rows = rows_of(references)
    plain = rows.pixels(np.array([0]))[0]
    padded = np.pad(plain, ((0, 0), (2, 2), (2, 2), (0, 0)))
    shifts = [padded[:, y : y + 12, x : x + 16] for y in range(5) for x in range(5)]
    flips, seen = 0, set()
    for epoch in range(300):
        pixels = Augment(crop="padded", padding=2, flip=0.25).pixels(rows, 0, 0, epoch)
        kinds = [k for k, shift in enumerate(shifts) if np.array_equal(shift, pixels)]
        flipped = [k for k, shift in enumerate(shifts) if np.array_equal(shift, pixels[:, :, ::-1])]
        assert len(kinds) + len(flipped) == 1
        flips += bool(flipped)
        seen.update(kinds + flipped)
    assert len(seen) == 25 and 50 < flips < 100


def test_without_augmentation_batches_are_those_of_the_rows(references: list) -> None:
    rows = rows_of(references)
    plain, none = Batches(rows, 4, 0, True), AugmentedBatches(rows, Augment("none", flip=0.0), 4, 0, True)
    for step in range(4):
        for name, array in plain[step].items():
            np.testing.assert_array_equal(array, none[step][name])


@pytest.mark.parametrize("bad", [{"area": (0.5, 0.2)}, {"area": (0.0, 1.0)}, {"ratio": (2.0, 1.0)}, {"flip": 1.5}])
def test_impossible_ranges_are_refused(bad: dict) -> None:
    with pytest.raises(UserError, match=f"Augment: {next(iter(bad))}"):
        Augment(**bad)
