"""Datasets of TFDS (TensorFlow Datasets) as text, without TensorFlow: read by random access, written as ArrayRecord.

A source is written tfds:NAME[/CONFIG][:VERSION][?split=SPLIT][&data_dir=DIR]: tfds:my_text,
tfds:my_text/small:1.0.0?split=train&data_dir=data/tfds. Without VERSION it is the newest one that is there; without
split, all of them one after another (what TFDS calls "all"; train[:10%] and train+test are splits too); without
data_dir, TFDS's own directory, $TFDS_DATA_DIR or ~/tensorflow_datasets. A dataset must have been prepared there, on a
local disk, with file_format="array_record": nothing is downloaded or converted here. Other formats need TensorFlow, but
for Parquet: TFDS 4.9.10 loses examples as it writes it, and reads whole files where a part of a split is asked for.
"""

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bertgpt.data.sources.text import Split, clean, read_documents, split_of
from bertgpt.types import UserError

SYNTAX = "tfds:NAME[/CONFIG][:VERSION][?split=SPLIT][&data_dir=DIR]"
FORMAT = "array_record"
VERSION = "1.0.0"  # of the datasets that are written
BATCH = 256  # examples fetched at once
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_SOURCE = re.compile(
    rf"tfds:(?P<name>[A-Za-z]\w*)(?:/(?P<config>[\w.+-]+))?(?::(?P<version>{_VERSION.pattern}))?(?:\?(?P<options>.*))?"
)


class Dataset(NamedTuple):
    """A dataset on disk, and which of its examples are meant."""

    directory: Path
    builder: Any
    split: str


def open_dataset(path: str) -> Dataset:
    """Finds the dataset that a source names.

    Raises:
      UserError: the source is not of the form above, there is no such dataset, version or split, or it is not stored
        as ArrayRecord.
    """
    import tensorflow_datasets as tfds

    match = _SOURCE.fullmatch(path)
    if not match:
        raise UserError(f"{path}: must read {SYNTAX}")
    options = {"split": "all", "data_dir": tfds.core.constants.DATA_DIR}
    for option in filter(None, (match["options"] or "").split("&")):
        key, _, value = option.partition("=")
        if key not in options or not value:
            raise UserError(f"{path}: {option!r} must be split=SPLIT or data_dir=DIR")
        options[key] = value
    directory = _find(path, Path(options["data_dir"]).expanduser(), match["name"], match["config"], match["version"])
    try:
        builder = tfds.builder_from_directory(directory)
        stored = {kind.value for kind in builder.info.available_file_formats()}
        splits = list(builder.info.splits)
    except Exception as error:  # of a damaged description: JSON's, protobuf's, TFDS's own
        raise UserError(f"{path}: cannot be read: {_one_line(error)}") from None
    if FORMAT not in stored:
        raise UserError(f"{path}: is stored as {', '.join(sorted(stored))}; prepare it with file_format={FORMAT!r}")
    try:
        count = builder.info.splits[options["split"]].num_examples if splits else 0
    except Exception:  # a KeyError, a ValueError or an AssertionError
        raise UserError(f"{path}: no split {options['split']!r}; it has {', '.join(splits)}") from None
    if not count:
        raise UserError(f"{path}: has no examples")
    return Dataset(directory, builder, options["split"])


def dataset_facts(path: str) -> dict[str, Any]:
    """The "bytes" of all splits of a dataset, as its description has them, and when that was "modified" (ns).

    Raises:
      UserError: as `open_dataset`.
    """
    dataset = open_dataset(path)
    modified = (dataset.directory / "dataset_info.json").stat().st_mtime_ns
    return {"bytes": int(dataset.builder.info.dataset_size), "modified": modified}


