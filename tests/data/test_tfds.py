"""TFDS without TensorFlow: what is written is read back, by this program and by TFDS's own functions."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from bertgpt.data.sources.text import clean, facts, read_documents, read_records, resolve, split_of
from bertgpt.data.sources.tfds import open_dataset, read_examples
from bertgpt.data.sources.tfds_writer import write_dataset
from bertgpt.types import UserError

TEXTS = [f"Document {i},\n  of “{i % 7}” words: 三 äöü 🙂." for i in range(300)]
HOW: dict[str, Any] = {"text_field": "text", "strip_html": False, "validation": 0.1, "test": 0.2}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tfds")
    write_dataset(TEXTS, "my_text", path, **HOW)
    return path


def texts(path: str) -> list[str]:
    return [document.text for document in read_documents(path, "text")]


def test_a_written_dataset_gives_back_every_text_in_its_split(data_dir: Path):
    source = f"tfds:my_text?data_dir={data_dir}"
    assert sorted(texts(source)) == sorted(TEXTS)
    for split in ("train", "validation", "test"):
        expected = [text for text in TEXTS if split_of(clean(text, False), 0.1, 0.2) == split]
        assert texts(f"{source}&split={split}") == expected  # in their order
    assert [document.line for document in read_documents(source, "text")] == list(range(1, 301))
    assert len(texts(f"{source}&split=train[:10]")) == 10


def test_tfds_itself_reads_what_is_written(data_dir: Path):
    sources = tfds.builder_from_directory(data_dir / "my_text" / "1.0.0").as_data_source()
    found = [example["text"].decode() for source in sources.values() for example in source]
    assert set(sources) == {"train", "validation", "test"} and sorted(found) == sorted(TEXTS)


PROGRAM = """
import sys
from pathlib import Path

class WithoutTensorFlow:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] == "tensorflow" else self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(WithoutTensorFlow, sys.meta_path)
from bertgpt.data.sources.tfds_writer import write_dataset
from bertgpt.data.sources.text import read_documents
texts = [f"text {i}" for i in range(50)]
write_dataset(texts, "new", Path(sys.argv[1]), text_field="text", strip_html=False, validation=0.0, test=0.0)
assert [d.text for d in read_documents(f"tfds:new?data_dir={sys.argv[1]}", "text")] == texts
assert not [name for name in sys.modules if name.split(".")[0] == "tensorflow"]
"""


def test_all_works_where_tensorflow_is_not_installed(tmp_path: Path):
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_tensorflow_is_not_imported(data_dir: Path):
    program = """
