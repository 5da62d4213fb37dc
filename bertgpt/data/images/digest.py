"""Digests of pictures, so that a resumed run notices that they have changed.

Up to CONTENT_BYTES of pictures in all, the digest is that of their content. Of larger sets, and at URLs, it is that of
their names and sizes, for which no picture is read: another picture almost always has another size. Modification times
of files do not count, because copies of a dataset have others.
"""

import hashlib
import json
import os
from collections.abc import Iterable

from bertgpt.data.images.folders import pictures_in
from bertgpt.data.images.reading import ImageReference, frame_references, is_tar, read_content, tar_index, tar_members
from bertgpt.data.sources.files import facts
from bertgpt.io.files import URL, file_errors, open_file

CONTENT_BYTES = 1 << 28


def image_digest(references: Iterable[ImageReference]) -> str:
    """SHA-256 of all these pictures, each counted once, whatever their order."""
    unique = {
        each._replace(where="") for reference in references for each in frame_references(reference) or [reference]
    }
    pictures = sorted(unique)
    sizes = [_size(picture) for picture in pictures]
    folder = _common(sorted({picture.file for picture in pictures}))
    known = all(size is not None for size in sizes) and not any(URL.match(picture.file) for picture in pictures)
    whole = known and sum(size or 0 for size in sizes) <= CONTENT_BYTES
    total = hashlib.sha256()
    for picture, size in zip(pictures, sizes, strict=True):
        total.update(json.dumps([picture.file.removeprefix(folder), picture.member, size]).encode())
        if whole:
            content = read_content(picture)
            total.update(content if isinstance(content, bytes) else content.tobytes())
    return total.hexdigest()


def file_digest(file: str) -> str:
    """SHA-256 of a tar file, or of the folder of folders of pictures, on disk, that `resolve` names.

    Of a large tar file it is that of the names, sizes and modification times in it.
    """
    if file.endswith("/"):
        return image_digest(ImageReference(file + name) for name in pictures_in(file))
    with file_errors(file), open_file(file) as stream:
        if facts(file)["bytes"] <= CONTENT_BYTES:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        total = hashlib.sha256()
        for _, member in tar_members(file, stream):
            total.update(json.dumps([member.name, member.size, member.mtime]).encode())
        return total.hexdigest()


def _size(picture: ImageReference) -> int | None:
    """Bytes of an encoded picture; None where that is not known without reading it."""
    if picture.file.startswith("tfds:") or (URL.match(picture.file) and not picture.member):
        return None
    if picture.member:
        return tar_index(picture.file)[picture.member][1] if is_tar(picture.file) else None
    with file_errors(picture.name):
        return int(facts(picture.file)["bytes"])


def _common(files: list[str]) -> str:
    """The folder that all files lie in."""
    return os.path.commonprefix([os.path.dirname(file) for file in files])
