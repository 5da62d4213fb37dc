"""Text as datasets of TFDS (TensorFlow Datasets), written as ArrayRecord without TensorFlow."""

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bertgpt.data.sources.text import Split, clean, read_documents, split_of
from bertgpt.data.sources.tfds import FORMAT
from bertgpt.types import JsonObject, UserError

VERSION = "1.0.0"


def write_dataset(
    source: Any, name: str, data_dir: Path, *, text_field: str, strip_html: bool, validation: float, test: float
) -> Path:
    """Writes text as a dataset of TFDS in ArrayRecord format and returns its directory, DATA_DIR/NAME/1.0.0.

    Any program reads it with `tfds.builder_from_directory(directory).as_data_source()`; bertgpt reads it as
    tfds:NAME?data_dir=DATA_DIR. Texts are stored as they were read, in order, as the feature "text". A text is in the
    same split as in a corpus with the same fractions.

    Args:
      source: what `read_documents` takes; it is read once for each split.
      name: name of the dataset, in lower case.
      data_dir: folder of datasets.
      text_field: the field of records that holds the text.
      strip_html: as in the corpus; the split is a function of the cleaned text.
      validation: fraction of the documents; 0: no such split is written.
      test: the same.

    Raises:
      UserError: the dataset exists, the name is not valid, the source is bad, or a split has no documents. Nothing is
        written in these cases.
    """
    import tensorflow_datasets as tfds

    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(f"dataset name {name!r} must be lower-case letters, digits and _")
    if isinstance(source, Iterator):
        raise UserError("the source of a dataset is read once per split: pass a list or a function, not an iterator")
    directory = Path(data_dir) / name / VERSION
    if directory.exists():
        raise UserError(f"{directory}: exists already")
    shares: dict[Split, float] = {"train": 1.0 - validation - test, "validation": validation, "test": test}
    if min(shares.values()) < 0.0:
        raise UserError(f"validation={validation} and test={test} must be fractions that leave text to train on")

    def texts(split: Split) -> Iterator[str]:
        found = False
        for document in read_documents(source, text_field):
            if split_of(clean(document.text, strip_html), validation, test) == split:
                found = True
                yield document.text
        if not found:
            raise UserError(f"{name}: split {split!r} has no documents; set its fraction to 0 or provide more text")

    # TFDS describes a dataset by a class and its attributes.
    class Text(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Documents of plain text."""

        VERSION = tfds.core.Version(VERSION)
        code_path = None  # as in a notebook: otherwise TFDS looks beside the code for checksums of downloads

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self,
                description="Documents of plain text.",
                features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
                disable_shuffling=True,  # random access shuffles better
            )

        def _split_generators(self, dl_manager: Any) -> JsonObject:
            return {split: self._generate_examples(split) for split, share in shares.items() if share > 0.0}

        def _generate_examples(self, split: Split) -> Iterator[tuple[int, dict[str, str]]]:
            for number, text in enumerate(texts(split)):
                yield number, {"text": text}

    Text.name = name
    try:
        with tempfile.TemporaryDirectory() as downloads:  # TFDS requires a folder for them
            builder = Text(data_dir=data_dir, file_format=FORMAT)
            builder.download_and_prepare(download_dir=downloads)
    except BaseException:
        with contextlib.suppress(OSError):
            directory.parent.rmdir()  # fails unless it is empty
        raise
    return directory
