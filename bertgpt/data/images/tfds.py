"""Pictures of TFDS datasets, read one by one when they are needed."""

import functools
from typing import TYPE_CHECKING

import numpy as np

from bertgpt.data.sources.files import facts
from bertgpt.data.sources.tfds import FORMAT, image_decoders, open_dataset
from bertgpt.io.files import one_line
from bertgpt.types import UserError

if TYPE_CHECKING:
    from tensorflow_datasets.core.data_sources.base import BaseDataSource


def read_feature(path: str, member: str, name: str) -> bytes | np.ndarray:
    """A feature of one example: an encoded picture, or the frames uint8 [F, H, W, C] of a sequence of pictures.

    Args:
      path: the dataset, tfds:NAME….
      member: number of the example from 1, and the feature: 17/image.
      name: what errors call it.

    Raises:
      UserError: there is no such feature, or it cannot be read.
    """
    number, _, feature = member.partition("/")
    source = _source(path, *facts(path).values())
    if not number.isdecimal() or not 1 <= int(number) <= len(source):
        raise UserError(f"{name}: must be NUMBER/FEATURE, with a number from 1 to {len(source):,}")
    try:
        value = source[int(number) - 1][feature]
        return np.stack(value) if isinstance(value, list) else value
    except KeyError:
        raise UserError(f"{name}: the dataset has no feature {feature!r}") from None
    except Exception as error:
        raise UserError(f"{name}: cannot be read: {one_line(error)}") from None


@functools.lru_cache(maxsize=4)
def _source(path: str, size: int, modified: int) -> "BaseDataSource":
    dataset = open_dataset(path)
    decoders, _ = image_decoders(dataset)
    return dataset.builder.as_data_source(split=dataset.split, file_format=FORMAT, decoders=decoders)