def read_examples(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 1, features) of each example: text as str, numbers as Python's, all else as TFDS gives it.

    Raises:
      UserError: as `open_dataset`; a file of the dataset is missing or damaged, or a text is not UTF-8.
    """
    dataset = open_dataset(path)
    try:
        examples = dataset.builder.as_data_source(split=dataset.split, file_format=FORMAT)
        length = len(examples)
        _check_shards(path, dataset)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path}: cannot be read: {_one_line(error)}") from None
    for start in range(0, length, BATCH):
        try:
            batch = examples.__getitems__(range(start, min(start + BATCH, length)))
        except Exception as error:
            raise UserError(f"{path}:{start + 1}: cannot be read from here on: {_one_line(error)}") from None
        for number, example in enumerate(batch, start=start + 1):
            if not isinstance(example, dict):
                raise UserError(f"{path}:{number}: is of type {type(example).__name__}, without named features")
            yield number, {name: _value(path, number, name, value) for name, value in example.items()}


def _check_shards(path: str, dataset: Dataset) -> None:
    """Of a shard cut at a boundary between blocks, the reader would give empty examples without complaint."""
    from array_record.python.array_record_module import ArrayRecordReader

    for part in dataset.builder.info.splits[dataset.split].file_instructions:
        file = Path(part.filename)
        if not file.exists():
            raise UserError(f"{path}: {file.name} is missing")
        count = ArrayRecordReader(str(file)).num_records()
        if count != part.examples_in_shard:
            counts = f"{count} of its {part.examples_in_shard} examples"
            raise UserError(f"{path}: {file.name} is corrupt or cut short: it has {counts}")


def _value(path: str, number: int, name: str, value: Any) -> Any:
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        value = value.item()
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            byte = value[error.start]
            raise UserError(f"{path}:{number}: {name!r} is not valid UTF-8 (byte 0x{byte:02x})") from None
    return value


def _find(path: str, data_dir: Path, name: str, config: str | None, version: str | None) -> Path:
    """DATA_DIR/NAME[/CONFIG]/VERSION, by looking.

    TFDS's own search would import the code of a registered dataset, and that may import TensorFlow.
    """
    folder = data_dir / name / config if config else data_dir / name
    places = [info.parent for info in folder.glob("*/dataset_info.json")]
    found = {place.name: place for place in places if _VERSION.fullmatch(place.name)}  # the others are incomplete
    if version in found:
        return found[version]
    if found and version is None:
        return found[max(found, key=lambda version: [int(part) for part in version.split(".")])]
    if found:
        raise UserError(f"{path}: no version {version} in {folder}; there is {', '.join(sorted(found))}")
    configs = sorted({info.parent.parent.name for info in folder.glob("*/*/dataset_info.json")})
    hint = f"; name one of its configurations: {', '.join(configs)}" if configs else ""
    raise UserError(f"{path}: no dataset in {folder}{hint}")


def write_dataset(
    source: Any, name: str, data_dir: Path, *, text_field: str, strip_html: bool, validation: float, test: float
) -> Path:
    """Turns text into a dataset of TFDS in ArrayRecord format and returns its directory, DATA_DIR/NAME/1.0.0.

    Any program reads it by `tfds.builder_from_directory(directory).as_data_source()`, or through bertgpt as
    tfds:NAME?data_dir=DATA_DIR. Texts are stored as they were read and in their order, as the feature "text"; a text is
    in the split in which a corpus with the same fractions has it.

    Args:
      source: what `read_documents` takes; it is read once for each split.
      strip_html: tells the split, as that is a function of the cleaned text.
      validation, test: fractions of the documents; a split without any is not written.

    Raises:
      UserError: the dataset exists, the name is not one, the source is bad, or a split has no documents. Nothing is
        left behind then.
    """
    import tensorflow_datasets as tfds

    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(f"dataset name {name!r} must be lower-case letters, digits and _")
    if isinstance(source, Iterator):
        raise UserError("the source of a dataset is read once for each split: give a list or a function, no iterator")
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
            raise UserError(f"{name}: split {split!r} has no documents; set its fraction to 0 or give more text")

    # A class is how TFDS is told what a dataset is, its attributes included.
    class Text(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Documents of plain text."""

        VERSION = tfds.core.Version(VERSION)
        code_path = None  # as in a notebook: TFDS would look beside it for checksums of downloads, there are none

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self,
                description="Documents of plain text.",
                features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
                disable_shuffling=True,  # random access shuffles better
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {split: self._generate_examples(split) for split, share in shares.items() if share > 0.0}

        def _generate_examples(self, split: Split) -> Iterator[tuple[int, dict[str, str]]]:
            for number, text in enumerate(texts(split)):
                yield number, {"text": text}

    Text.name = name
    try:
        with tempfile.TemporaryDirectory() as downloads:  # TFDS wants a place for them
            builder = Text(data_dir=data_dir, file_format=FORMAT)
            builder.download_and_prepare(download_dir=downloads)
    except BaseException:
        with contextlib.suppress(OSError):
            directory.parent.rmdir()  # if it is empty
        raise
    return directory


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
