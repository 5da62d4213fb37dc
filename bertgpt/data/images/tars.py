"""Members of tar files."""

import io
import posixpath
import tarfile
from collections.abc import Iterator

from bertgpt.types import UserError


def is_tar(path: str) -> bool:
    """Whether a path names a tar file."""
    if path.lower().endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")):
        raise UserError(f"{path}: pictures cannot be found in a compressed tar file; decompress it: they are already")
    return path.lower().endswith(".tar")


def member_name(name: str) -> str:
    """The path inside a tar file without ./ and the like."""
    return posixpath.normpath(name)


def tar_members(path: str, stream: io.BufferedIOBase) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """The files and hard links in a tar file, one after another, each with the open file.

    Raises:
      UserError: it is no tar file, damaged, cut short, or has a sparse file.
    """
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            while (member := tar.next()) is not None:
                if member.issparse():
                    raise UserError(f"{path}: {member.name}: is stored as a sparse file; pack it without --sparse")
                if member.isfile() or member.islnk():
                    yield tar, member
                tar.members = []  # it would keep them all
            stream.seek(tar.offset)
            if not stream.read(1):  # a tar file ends with blocks of zeros
                raise UserError(f"{path}: is cut short: the mark of its end is missing")
    except tarfile.TarError as error:
        raise UserError(f"{path}: is no tar file, damaged or cut short: {error}") from None
