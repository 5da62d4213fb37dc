"""Directories that appear whole: written beside their place under a hidden name, then renamed.

Nothing is removed that this program did not make.
"""

import contextlib
import ctypes
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from bertgpt.io.files import CannotWrite, check_local, partial_path, remove_tree
from bertgpt.types import UserError


def make_directory(path: Path) -> None:
    """Creates a folder and those above it; nothing happens if it is there.

    Raises:
      UserError: the path is a URL, a file or a link to nothing, or (CannotWrite) cannot be created.
    """
    check_local(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        found = Path(error.filename or path)
        if isinstance(error, FileExistsError):
            kind = "is a link to a folder that is missing" if found.is_symlink() else "exists and is not a directory"
            raise CannotWrite(f"{found}: {kind}") from None
        raise CannotWrite(f"{found}: cannot be created: {error.strerror}") from None


def remove_partials(directory: Path, names: Collection[str]) -> None:
    """Removes what processes that were killed have left of files and folders of these names (see `partial_path`).

    No process may be writing them: hold a lock.
    """
    left = re.compile(rf"\.({'|'.join(map(re.escape, names))})\.\d+-[0-9a-f]{{8}}\.partial")
    for entry in directory.iterdir():
        if left.fullmatch(entry.name):
            remove_tree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


@contextlib.contextmanager
def new_directory(directory: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `directory` when the block ends and vanishes if the block fails.

    Raises:
      UserError: the directory exists and is not empty, or (CannotWrite) cannot be written.
    """
    directory = _target(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory}: exists already; name a new directory")
    with _partial_directory(directory) as partial:
        yield partial
        if directory.exists():
            directory.rmdir()  # which fails unless it is empty
        os.replace(partial, directory)


@contextlib.contextmanager
def replace_directory(directory: Path, owned: Collection[str]) -> Iterator[Path]:
    """Like `new_directory`, but a directory that holds only files named in `owned` is replaced, in one step.

    Of the old directory only these files are removed. A symbolic link stays, and what it points to is replaced.

    Raises:
      UserError: the directory holds anything else, is the working directory, or (CannotWrite) cannot be written.
    """
    directory = check_replaceable(directory, owned)
    with _partial_directory(directory) as partial:
        yield partial
        if not os.path.lexists(directory):
            os.rename(partial, directory)
            return
        _exchange(partial, directory)
        old = partial_path(directory)
        os.rename(partial, old)
        try:
            check_replaceable(old, owned)
        except UserError:  # something was put there in the meantime
            _exchange(old, directory)
            os.rename(old, partial)
            check_replaceable(directory, owned)
        else:
            for name in owned:
                (old / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                old.rmdir()  # which fails unless it is empty


def check_replaceable(directory: Path, owned: Collection[str]) -> Path:
    """The absolute path of a directory that is missing, or holds only regular files named in `owned`.

    Raises:
      UserError: it holds anything else, or is the working directory or one above it.
    """
    target = _target(directory)
    if os.path.lexists(target):
        if not target.is_dir():
            raise UserError(f"{directory}: exists and is not a directory")
        foreign = sorted(entry.name for entry in os.scandir(target) if not _is_owned(entry, owned))
        if foreign:
            raise UserError(f"{directory}: exists already and holds {foreign[0]}; name a new directory")
    return target


def _target(directory: Path) -> Path:
    """The absolute path of a directory to write: not the working directory or one above it, which cannot be renamed."""
    check_local(directory)
    target = directory.resolve()
    if Path.cwd().is_relative_to(target):
        raise UserError(f"{directory}: is the working directory or one above it; name a new directory")
    return target


def _is_owned(entry: os.DirEntry, owned: Collection[str]) -> bool:
    return entry.name in owned and entry.is_file(follow_symlinks=False)


def _exchange(first: Path, second: Path) -> None:
    """Swaps two directories: in one step where the system can, otherwise by three renames."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2  # Linux
        here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        if rename(here, os.fsencode(first), here, os.fsencode(second), swap) == 0:
            return
    except (AttributeError, OSError, TypeError):
        pass
    aside = partial_path(second)
    os.rename(second, aside)
    os.rename(first, second)
    os.rename(aside, first)


@contextlib.contextmanager
def _partial_directory(directory: Path) -> Iterator[Path]:
    partial = partial_path(directory)
    try:
        partial.mkdir(parents=True)
        yield partial
    except OSError as error:
        raise CannotWrite(f"{directory}: cannot be written: {error.strerror}") from None
    finally:
        remove_tree(partial)
