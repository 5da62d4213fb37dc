"""Random crops and flips of training images, as a function of (seed, row, epoch) alone.

So an image is varied in the same way whatever the number of processes, the size of the batch and the step at which a
run is resumed; in each epoch in another way.
"""

import dataclasses
import math
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Int, UInt8

from bertgpt.data.images.decode import pillow
from bertgpt.data.images.format import ImageFormat
from bertgpt.data.images.rows import ImageRows
from bertgpt.data.loader import Batches, Order
from bertgpt.ranges import Fraction, Natural, Positive, check_fields
from bertgpt.types import Batch, UserError

if TYPE_CHECKING:
    from PIL.Image import Image

TRIES = 10  # of crops that may not fit into the image
_USE = 0x696D6167  # "imag": these random numbers are not those of any other use of the seed


@dataclasses.dataclass(frozen=True)
class Augment:
    """How training images are varied. All frames of a video are varied alike."""

    crop: Literal["resized", "padded", "none"] = "resized"
    """a part of the picture of random size and ratio, resized to height × width in place of the format's own resizing
    (Szegedy et al. 2015 §6); or height × width pixels of the image with a black border (He et al. 2016 §4.2)"""
    area: tuple[Fraction, Fraction] = (0.08, 1.0)
    """smallest and largest part of the picture's area, for crop="resized" """
    ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    """smallest and largest width / height of that part"""
    padding: Natural = 4
    """pixels of the border, for crop="padded" """
    flip: Fraction = 0.5
    """probability of exchanging left and right; 0 where pictures show text or directions"""

    def __post_init__(self):
        check_fields(self)
        for name, (low, high) in (("area", self.area), ("ratio", self.ratio)):
            if not 0.0 < low <= high:
                raise UserError(f"Augment: {name}={(low, high)} must be (smallest, largest), above 0")

    def pixels(self, rows: ImageRows, index: int, seed: int, epoch: int) -> UInt8[np.ndarray, "F H W 3"]:
        """The pixels of one example in one epoch."""
        random = np.random.default_rng([_USE, seed, index, epoch])
        if self.crop == "resized":
            pixels = self.resized_crop(rows.images(index), rows.fmt, random)
        else:
            pixels = rows.pixels(np.array([index]))[0]
            if self.crop == "padded":
                pixels = self.padded_crop(pixels, random)
        return pixels[:, :, ::-1] if random.random() < self.flip else pixels

    def resized_crop(
        self, images: "list[Image]", fmt: ImageFormat, random: np.random.Generator
    ) -> UInt8[np.ndarray, "F H W 3"]:
        """The same random part of all frames, resized."""
        left, top, right, bottom = self.box(images[0].width, images[0].height, random)
        resample = pillow().Resampling[fmt.resample.upper()]

        def part(image: "Image") -> np.ndarray:
            x, y = image.width / images[0].width, image.height / images[0].height  # 1, unless frames differ in size
            box = (int(left * x), int(top * y), math.ceil(right * x), math.ceil(bottom * y))
            return np.asarray(image.crop(box).resize((fmt.width, fmt.height), resample))

        return fmt.stack(images, part)

    def box(self, width: int, height: int, random: np.random.Generator) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) of a random part of a picture, as RandomResizedCrop of torchvision samples it.

        Area and log ratio are uniform. If no part fits in TRIES tries it is the largest centre with an allowed ratio.
        """
        low, high = self.ratio
        for area, log_ratio in zip(
            random.uniform(*self.area, TRIES), random.uniform(math.log(low), math.log(high), TRIES), strict=True
        ):
            wide = round(math.sqrt(width * height * area * math.exp(log_ratio)))
            tall = round(math.sqrt(width * height * area / math.exp(log_ratio)))
            if 0 < wide <= width and 0 < tall <= height:
                left, top = int(random.integers(width - wide + 1)), int(random.integers(height - tall + 1))
                return left, top, left + wide, top + tall
        wide = min(width, max(1, round(height * high)))
        tall = min(height, max(1, round(width / low)))
        left, top = (width - wide) // 2, (height - tall) // 2
        return left, top, left + wide, top + tall

    def padded_crop(
        self, pixels: UInt8[np.ndarray, "F H W 3"], random: np.random.Generator
    ) -> UInt8[np.ndarray, "F H W 3"]:
        """Moves all frames by up to `padding` pixels in both directions."""
        top, left = random.integers(2 * self.padding + 1, size=2)
        border = (self.padding, self.padding)
        padded = np.pad(pixels, ((0, 0), border, border, (0, 0)))
        return padded[:, top : top + pixels.shape[1], left : left + pixels.shape[2]]


class AugmentedBatches(Batches):
    """Batches whose images are varied in each epoch."""

    def __init__(
        self, rows: ImageRows, augment: Augment, batch_size: int, seed: int, shuffle: bool, order: Order | None = None
    ):
        """As `Batches`, with the examples of `rows` and what to do with their images."""
        super().__init__(rows, batch_size, seed, shuffle, order)
        self.rows, self.augment = rows, augment

    def gather(self, row: Int[np.ndarray, " B"], epoch: Int[np.ndarray, " B"]) -> Batch:
        pairs = zip(row.tolist(), epoch.tolist(), strict=True)
        images = [self.augment.pixels(self.rows, index, self.seed, when) for index, when in pairs]
        return self.rows.dataset.gather(row) | {"images": np.stack(images)}
