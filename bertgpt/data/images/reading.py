"""Where pictures lie, and how they are read: files, URLs, members of tar files, folders of frames."""

import functools
import io
import os
import posixpath
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bertgpt.data.images.decode import count_frames as count_encoded
from bertgpt.data.images.decode import decode, from_array, sampled
from bertgpt.data.images.names import is_picture, natural
from bertgpt.data.images.tars import is_tar, member_name, tar_members
from bertgpt.data.sources.files import facts, inside_package
from bertgpt.data.sources.records import Record, texts_of
from bertgpt.io.files import URL, file_errors, file_system, open_file
from bertgpt.types import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_BYTES = 1 << 30  # of an encoded picture
TARS = 64  # indices and open files that are kept


class ImageReference(NamedTuple):
    """Names one picture or video."""

    file: str
    """a picture, a folder of frames, a tar file or a dataset of TFDS; a path or a URL"""
    member: str = ""
    """the picture, or the folder of frames, inside of a tar file or dataset"""
    where: str = ""
    """file:line of the record that names it, for errors"""

    @property
    def name(self) -> str:
        """What errors call it."""
        return ": ".join(filter(None, (self.where, self.file, self.member)))


ImageSource = ImageReference | str | os.PathLike[str] | bytes | np.ndarray


def references_of(record: Record, name: str, root: str | None = None) -> tuple[ImageReference, ...]:
    """The pictures that a field of a record names: one, or several in a list.

    URLs and absolute paths stand for themselves. Others are inside of `root`; without one, inside of the tar file or
    dataset that the record is from, else beside its file.

    Args:
      record: of any file.
      name: the field, a text or a list of texts.
      root: a folder or a tar file, as a path, a URL or package:module/inner/path.

    Raises:
      UserError: the record has no such field, or it is empty.
    """
    where, values = f"{record.file}:{record.line}", texts_of(record, name)
    if not values or not all(value.strip() for value in values):
        raise UserError(f"{where}: {name!r} names no picture")
    return tuple(locate(value, record.file, root, where) for value in values)


def locate(value: str, file: str, root: str | None = None, where: str = "") -> ImageReference:
    """The picture that a record of `file` calls `value`: see `references_of`."""
    if URL.match(value) or os.path.isabs(value):
        return ImageReference(value, where=where)
    if root is not None:
        root = inside_package(root) if root.startswith("package:") else root
        return ImageReference(*_inside(root, value), where)
    if file.startswith("tfds:") or is_tar(file):
        return ImageReference(*_inside(file, value), where)
    # New records, which no file holds, name pictures by their paths from here.
    folder = posixpath.dirname(file) if URL.match(file) else os.path.dirname(file)
    return ImageReference(*_inside(folder, value), where)


def _inside(root: str, value: str) -> tuple[str, str]:
    if root.startswith("tfds:") or is_tar(root):
        return root, member_name(value)
    return (f"{root.rstrip('/')}/{value}" if URL.match(root) else os.path.join(root, value)), ""


def source_name(source: ImageSource) -> str:
    """What errors call a source."""
    if isinstance(source, ImageReference):
        return source.name
    return "image" if isinstance(source, bytes | np.ndarray) else os.fspath(source)


def open_image(source: ImageSource) -> "Image":
    """One picture as an RGB image of Pillow; the first frame of an animated one.

    Raises:
      UserError: it is missing, or no picture that can be decoded whole. The message names file and member, and the
        record if the source is a reference from one.
    """
    images, _ = read_frames(source, 1)
    return images[0]


def read_frames(source: ImageSource, frames: int) -> tuple["list[Image]", int]:
    """The frames of a picture or video.

    Args:
      source: path or URL of a picture or folder of frames, a reference, an encoded picture, or an array of pixels.
      frames: how many: see `bertgpt.data.images.decode.sampled`. A still image gives one.

    Returns:
      (RGB images, number of frames to choose from).

    Raises:
      UserError: as `open_image`.
    """
    name = source_name(source)
    if isinstance(source, bytes):
        return decode(source, name, frames)
    if isinstance(source, np.ndarray):
        return _some(from_array(source, name), frames)
    reference = source if isinstance(source, ImageReference) else ImageReference(os.fspath(source))
    if parts := frame_references(reference):
        chosen = sampled(len(parts), frames)
        opened = {int(index): open_image(parts[index]) for index in np.unique(chosen)}
        return [opened[int(index)] for index in chosen], len(parts)
    content = read_content(reference)
    return decode(content, name, frames) if isinstance(content, bytes) else _some(from_array(content, name), frames)


def count_frames(references: Sequence[ImageReference]) -> int:
    """The number of frames to choose from of an example, without decoding them."""
    if len(references) > 1:
        return len(references)
    if parts := frame_references(references[0]):
        return len(parts)
    content = read_content(references[0])
    if isinstance(content, bytes):
        return count_encoded(content, references[0].name)
    return len(content) if content.ndim == 4 else 1


