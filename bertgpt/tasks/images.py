"""Images of records: the fields that the data configs of all image tasks share, and pixels of new records."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int, UInt8

from bertgpt.data.images.augment import Augment, AugmentedBatches
from bertgpt.data.images.decode import pillow, rgb, sampled
from bertgpt.data.images.digest import image_digest
from bertgpt.data.images.format import ImageFormat
from bertgpt.data.images.reading import ImageReference, locate, open_image, references_of
from bertgpt.data.images.rows import ImageRows
from bertgpt.data.loader import Batches
from bertgpt.data.sources.records import Record, field
from bertgpt.data.sources.text import clean
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.types import (
    IMAGE_SPEC,
    Batch,
    DataRequest,
    Dataset,
    EvalResult,
    JsonObject,
    Metric,
    Pixels,
    Table,
    UserError,
)

SHEET = 24
"""pictures of a contact sheet at most"""
MOST_GROUPS = 20
"""groups of examples that have a metric of their own"""
STRIP = 6
"""frames of a video that a contact sheet shows at most"""

Images = tuple[ImageReference, ...]
"""the picture or video of an example, or the pictures that are its frames"""


@dataclasses.dataclass(frozen=True)
class ImageFields:
    """Where the images of records are, and how they become pixels."""

    image: ImageFormat = ImageFormat()
    """size of the images that the model reads, and how pictures are brought to it"""
    augment: Augment | None = None
    """random crops and flips of the training images; None: none"""
    image_field: str = "image"
    """column that names the picture or video; a list of pictures holds the frames of a video"""
    image_root: str | None = None
    """folder or .tar file of the pictures (None: beside the file of the records); {} in it stands for the name of that
    file without its suffix: data/{}_images.tar"""
    group_field: str | None = None
    """column with the kind of each example, such as the type of a question, for a table of accuracies; None: none"""
    split_fields: tuple[str, ...] = ()
    """columns whose values decide the split of a record; (): that of the image"""

    @property
    def key_fields(self) -> tuple[str, ...]:
        return self.split_fields or (self.image_field,)

    def split_texts(self, record: Record) -> Sequence[str]:
        """The values that decide the split of a record, numbers too; differences in white space do not count."""
        lists = [record.lists.get(name) or [field(record, name)] for name in self.key_fields]
        return [clean(value, strip_html=False) for values in lists for value in values]

    def digests(self, tokenizer: Tokenizer, cache: Path) -> Mapping[str, str]:
        """Those of the files of records, and "images": of the pictures that they name (`image_digest`)."""
        paths = filter(None, (self.path, self.validation_path, self.test_path))
        images = (image for path in paths for record in self.read(path) for image in self.images(record))
        return {**super().digests(tokenizer, cache), "images": image_digest(images)}

    def group(self, record: Record) -> str:
        """The kind of a record; "" without `group_field`."""
        return "" if self.group_field is None else field(record, self.group_field)

    def images(self, record: Record) -> Images:
        """The images of a record. Errors: UserError, if it names none."""
        root = self.image_root
        if root is not None:
            root = root.replace("{}", os.path.basename(record.file).partition(".")[0])
        return references_of(record, self.image_field, root)

    def with_images(self, dataset: Dataset, images: Sequence[Images], request: DataRequest) -> Batches:
        """Batches of a dataset of texts and the images of each; those of training are augmented.

        Raises:
          UserError: a picture is missing.
        """
        rows, how = ImageRows(dataset, images, self.image), (request.batch_size, request.seed, request.shuffle)
        training = request.split == "train" and request.shuffle
        return AugmentedBatches(rows, self.augment, *how) if self.augment and training else Batches(rows, *how)

    def new_pixels(self, records: Sequence[JsonObject]) -> Pixels:
        """The pixels of new records, decoded when they are asked for.

        Args:
          records: each has in `image_field` a path, an encoded picture (bytes), an array of pixels or an image of
            Pillow, or a list of these: the frames of a video.
        """
        places = [f"record:{number}" for number in range(1, len(records) + 1)]
        sources = [sources_of(record, self.image_field, place) for record, place in zip(records, places, strict=True)]

        def pixels(indices: Int[np.ndarray, " B"]) -> UInt8[np.ndarray, "B F H W C"]:
            return np.stack([source_pixels(sources[index], places[index], self.image) for index in indices.tolist()])

        return pixels


def sources_of(record: JsonObject, name: str, where: str) -> list[object]:
    """The picture or video of a new record, or its frames. Errors: UserError, if it has none."""
    value = record.get(name)
    values = list(value) if isinstance(value, list | tuple) else [value]
    if not values or any(item is None or isinstance(item, str) and not item.strip() for item in values):
        raise UserError(f"{where}: {name!r} names no picture")
    return [locate(os.fspath(v), "", where=where) if isinstance(v, str | os.PathLike) else v for v in values]


def source_pixels(sources: Sequence[object], where: str, fmt: ImageFormat) -> UInt8[np.ndarray, "F H W C"]:
    """The pixels of one new record: of a picture or video, or of the pictures that are its frames.

    Raises:
      UserError: a picture cannot be read; the message names the record.
    """
    if len(sources) > 1:
        sources = [sources[index] for index in sampled(len(sources), fmt.frames)]
    given = [_source(source, where) for source in sources]
    try:
        return fmt.pixels(given[0]) if len(given) == 1 else fmt.arrange(list(map(open_image, given)), where)
    except UserError as error:
        raise UserError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None


def _source(source: object, where: str) -> ImageReference | bytes | np.ndarray:
    if isinstance(source, ImageReference | bytes | np.ndarray):
        return source
    if isinstance(source, pillow().Image):
        return np.asarray(rgb(source, where))
    kinds = "a path, the bytes of a picture, an array of pixels or an image of Pillow"
    raise UserError(f"{where}: an image is of type {type(source).__name__}, not {kinds}")


class WithPixels:
    """A dataset of the texts of new records, with their pixels."""

    def __init__(self, dataset: Dataset, pixels: Pixels):
        """`dataset`: the texts, one example in each sequence. `pixels`: of each example."""
        self.dataset, self.pixels = dataset, pixels
        self.spec, self.padding, self.warnings = {**dataset.spec, **IMAGE_SPEC}, dataset.padding, dataset.warnings

    def __len__(self) -> int:
        return len(self.dataset)

    def gather(self, indices: Int[np.ndarray, " B"]) -> Batch:
        """The examples at these indices."""
        return self.dataset.gather(indices) | {"images": self.pixels(indices)}


def evaluate_groups(groups: Sequence[str], right: Bool[np.ndarray, " N"]) -> EvalResult:
    """The accuracy of each group of examples; nothing if there are no groups.

    Each is a metric too, `GROUP_accuracy`, if there are at most MOST_GROUPS.
    """
    names = sorted({group for group in groups if group})
    if not names:
        return EvalResult()
    members = {name: np.array(groups) == name for name in names}
    scores = {name: float(np.mean(right[which])) for name, which in members.items()}
    rows = [[name, f"{scores[name]:.3f}", f"{np.sum(which)}"] for name, which in members.items()]
    metrics = tuple(Metric(f"{name}_accuracy", score, True) for name, score in scores.items())
    table = Table("groups", ("group", "accuracy", "examples"), rows)
    return EvalResult(metrics if len(names) <= MOST_GROUPS else (), (table,))


def sheet_sample(count: int) -> Int[np.ndarray, " N"]:
    """Indices of the examples of a split that its contact sheet shows: always the same ones, in order."""
    return np.sort(np.random.default_rng(0).permutation(count)[:SHEET])


def strip(pixels: UInt8[np.ndarray, "F H W C"]) -> UInt8[np.ndarray, "H w C"]:
    """An image, or some frames of a video side by side."""
    chosen = np.linspace(0, len(pixels) - 1, min(len(pixels), STRIP)).round().astype(int)
    return np.concatenate(list(pixels[chosen]), axis=1)