import sys
from bertgpt.data.sources.text import read_documents
print(len(list(read_documents(sys.argv[1], "text"))))
assert "tensorflow" not in sys.modules
"""
    source = f"tfds:my_text?data_dir={data_dir}"
    done = subprocess.run([sys.executable, "-c", program, source], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "300\n"), done.stderr


def test_a_dataset_counts_as_one_file(data_dir: Path):
    source = f"tfds:my_text:1.0.0?split=train&data_dir={data_dir}"
    assert resolve(source) == [source]
    found = facts(source)
    assert found["bytes"] > sum(len(text.encode()) for text in TEXTS)
    assert found["modified"] == (data_dir / "my_text/1.0.0/dataset_info.json").stat().st_mtime_ns


def write_features(
    data_dir: Path,
    features: dict[str, Any],
    examples: list[dict[str, Any]],
    version: str = "1.0.0",
    config: str | None = None,
) -> None:
    """A dataset of TFDS, not by the code under test."""

    class Other(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(version)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []
        code_path = None

        def _info(self):
            kinds = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=kinds, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {"train": enumerate(examples)}

        def _generate_examples(self):
            raise NotImplementedError

    Other(data_dir=data_dir, file_format="array_record").download_and_prepare()


def test_features_become_fields_and_what_is_no_text_is_refused_by_name(tmp_path: Path):
    kinds = {
        "text": tfds.features.Text(),
        "label": tfds.features.ClassLabel(num_classes=3),
        "ids": tfds.features.Sequence(tfds.features.Scalar(np.int64)),
    }
    examples = [{"text": "fine", "label": 2, "ids": [1, 2]}, {"text": b"b\xe4d", "label": 0, "ids": []}]
    write_features(tmp_path, kinds, examples)
    source = f"tfds:other?data_dir={tmp_path}"
    records = read_records(source)
    first = next(records)
    assert first.fields == {"text": "fine", "label": "2"} and list(first.other) == ["ids"]
    with pytest.raises(UserError, match=r"tfds:other.*:2: 'text' is not valid UTF-8 \(byte 0xe4\)"):
        next(records)
    with pytest.raises(UserError, match="tfds:other.*:1: no column 'body'; it has .*'text'.*'ids'"):
        list(read_documents(source, "body"))


def test_the_newest_version_is_taken_unless_one_is_named(tmp_path: Path):
    for version in ("2.0.0", "10.0.0"):
        write_features(tmp_path, {"text": tfds.features.Text()}, [{"text": version}], version=version)
    (tmp_path / "other" / "incomplete.X_11.0.0").mkdir()
    (tmp_path / "other" / "incomplete.X_11.0.0" / "dataset_info.json").write_text("{}")
    assert texts(f"tfds:other?data_dir={tmp_path}") == ["10.0.0"]
    assert texts(f"tfds:other:2.0.0?data_dir={tmp_path}") == ["2.0.0"]
    with pytest.raises(UserError, match="no version 3.0.0 in .*other; there is 10.0.0, 2.0.0"):
        resolve(f"tfds:other:3.0.0?data_dir={tmp_path}")


def test_a_configuration_is_a_part_of_the_name(tmp_path: Path):
    write_features(tmp_path, {"text": tfds.features.Text()}, [{"text": "x"}], config="small")
    assert texts(f"tfds:other/small?data_dir={tmp_path}") == ["x"]
    with pytest.raises(UserError, match="tfds:other.*: no dataset in .*other; name one of its configurations: small"):
        resolve(f"tfds:other?data_dir={tmp_path}")


@pytest.mark.parametrize(
    "source, message",
    [
        ("tfds:", r"tfds:: must read tfds:NAME\[/CONFIG\]"),
        ("tfds:my_text:1", "tfds:my_text:1: must read"),
        ("tfds:my_text?shard=1", "'shard=1' must be split=SPLIT or data_dir=DIR"),
        ("tfds:my_text?split=", "'split=' must be split=SPLIT or data_dir=DIR"),
        ("tfds:none?data_dir=DIR", "tfds:none.*: no dataset in .*none"),
        ("tfds:my_text?split=dev&data_dir=DIR", "no split 'dev'; it has train, validation, test"),
    ],
)
def test_a_source_that_names_nothing_is_refused(data_dir: Path, source: str, message: str):
    for action in (resolve, facts, texts):
        with pytest.raises(UserError, match=message):
            action(
                source.replace("DIR", str(data_dir)) if "data_dir=DIR" in source and "must" not in message else source
            )


@pytest.mark.parametrize("file_format", ["tfrecord", "parquet"])
def test_a_format_that_is_not_array_record_is_refused(data_dir: Path, tmp_path: Path, file_format: str):
    info = json.loads((data_dir / "my_text/1.0.0/dataset_info.json").read_text())
    place = tmp_path / "my_text" / "1.0.0"
    place.mkdir(parents=True)
    (place / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": file_format}))
    (place / "features.json").write_bytes((data_dir / "my_text/1.0.0/features.json").read_bytes())
    with pytest.raises(UserError, match=f"is stored as {file_format}; prepare it with file_format='array_record'"):
        resolve(f"tfds:my_text?data_dir={tmp_path}")


def test_a_dataset_that_is_damaged_or_incomplete_is_refused(tmp_path: Path):
    place = write_dataset(TEXTS, "mine", tmp_path, **HOW | {"validation": 0.0, "test": 0.0})
    source = f"tfds:mine?data_dir={tmp_path}"
    (shard,) = place.glob("*.array_record*")
    whole = shard.read_bytes()
    damaged = bytearray(whole)
    damaged[1000] ^= 0x55
    for content, message in [
        *((whole[:length], "is corrupt or cut short: it has 0 of its 300") for length in (0, 10, 65536, 70000, -1)),
        (bytes(damaged), "cannot be read from here on: .*hash mismatch"),
    ]:
        shard.write_bytes(content)
        with pytest.raises(UserError, match=rf"tfds:mine.*: .*{message}") as caught:
            texts(source)
        assert "\n" not in str(caught.value)
    shard.unlink()
    with pytest.raises(UserError, match="tfds:mine.*: mine-train.array_record-00000-of-00001 is missing"):
        texts(source)
    (place / "dataset_info.json").write_text("{not JSON")
    with pytest.raises(UserError, match="tfds:mine.*: cannot be read"):
        open_dataset(source)


def test_a_bad_source_leaves_nothing_behind(tmp_path: Path):
    (tmp_path / "bad.jsonl").write_text('{"text": "x"}\n{"text": \n')
    data_dir = tmp_path / "tfds"
    for source, name, message in [
        (str(tmp_path / "bad.jsonl"), "bad", "bad.jsonl:2: not valid JSON"),
        ([*TEXTS, {"body": "x"}], "bad", "<items>:301: no column 'text'"),
        (TEXTS[:1], "bad", "bad: split '(train|validation|test)' has no documents"),
        (iter(TEXTS), "bad", "pass a list or a function, not an iterator"),
        (TEXTS, "No-Name", "dataset name 'No-Name' must be lower-case letters, digits and _"),
    ]:
        with pytest.raises(UserError, match=message):
            write_dataset(source, name, data_dir, **HOW)
        assert not data_dir.exists() or not os.listdir(data_dir), message
    with pytest.raises(UserError, match="must be fractions that leave text to train on"):
        write_dataset(TEXTS, "bad", data_dir, **HOW | {"test": 0.95})


def test_an_existing_dataset_is_not_overwritten(data_dir: Path):
    with pytest.raises(UserError, match="my_text/1.0.0: exists already"):
        write_dataset(TEXTS, "my_text", data_dir, **HOW)


def test_examples_are_numbered_across_batches(data_dir: Path):
    numbers = [number for number, _ in read_examples(f"tfds:my_text?data_dir={data_dir}")]
    assert numbers == list(range(1, len(TEXTS) + 1))
