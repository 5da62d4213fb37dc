"""Datasets whose examples have pictures beside their texts."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, UInt8

from bertgpt.data.images.decode import sampled
from bertgpt.data.images.format import ImageFormat
from bertgpt.data.images.reading import ImageReference, check_exists, open_image
from bertgpt.types import IMAGE_SPEC, Batch, BatchSpec, Dataset, UserError

CACHE_BYTES = 1 << 29


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
            raise UserError(
                f"{len(references):,} pictures for {len(dataset):,} sequences: packing leaves none for each"
            )
        self.dataset, self.fmt = dataset, fmt
        self.references = [tuple(each) for each in references]
        for reference in dict.fromkeys(reference for each in self.references for reference in each):
            check_exists(reference)
        self.spec: BatchSpec = {**dataset.spec, **IMAGE_SPEC}
        self.padding, self.warnings = dataset.padding, dataset.warnings
        self._kept: dict[tuple[ImageReference, ...], np.ndarray] = {}
        self._room = cache_bytes

    def __len__(self) -> int:
        return len(self.dataset)

    def gather(self, indices: Int[np.ndarray, " B"]) -> Batch:
        """The examples at these indices."""
        return self.dataset.gather(indices) | {"images": self.pixels(indices)}

    def pixels(self, indices: Int[np.ndarray, " B"]) -> UInt8[np.ndarray, "B F H W C"]:
        """The pixels of the examples at these indices."""
        return np.stack([self._pixels(self.references[index]) for index in indices.tolist()])

    def _pixels(self, references: tuple[ImageReference, ...]) -> UInt8[np.ndarray, "F H W 3"]:
        if (kept := self._kept.get(references)) is not None:
            return kept
        pixels = pixels_of(references, self.fmt)
        if pixels.nbytes <= self._room:
            self._room -= pixels.nbytes
            self._kept[references] = pixels
        return pixels


def pixels_of(references: Sequence[ImageReference], fmt: ImageFormat) -> UInt8[np.ndarray, "F H W 3"]:
    """The pixels of one example: of a picture or video, or of the pictures that are its frames."""
    if len(references) == 1:
        return fmt.pixels(references[0])
    chosen = sampled(len(references), fmt.frames)
    opened = {int(index): open_image(references[index]) for index in np.unique(chosen)}
    return fmt.arrange([opened[int(index)] for index in chosen], references[0].name)