def _some(images: "list[Image]", frames: int) -> tuple["list[Image]", int]:
    """The chosen ones of all frames, and their number."""
    if len(images) == 1:
        return images, 1
    return [images[index] for index in sampled(len(images), frames)], len(images)


def frame_references(reference: ImageReference) -> list[ImageReference]:
    """The pictures in a folder of frames, on disk or in a tar file, in the order of the numbers in their names; [] if
    the reference is no folder.

    Raises:
      UserError: the folder has no pictures.
    """
    if reference.member:
        if not is_tar(reference.file) or reference.member in (index := tar_index(reference.file)):
            return []
        folder = reference.member.rstrip("/") + "/"
        names = [name for name in index if name.startswith(folder) and "/" not in name[len(folder) :]]
        return [reference._replace(member=name) for name in sorted(filter(is_picture, names), key=natural)]
    if URL.match(reference.file) or not os.path.isdir(reference.file):
        return []
    with file_errors(reference.name):
        names = sorted(filter(is_picture, os.listdir(reference.file)), key=natural)
    if not names:
        raise UserError(f"{reference.name}: is a folder without pictures")
    return [reference._replace(file=os.path.join(reference.file, name)) for name in names]


# -- bytes ------------------------------------------------------------------------------------------------------------


def read_content(reference: ImageReference) -> bytes | np.ndarray:
    """The encoded picture. Of a dataset of TFDS whose features are arrays it is that array.

    Raises:
      UserError: it is missing or cannot be read.
    """
    try:
        return _read(reference)
    except UserError as error:
        text = str(error)
        raise UserError(text if reference.where in text else f"{reference.where}: {text}") from None


def _read(reference: ImageReference) -> bytes | np.ndarray:
    if reference.file.startswith("tfds:"):
        from bertgpt.data.images.tfds import read_feature

        return read_feature(reference.file, reference.member, reference.name)
    if not reference.member:
        if not URL.match(reference.file) and os.path.isdir(reference.file):
            raise UserError(f"{reference.name}: is a folder, not a picture")
        with file_errors(reference.name), open_file(reference.file) as stream:
            # With a limit, `read` of a local file would first make room for as much.
            content = stream.read(MAX_BYTES + 1) if URL.match(reference.file) else _read_local(stream, reference)
        _check_size(len(content), reference)
        return content
    entry = tar_index(reference.file).get(reference.member)
    if entry is None:
        raise UserError(f"{reference.name}: no such member of the tar file")
    offset, size = entry
    _check_size(size, reference)
    with file_errors(reference.name):
        if URL.match(reference.file):
            system, inner = file_system(reference.file)
            content = system.cat_file(inner, start=offset, end=offset + size)
        else:
            content = os.pread(_open_tar(reference.file, *facts(reference.file).values()).fileno(), size, offset)
    if len(content) < size:
        raise UserError(f"{reference.name}: the tar file is cut short: {len(content):,} of {size:,} bytes are there")
    return content


def _read_local(stream: io.BufferedIOBase, reference: ImageReference) -> bytes:
    _check_size(os.fstat(stream.fileno()).st_size, reference)
    return stream.read()


def _check_size(size: int, reference: ImageReference) -> None:
    if size > MAX_BYTES:
        raise UserError(f"{reference.name}: is larger than {MAX_BYTES:,} bytes, the limit")


def check_exists(reference: ImageReference) -> None:
    """Raises UserError if a picture is missing. Those at URLs are only noticed when they are read."""
    if reference.file.startswith("tfds:") or (URL.match(reference.file) and not reference.member):
        return
    if not reference.member:
        if not os.path.exists(reference.file):
            raise UserError(f"{reference.name}: no such picture")
    elif reference.member not in tar_index(reference.file) and not frame_references(reference):
        raise UserError(f"{reference.name}: no such member of the tar file")


# -- tar files --------------------------------------------------------------------------------------------------------


def tar_index(path: str) -> dict[str, tuple[int, int]]:
    """Name → (offset, size) of each file in a tar file, found once in a process unless the file changes.

    Of a name that occurs several times the last file counts, as when the files are extracted.

    Raises:
      UserError: it cannot be read, or is damaged.
    """
    return _tar_index(path, *facts(path).values())


@functools.lru_cache(maxsize=TARS)
def _tar_index(path: str, size: int | None, modified: int | str | None) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    with file_errors(path), open_file(path) as stream:
        for _, member in tar_members(path, stream):
            target = found.get(member_name(member.linkname)) if member.islnk() else (member.offset_data, member.size)
            if target is not None:
                found[member_name(member.name)] = target
    return found


@functools.lru_cache(maxsize=TARS)
def _open_tar(path: str, size: int | None, modified: int | str | None) -> io.FileIO:
    return open(path, "rb", buffering=0)
