"""Folders of pictures as records: FOLDER/class/…/a.png is a picture of that class."""

import hashlib
import json
import os
import posixpath
from collections.abc import Callable, Iterable, Iterator

from bertgpt.data.images.names import is_picture
from bertgpt.data.images.tars import tar_members
from bertgpt.data.sources.records import Record
from bertgpt.io.files import URL, file_errors, file_system, open_file
from bertgpt.types import JsonObject, UserError

CONTENT_BYTES = 1 << 26  # that are read for a digest


def pictures_in(folder: str) -> dict[str, int]:
    """Path inside the folder → bytes of each picture in it or below it, sorted; hidden files and folders do not count.

    Args:
      folder: a path or a URL.
    """
    with file_errors(folder):
        if URL.match(folder):
            system, inner = file_system(folder)
            start = len(inner.rstrip("/")) + 1
            sizes = {path[start:]: info.get("size") or 0 for path, info in system.find(inner, detail=True).items()}
        else:
            sizes = {os.path.relpath(entry.path, folder): entry.stat().st_size for entry in _files(folder)}
    hidden = {name for name in sizes if any(part.startswith(".") for part in name.split("/"))}
    return {name: sizes[name] for name in sorted(sizes.keys() - hidden) if is_picture(name)}


def folder_facts(folder: str) -> JsonObject:
    """The "bytes" of all pictures, and as "modified" what changes with their names and sizes."""
    sizes = pictures_in(folder)
    listing = hashlib.sha256(json.dumps(sorted(sizes.items())).encode()).hexdigest()
    return {"bytes": sum(sizes.values()), "modified": listing}


def _files(folder: str) -> Iterator[os.DirEntry[str]]:
    for entry in os.scandir(folder):
        if entry.is_dir():
            yield from _files(entry.path)
        elif entry.is_file():
            yield entry


def file_digest(file: str) -> str:
    """SHA-256 of the content of a tar file, or of a folder of folders of pictures that `resolve` names, on disk.

    Beyond CONTENT_BYTES it is that of the names and sizes, in a tar file also of the modification times.
    """
    if file.endswith("/"):
        return pictures_digest(pictures_in(file).items(), lambda name: _read(file + name))
    with file_errors(file), open_file(file) as stream:
        if os.path.getsize(file) <= CONTENT_BYTES:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        total = hashlib.sha256()
        for _, member in tar_members(file, stream):
            total.update(json.dumps([member.name, member.size, member.mtime]).encode())
        return total.hexdigest()


def pictures_digest(sizes: Iterable[tuple[str, int | None]], read: Callable[[str], bytes]) -> str:
    """SHA-256 of names and sizes of pictures, and of their contents unless these are large or a size is not known.

    Args:
      sizes: name → bytes, in order.
      read: name → content.
    """
    listed = list(sizes)
    whole = sum(CONTENT_BYTES + 1 if size is None else size for _, size in listed) <= CONTENT_BYTES
    total = hashlib.sha256()
    for name, size in listed:
        total.update(json.dumps([name, size]).encode())
        if whole:
            total.update(read(name))
    return total.hexdigest()


def _read(path: str) -> bytes:
    with open_file(path) as stream:
        return stream.read()


def read_folder(folder: str) -> Iterator[Record]:
    """A record of each picture, sorted by path: "image", the path inside the folder, and "label", the class.

    Raises:
      UserError: a picture lies outside of the folders of the classes.
    """
    for number, name in enumerate(pictures_in(folder), start=1):
        label, _, inner = name.partition("/")
        if not inner:
            raise UserError(f"{posixpath.join(folder, name)}: lies in no folder that says its class")
        yield Record({"image": name, "label": label}, folder, number)
