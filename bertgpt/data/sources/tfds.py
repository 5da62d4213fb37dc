"""Datasets of TFDS (TensorFlow Datasets) as text, read by random access and without TensorFlow.

A source is written tfds:NAME[/CONFIG][:VERSION][?split=SPLIT][&data_dir=DIR]: tfds:my_text,
tfds:my_text/small:1.0.0?split=train&data_dir=data/tfds. Without VERSION it is the newest version found; without split,
all splits one after another (which TFDS calls "all"; train[:10%] and train+test are splits too); without data_dir,
TFDS's own directory, $TFDS_DATA_DIR or ~/tensorflow_datasets. The dataset must have been prepared there, on a local
disk, with file_format="array_record": nothing is downloaded or converted. Other formats need TensorFlow, except
Parquet, which is not supported because TFDS 4.9.10 loses examples when it writes it, and reads whole files if part of a
split is requested.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bertgpt.types import JsonObject, UserError

SYNTAX = "tfds:NAME[/CONFIG][:VERSION][?split=SPLIT][&data_dir=DIR]"
FORMAT = "array_record"
BATCH = 256  # examples fetched at once
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_SOURCE = re.compile(
    rf"tfds:(?P<name>[A-Za-z]\w*)(?:/(?P<config>[\w.+-]+))?(?::(?P<version>{_VERSION.pattern}))?(?:\?(?P<options>.*))?"
)


class OpenDataset(NamedTuple):
    """A dataset on disk, and the split of it to read."""

    directory: Path
    builder: Any
    split: str


def open_dataset(path: str) -> OpenDataset:
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
    except Exception as error:  # a damaged description raises errors of JSON, protobuf or TFDS
        raise UserError(f"{path}: cannot be read: {_one_line(error)}") from None
    if FORMAT not in stored:
        raise UserError(f"{path}: is stored as {', '.join(sorted(stored))}; prepare it with file_format={FORMAT!r}")
    try:
        count = builder.info.splits[options["split"]].num_examples if splits else 0
    except Exception:  # a KeyError, a ValueError or an AssertionError
        raise UserError(f"{path}: no split {options['split']!r}; it has {', '.join(splits)}") from None
    if not count:
        raise UserError(f"{path}: has no examples")
    return OpenDataset(directory, builder, options["split"])


def dataset_facts(path: str) -> JsonObject:
    """The "bytes" of all splits of a dataset by its description, and when that was "modified" (in ns).

    Raises:
      UserError: as `open_dataset`.
    """
    dataset = open_dataset(path)
    modified = (dataset.directory / "dataset_info.json").stat().st_mtime_ns
    return {"bytes": int(dataset.builder.info.dataset_size), "modified": modified}


def read_examples(path: str) -> Iterator[tuple[int, JsonObject]]:
    """(number from 1, features) of each example: text as str, numbers as Python numbers, the rest as TFDS returns it.

    Pictures are not decoded; NUMBER/FEATURE stands for them (see `bertgpt.data.images.tfds`).

    Raises:
      UserError: as `open_dataset`; a file of the dataset is missing or damaged, or a text is not UTF-8.
    """
    dataset = open_dataset(path)
    try:
        decoders, pictures = image_decoders(dataset)
        examples = dataset.builder.as_data_source(split=dataset.split, file_format=FORMAT, decoders=decoders)
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
            found = {name: _value(path, number, name, value) for name, value in example.items() if name not in pictures}
            yield number, found | {name: f"{number}/{name}" for name in pictures}


def image_decoders(dataset: OpenDataset) -> tuple[JsonObject | None, list[str]]:
    """(feature → decoder that leaves its pictures encoded, all features that are pictures or sequences of them)."""
    import tensorflow_datasets as tfds

    features = dict(dataset.builder.info.features.items())
    images = [name for name, feature in features.items() if isinstance(feature, tfds.features.Image)]
    lists = {name: feature.feature for name, feature in features.items() if isinstance(feature, tfds.features.Sequence)}
    videos = [name for name, feature in lists.items() if isinstance(feature, tfds.features.Image)]
    return {name: tfds.decode.SkipDecoding() for name in images} or None, images + videos


def _check_shards(path: str, dataset: OpenDataset) -> None:
    """Raises UserError for truncated shards: of one cut between blocks, the reader returns empty examples."""
    from array_record.python.array_record_module import ArrayRecordReader

    for shard in dataset.builder.info.splits[dataset.split].file_instructions:
        file = Path(shard.filename)
        if not file.exists():
            raise UserError(f"{path}: {file.name} is missing")
        count = ArrayRecordReader(str(file)).num_records()
        if count != shard.examples_in_shard:
            counts = f"{count} of its {shard.examples_in_shard} examples"
            raise UserError(f"{path}: {file.name} is corrupt or cut short: it has {counts}")


def _value(path: str, number: int, name: str, value: object) -> object:
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
    """DATA_DIR/NAME[/CONFIG]/VERSION, if it exists.

    TFDS's own search imports the code of registered datasets, which may import TensorFlow.
    """
    folder = data_dir / name / config if config else data_dir / name
    folders = [info.parent for info in folder.glob("*/dataset_info.json")]
    found = {path.name: path for path in folders if _VERSION.fullmatch(path.name)}  # the others are incomplete
    if version in found:
        return found[version]
    if found and version is None:
        return found[max(found, key=lambda version: [int(part) for part in version.split(".")])]
    if found:
        raise UserError(f"{path}: no version {version} in {folder}; there is {', '.join(sorted(found))}")
    configs = sorted({info.parent.parent.name for info in folder.glob("*/*/dataset_info.json")})
    hint = f"; name one of its configurations: {', '.join(configs)}" if configs else ""
    raise UserError(f"{path}: no dataset in {folder}{hint}")


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
