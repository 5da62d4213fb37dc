"""Datasets whose examples have pictures beside their texts."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int, UInt8

from bertgpt.data.images.decode import sampled
from bertgpt.data.images.format import ImageFormat
from bertgpt.data.images.reading import (
    ImageReference,
    check_exists,
    count_frames,
    frame_references,
    open_image,
    read_frames,
)
from bertgpt.types import IMAGE_SPEC, Batch, BatchSpec, Dataset, DataWarning, UserError

if TYPE_CHECKING:
    from PIL.Image import Image

CACHE_BYTES = 1 << 29
EXAMINED = 2000  # videos whose frames are counted


class ImageRows:
    """A dataset of texts with the field `images` added: pixels that are decoded when they are gathered.

    The texts are `dataset`, whose own methods score outputs.
    """

    def __init__(
        self,
        dataset: Dataset,
        references: Sequence[Sequence[ImageReference]],
        fmt: ImageFormat,
        cache_bytes: int = CACHE_BYTES,
    ):
        """Adds pictures to a dataset.

        Args:
          dataset: the texts, one example in each sequence.
          references: of each example the picture or video, or the pictures that are its frames.
          fmt: size and number of frames.
          cache_bytes: decoded pixels are kept up to this size; those of a small dataset are decoded once.

        Raises:
          UserError: a picture on disk is missing, or the number of references is not that of examples.
        """
        if len(dataset) != len(references):
            counts = f"{len(references):,} pictures for {len(dataset):,} sequences"
            raise UserError(f"{counts}: each sequence must hold one example, unpacked")
        self.dataset, self.fmt = dataset, fmt
        self.references = [tuple(each) for each in references]
        for reference in dict.fromkeys(reference for each in self.references for reference in each):
            check_exists(reference)
        self.spec: BatchSpec = {**dataset.spec, **IMAGE_SPEC}
        self.padding, self.warnings = dataset.padding, (*dataset.warnings, *frame_warnings(self.references, fmt.frames))
        self._kept: dict[tuple, np.ndarray] = {}
        self._opened: dict[tuple, list[Image]] = {}
        self._room = cache_bytes

    def __len__(self) -> int:
        return len(self.dataset)

    def gather(self, indices: Int[np.ndarray, " B"]) -> Batch:
        """The examples at these indices."""
        return self.dataset.gather(indices) | {"images": self.pixels(indices)}

    def pixels(self, indices: Int[np.ndarray, " B"]) -> UInt8[np.ndarray, "B F H W C"]:
        """The pixels of the examples at these indices."""
        return np.stack([self._pixels(self.references[index]) for index in indices.tolist()])

    def images(self, index: int) -> "list[Image]":
        """The frames of an example as RGB images of the sizes that their files have; a still image is one frame."""
        references = self.references[index]
        if (kept := self._opened.get(key := _key(references))) is not None:
            return kept
        images = read_images(references, self.fmt.frames)
        if self._keeps(4 * sum(image.width * image.height for image in images)):  # bytes of a pixel in Pillow
            self._opened[key] = images
        return images

    def _pixels(self, references: tuple[ImageReference, ...]) -> UInt8[np.ndarray, "F H W 3"]:
        if (kept := self._kept.get(key := _key(references))) is not None:
            return kept
        pixels = pixels_of(references, self.fmt)
        if self._keeps(pixels.nbytes):
            self._kept[key] = pixels.copy()  # not a part of something larger
        return pixels

    def _keeps(self, size: int) -> bool:
        """Whether there is room for so many bytes, which are then taken. Nothing is ever removed for others: each epoch
        reads everything once, so that what was read last is not more likely to be read next."""
        if size > self._room:
            return False
        self._room -= size
        return True


def _key(references: Sequence[ImageReference]) -> tuple:
    """The same for all examples with the same pictures."""
    return tuple((reference.file, reference.member) for reference in references)


def frame_warnings(references: Sequence[Sequence[ImageReference]], frames: int) -> tuple[DataWarning, ...]:
    """How many examples have too few frames, which are repeated, or many of which only one is read.

    Frames of animated files are counted by reading them, so that of a large dataset EXAMINED examples stand for all.

    Raises:
      UserError: frames are to be counted, and a file is no picture.
    """
    if frames > 1:
        examined = references[:: max(1, -(-len(references) // EXAMINED))]
        few = sum(count_frames(each) < frames for each in examined)
        text = f"{few:,} of {len(examined):,} videos have fewer than {frames} frames; some of them are repeated"
        return (DataWarning("repaired", few, text),) if few else ()
    # Animated pictures are not opened for this: their first frame is what other programs show as well.
    many = sum(len(each) > 1 or len(frame_references(each[0])) > 1 for each in references)
    text = f"{many:,} of {len(references):,} examples have several frames, of which frames=1 reads the middle one"
    return (DataWarning("truncated", many, text),) if many else ()


def pixels_of(references: Sequence[ImageReference], fmt: ImageFormat) -> UInt8[np.ndarray, "F H W 3"]:
    """The pixels of one example: of a picture or video, or of the pictures that are its frames."""
    return fmt.arrange(read_images(references, fmt.frames), references[0].name)


def read_images(references: Sequence[ImageReference], frames: int) -> "list[Image]":
    """The frames of one example as RGB images: one, of a still image, or `frames`."""
    if len(references) == 1:
        return read_frames(references[0], frames)[0]
    chosen = sampled(len(references), frames)
    opened = {int(index): open_image(references[index]) for index in np.unique(chosen)}
    return [opened[int(index)] for index in chosen]
