"""Files: what a path names, here and elsewhere; a file that is damaged or cut short is never passed off as whole."""

import gzip
import io
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest
import zstandard
from pyarrow import parquet

from bertgpt.data.sources.files import facts, resolve, suffix_of
from bertgpt.data.sources.text import read_documents
from bertgpt.io.files import open_file
from bertgpt.types import UserError


@pytest.fixture
def memory():
    """The file system of memory:// URLs, empty."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def contents(count: int, seed: int = 0) -> list[str]:
    """Documents that hardly compress, so that a cut falls inside them."""
    rng = random.Random(seed)
    return [rng.randbytes(40).hex() for _ in range(count)]


def texts(path: Path | str) -> list[str]:
    return [document.text for document in read_documents(str(path), "text")]


ZSTD = zstandard.ZstdCompressor(write_checksum=True)
LINES = [(json.dumps({"text": text}) + "\n").encode() for text in contents(60)]
PARAGRAPHS = "\n\n".join(contents(60)).encode()


def parquet_bytes() -> bytes:
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table({"text": contents(60)}), sink, row_group_size=20, write_page_checksum=True)
    return sink.getvalue().to_pybytes()


# Files that are not whole at any length but their own and, of those in two parts, that of the first.
WHOLE = {
    "a.txt.gz": (gzip.compress(PARAGRAPHS),),
    "a.jsonl.gz": (gzip.compress(b"".join(LINES[:20])), gzip.compress(b"".join(LINES[20:]))),
    "a.txt.zst": (ZSTD.compress(PARAGRAPHS),),
    "a.jsonl.zst": (ZSTD.compress(b"".join(LINES[:20])), ZSTD.compress(b"".join(LINES[20:]))),
    "a.parquet": (parquet_bytes(),),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_file_cut_at_any_length_is_refused_by_name(tmp_path: Path, name: str):
    path, whole = tmp_path / name, b"".join(WHOLE[name])
    path.write_bytes(whole)
    assert texts(path) == contents(60)
    lengths = {*range(0, 30), *range(30, len(whole), 41), *range(len(whole) - 30, len(whole))}
    boundary = len(WHOLE[name][0])
    for length in sorted({*lengths, boundary - 1, boundary + 1, boundary + 3} - {boundary}):
        path.write_bytes(whole[:length])
        if length < len(whole):
            with pytest.raises(UserError, match=name) as caught:
                texts(path)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.zst", "a.jsonl.zst"])
def test_a_damaged_byte_never_changes_the_text_in_silence(tmp_path: Path, name: str):
    path, whole = tmp_path / name, b"".join(WHOLE[name])
    refused = 0
    for place in {*range(20), *range(20, len(whole), 53), *range(len(whole) - 9, len(whole))}:
        damaged = bytearray(whole)
        damaged[place] ^= 0x55
        path.write_bytes(damaged)
        try:
            assert texts(path) == contents(60), place
        except UserError as error:
            assert name in str(error)
            refused += 1
    assert refused > 50


def test_damaged_pages_of_parquet_are_refused(tmp_path: Path):
    path, whole = tmp_path / "a.parquet", WHOLE["a.parquet"][0]
    for text in contents(60)[::7]:
        path.write_bytes(whole.replace(text.encode(), text[::-1].encode()))
        assert path.read_bytes() != whole
        with pytest.raises(UserError, match="a.parquet: is not a Parquet file, corrupt or cut short: .*CRC"):
            texts(path)


def test_all_frames_of_a_zst_file_are_read_also_empty_and_skippable_ones(tmp_path: Path):
    skippable = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"hello"  # as pzstd writes them
    frames = [ZSTD.compress(b"one\n\n"), skippable, ZSTD.compress(b""), ZSTD.compress(b"two\n")]
    (tmp_path / "a.txt.zst").write_bytes(b"".join(frames))
    assert texts(tmp_path / "a.txt.zst") == ["one", "two"]


def test_a_zst_file_is_unfolded_as_it_is_read(tmp_path: Path):
    """The whole is 64 MB, and the first line comes before most of it is read."""
    compressor = zstandard.ZstdCompressor().compressobj()
    noise = random.Random(0).randbytes(1 << 20)
    with open(tmp_path / "a.txt.zst", "wb") as file:
        file.write(compressor.compress(b"first\n"))
        for _ in range(64):
            file.write(compressor.compress(noise.hex().encode()[: 1 << 20] + b"\n"))
        file.write(compressor.flush())
    raw_size = (tmp_path / "a.txt.zst").stat().st_size
    with open_file(str(tmp_path / "a.txt.zst")) as file:
        assert file.readline() == b"first\n"
        assert file.raw._file.tell() < raw_size / 2  # the file below


def test_an_archive_that_is_none_is_refused(tmp_path: Path):
    for name in ("a.txt.gz", "a.txt.zst"):
        (tmp_path / name).write_bytes(b"plain text under a wrong name\n")
        with pytest.raises(UserError, match=f"{name}: is corrupt or cut short"):
            texts(tmp_path / name)


def test_what_cannot_be_opened_is_refused_by_name(tmp_path: Path):
    (tmp_path / "a.txt").mkdir()
    gone = "gone.txt: cannot be read: No such file or directory"
    with pytest.raises(UserError, match=gone):
        facts(str(tmp_path / "gone.txt"))
    with pytest.raises(UserError, match=gone), open_file(str(tmp_path / "gone.txt")):
        pass
    with pytest.raises(UserError, match="a.txt: cannot be read: Is a directory"), open_file(str(tmp_path / "a.txt")):
        pass


def test_missing_files_directories_and_packages_are_refused(tmp_path: Path):
    for path, message in [
        (str(tmp_path / "no.txt"), "no.txt: no such file or directory"),
        (str(tmp_path / "*.csv"), "no such file or directory"),
        (str(tmp_path), "no file in this directory ends in .txt, .jsonl"),
        ("package:no_such_package/x.csv", "package 'no_such_package' is not installed; pip install no_such_package"),
        ("package:json/x.csv", "package:json/x.csv: no such file or directory"),
    ]:
        with pytest.raises(UserError, match=message):
            resolve(path)


NAMES = ["b.txt", "a.CSV", "deep/er/c.jsonl.zst", "deep/d.parquet"]


def test_a_directory_or_pattern_names_its_readable_files_in_order(tmp_path: Path):
    for name in [*NAMES, "deep/notes.md", "archive.tar.gz"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert resolve(str(tmp_path)) == sorted(str(tmp_path / name) for name in NAMES)
    assert resolve(str(tmp_path / "*.txt")) == [str(tmp_path / "b.txt")]
    assert resolve(str(tmp_path / "**" / "d.*")) == [str(tmp_path / "deep/d.parquet")]


def test_a_url_names_the_same_files_as_a_path(memory: Any):
    for name in [*NAMES, "deep/notes.md"]:
        memory.pipe(f"/set/{name}", b"x")
    assert resolve("memory://set") == sorted(f"memory:///set/{name}" for name in NAMES)
    assert resolve("memory://set/*.txt") == ["memory:///set/b.txt"]
    assert resolve("memory:///set/b.txt") == ["memory:///set/b.txt"]
    for url in ("memory://set/none.txt", "memory://set/*.tsv"):
        with pytest.raises(UserError, match="no such file or directory"):
            resolve(url)


@pytest.mark.parametrize("name", WHOLE)
def test_a_remote_file_is_read_as_a_local_one(memory: Any, name: str):
    whole = b"".join(WHOLE[name])
    memory.pipe(f"/set/{name}", whole)
    assert texts(f"memory://set/{name}") == texts("memory://set") == contents(60)
    memory.pipe(f"/set/{name}", whole[:-40])
    with pytest.raises(UserError, match=f"memory://.*{name}"):
        texts("memory://set")


def test_facts_change_with_the_file(tmp_path: Path, memory: Any):
    path = tmp_path / "a.txt"
    path.write_text("text")
    os.utime(path, ns=(10**18, 10**18))
    assert facts(str(path)) == {"bytes": 4, "modified": 10**18}
    memory.pipe("/a.txt", b"text")
    before = facts("memory://a.txt")
    assert before["bytes"] == 4 and json.loads(json.dumps(before)) == before
    memory.pipe("/a.txt", b"tent")
    assert facts("memory://a.txt")["bytes"] == 4 and facts("memory://a.txt") != before
    with pytest.raises(UserError, match="memory://gone.txt: cannot be read"):
        facts("memory://gone.txt")


def test_what_a_remote_file_needs_is_named(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match="nope://x/a.txt: Protocol not known: nope"):
        resolve("nope://x/a.txt")
    with monkeypatch.context() as patch:
        patch.setattr("fsspec.core.get_filesystem_class", raise_(ImportError("Install s3fs to access S3")))
        with pytest.raises(UserError, match="s3://b/a.txt: the driver .* not installed: Install s3fs to access S3"):
            resolve("s3://b/a.txt")
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(UserError, match=r"s3://b/a.txt: fsspec is not installed; pip install 'bertgpt\[text\]'"):
        resolve("s3://b/a.txt")


def raise_(error: Exception):
    def raiser(*_, **__):
        raise error

    return raiser


def test_what_a_driver_raises_names_the_url(memory: Any, monkeypatch: pytest.MonkeyPatch):
    memory.pipe("/a.txt", b"text")
    monkeypatch.setattr(type(memory), "_open", raise_(RuntimeError("the network\nis down")))
    with pytest.raises(UserError, match="memory://a.txt: cannot be read: RuntimeError: the network is down"):
        texts("memory://a.txt")


@pytest.mark.parametrize(
    "name, ranges, streamed", [("a.txt", True, False), ("a.txt", None, True), ("a.parquet", None, False)]
)
def test_an_http_server_without_ranges_is_asked_for_one_stream(
    monkeypatch: pytest.MonkeyPatch, name: str, ranges: bool | None, streamed: bool
):
    class Server:
        def info(self, path):
            return {"name": path, "partial": ranges}

        def open(self, path, mode, block_size):
            assert (block_size == 0) == streamed
            return io.BytesIO(b"content")

    monkeypatch.setattr("bertgpt.io.files.file_system", lambda url: (Server(), url))
    with open_file(f"https://host/{name}") as file:
        assert file.read() == b"content"


def test_the_suffix_tells_the_format():
    for path, suffix in [
        ("a/b.CSV", ".csv"),
        ("a.b/c.txt.gz", ".txt"),
        ("gs://b/c.jsonl.zst", ".jsonl"),
        ("https://host/A.TSV.GZ?key=a.txt", ".tsv"),
        ("tfds:name?data_dir=a.txt", ""),
        ("noext", ""),
    ]:
        assert suffix_of(path) == suffix
