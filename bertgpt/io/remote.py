"""Folders of object stores (gs://, s3://) and their local copies: what is listed, uploaded, downloaded and removed.

An object appears whole or not at all, and what was written is read at once; there are no directories, no renames and no
appending. Whoever needs several files to appear together writes the one that names the others last.
Errors that may pass are tried again (`io.retry`); others are one line.
"""

import concurrent.futures
import contextlib
import errno
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from bertgpt.io import retry
from bertgpt.io.directories import make_directory
from bertgpt.io.files import file_system, one_line, partial_path, read_json_object, write_json
from bertgpt.io.locks import lock
from bertgpt.io.paths import SCHEMES, local_path, url_of
from bertgpt.io.retry import CannotWrite, CannotWriteNow
from bertgpt.types import UserError

Result = TypeVar("Result")
TRANSFERS = 8  # files at a time
RECORD = ".remote.json"
"""in a local copy: name → [version at the URL, size, modification time of the local file], of files that are equal"""
LOCK = ".remote.lock"
MISSING_ACCESS = ("Credentials", "Refresh", "Profile", "ParamValidation")  # in names of errors of drivers


class RemoteError(CannotWrite):
    """A store cannot be read or written: it has no such bucket, or credentials are missing."""


class RemoteErrorNow(RemoteError, CannotWriteNow):
    """The store does not answer."""


class RemoteDirectory:
    """A folder of an object store, and the local copy of it.

    Names are paths inside it, with slashes. Those with a part that begins with a dot are not files of the folder: half
    written files and locks.
    """

    def __init__(self, path: str | os.PathLike[str]):
        """`path` is a URL, or the path of its local copy.

        Raises:
          UserError: it is no URL of an object store, or the driver is not installed.
        """
        url = url_of(path)
        if url is None:
            raise UserError(f"{path}: is no URL of an object store")
        self.url, self.local = url, local_path(path)
        self._system, self._root = _driver(url)

    def files(self, under: str = "") -> dict[str, str]:
        """Name → version of all files, or of those in an inner folder. A version changes with the content."""
        root = f"{self._root}/{under}".rstrip("/")
        found = self._try(lambda: self._system.find(root, detail=True), self.url, missing={})
        start = len(self._root) + 1
        names = {path[start:]: _version(info) for path, info in found.items() if info.get("type") != "directory"}
        return {name: version for name, version in sorted(names.items()) if _is_visible(name)}

    def has_files(self) -> bool:
        """Whether there is a file directly in it, not only in inner folders."""
        return bool(self._try(lambda: self._system.find(self._root, maxdepth=1), self.url, missing=()))

    def read(self, name: str) -> bytes | None:
        """The content of a small file; None if it is missing."""
        return self._try(lambda: self._system.cat_file(f"{self._root}/{name}"), f"{self.url}/{name}", missing=None)

    def write(self, name: str, content: bytes) -> None:
        """Writes a small file."""
        path = f"{self._root}/{name}"
        self._try(lambda: self._system.pipe_file(path, content), f"{self.url}/{name}")

    def create(self, name: str, content: bytes) -> bool:
        """Writes a file unless it exists, in one step where the store can (S3 and GCS); returns whether it did."""
        path = f"{self._root}/{name}"
        if self.read(name) is not None:  # some emulators write it in any case
            return False
        try:
            self._try(lambda: self._system.pipe_file(path, content, mode="create"), f"{self.url}/{name}")
        except FileExistsError:
            return False
        return self.read(name) == content

    def remove(self, names: Iterable[str]) -> None:
        """Removes files; no error if they are not there."""

        def remove_one(name: str) -> None:
            path = f"{self._root}/{name}"
            self._try(lambda: self._system.rm_file(path), f"{self.url}/{name}", missing=None)

        _all(remove_one, names)

    # -- the local copy -----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other threads and processes of this machine from moving files of this folder during the block."""
        make_directory(self.local)
        with lock(self.local / LOCK, f"{self.url}: another process is moving its files", wait=True):
            yield

    def record(self) -> dict[str, list[Any]]:
        """What is known of files that are equal here and there; {} if nothing is."""
        try:
            return read_json_object(self.local / RECORD)
        except UserError:
            return {}

    def save_record(self, record: Mapping[str, list[Any]]) -> None:
        write_json(self.local / RECORD, dict(record))

    def pull(self, later: Callable[[str], bool]) -> dict[str, str]:
        """Makes the local copy equal to the folder, whatever was there. Hold `locked`.

        Args:
          later: names of files that are not downloaded until `fetch` asks for them. Old versions of them are removed.

        Returns:
          Name → version of all files of the folder.
        """
        there, known, record = self.files(), self.record(), {}
        here = dict(self.local_files())
        for name in sorted(here.keys() - there.keys()):
            (self.local / name).unlink(missing_ok=True)
        wanted = []
        for name, version in there.items():
            if name in here and known.get(name) == [version, *here[name]]:
                record[name] = known[name]
            elif later(name):
                (self.local / name).unlink(missing_ok=True)
            else:
                wanted.append(name)
        self.save_record(record)
        self._download(wanted, there, record)
        self.save_record(record)
        _remove_empty(self.local)
        return there

    def fetch(self, names: Iterable[str]) -> bool:
        """Downloads those of these files that the local copy lacks; returns whether all are there now."""
        if not (missing := [name for name in names if not (self.local / name).exists()]):
            return True
        with self.locked():
            missing = [name for name in missing if not (self.local / name).exists()]
            record, there = self.record(), self.files(os.path.commonpath([os.path.dirname(name) for name in missing]))
            found = [name for name in missing if name in there]
            self._download(found, there, record)
            self.save_record(record)
        return all((self.local / name).exists() for name in missing)

    def upload(self, names: Iterable[str], record: dict[str, list[Any]]) -> None:
        """Uploads files of the local copy, and records them. One that vanishes meanwhile is left out."""

        def upload_one(name: str) -> None:
            path, file = f"{self._root}/{name}", self.local / name
            try:
                before = _stamp(file)
                self._try(lambda: self._system.put_file(os.fspath(file), path), f"{self.url}/{name}")
            except (FileNotFoundError, RemoteError):
                if file.exists():
                    raise
                return
            version = _version(self._try(lambda: self._system.info(path), f"{self.url}/{name}"))
            record[name] = [version, *before]

        _all(upload_one, names)

    def changed(self, record: Mapping[str, list[Any]]) -> tuple[list[str], list[str]]:
        """(files of the local copy that differ from what is recorded, recorded files that the local copy lacks)."""
        here = dict(self.local_files())
        differing = [name for name, stamp in here.items() if record.get(name, [None])[1:] != stamp]
        return differing, [name for name in record if name not in here]

    def local_files(self) -> Iterator[tuple[str, list[int]]]:
        """(name, [size, modification time]) of the files of the local copy."""
        for folder, inner, files in os.walk(self.local):
            inner[:] = [name for name in inner if not name.startswith(".")]
            for file in files:
                path = Path(folder, file)
                with contextlib.suppress(FileNotFoundError):
                    if not file.startswith(".") and path.is_file():
                        yield path.relative_to(self.local).as_posix(), _stamp(path)

    def _download(self, names: Iterable[str], there: Mapping[str, str], record: dict[str, list[Any]]) -> None:
        def download_one(name: str) -> None:
            file = self.local / name
            make_directory(file.parent)
            partial = partial_path(file)
            try:
                with _local_errors(file):
                    source = f"{self._root}/{name}"
                    # A file that has been removed since it was listed is missing, not an error.
                    found = self._try(
                        lambda: self._system.get_file(source, os.fspath(partial)) or True,
                        f"{self.url}/{name}",
                        missing=False,
                    )
                    if found:
                        os.replace(partial, file)
                        record[name] = [there[name], *_stamp(file)]
            finally:
                partial.unlink(missing_ok=True)

        _all(download_one, names)

    def _try(self, call: Callable[[], Result], what: str, **missing: Result) -> Result:
        """The result of a call of the driver, repeated while it may succeed; `missing` is returned if there is no file.

        Raises:
          FileExistsError: of `create`.
          RemoteError: anything else that failed. Without `missing`, the bucket is what cannot be found.
        """
        try:
            return retry.with_retries(call, what, _may_pass)
        except FileNotFoundError as error:
            bucket = self._root.partition("/")[0]
            absent = re.search(rf"bucket does not exist|^b/{bucket}/o$", str(error))  # of s3fs, of gcsfs
            if absent or "missing" not in missing:
                raise RemoteError(f"{self.url}: there is no bucket {bucket!r}; create it first") from None
            return missing["missing"]
        except (UserError, FileExistsError):
            raise
        except Exception as error:
            if _status(error) == 412 or "PreconditionFailed" in f"{error!r} {error.__cause__!r}":
                raise FileExistsError(errno.EEXIST, what) from None
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EROFS, errno.EDQUOT):
                raise CannotWrite(f"{self.local}: cannot be written: {error.strerror}") from None
            kind = RemoteErrorNow if _may_pass(error) else RemoteError
            raise kind(f"{what}: {_reason(error)}") from None


def _driver(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path inside it."""
    for name in ("gcsfs", "s3fs", "aiobotocore", "google.auth"):  # they log what they try again, and what they raise
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        return file_system(url, use_listings_cache=False)
    except UserError as error:
        if isinstance(error.__cause__, ImportError) or "not installed" in str(error):
            extra = SCHEMES[url.partition(":")[0]]
            raise UserError(f"{url}: its driver is not installed; pip install 'bertgpt[{extra}]'") from None
        raise


def _may_pass(error: BaseException) -> bool:
    """Whether an error of a driver may be gone the next time. Drivers raise errors of many types, so what is known to
    stay is listed, and anything else is tried again."""
    if isinstance(error, UserError | ValueError | TypeError | NotImplementedError | ImportError | EOFError):
        return False
    if any(word in type(error).__name__ for word in MISSING_ACCESS):
        return False
    if (status := _status(error)) is not None:
        return status >= 500 or status in (408, 425, 429)
    if isinstance(error, OSError) and error.errno is not None:
        return retry.may_pass(error)
    return not isinstance(error, FileNotFoundError | FileExistsError | PermissionError | IsADirectoryError)


def _status(error: BaseException) -> int | None:
    """The status of an answer that gcsfs has turned into an HttpError."""
    found = re.search(r", (\d{3})$", str(error)) if type(error).__name__ == "HttpError" else None
    return int(found[1]) if found else None


def _reason(error: Exception) -> str:
    text = (error.strerror if isinstance(error, OSError) else None) or one_line(error)
    if any(word in type(error).__name__ for word in MISSING_ACCESS) or isinstance(error, PermissionError):
        return f"no access: {text[:200]}; set the credentials of the store"
    return f"cannot be reached: {text[:200]}" if _may_pass(error) else text[:200]


def _version(info: Mapping[str, Any]) -> str:
    """What changes with the content of an object: its generation or entity tag, and its size."""
    fields = ("generation", "ETag", "etag", "md5Hash", "LastModified", "updated", "created", "mtime")
    return f"{info['size']} {next((info[name] for name in fields if info.get(name)), '')}"


def _stamp(path: Path) -> list[int]:
    facts = path.stat()
    return [facts.st_size, facts.st_mtime_ns]


def _is_visible(name: str) -> bool:
    return not any(part.startswith(".") for part in name.split("/"))


def _all(call: Callable[[str], None], names: Iterable[str]) -> None:
    """Calls a function for all names, several at a time. The first error is raised when all that began have ended."""
    names = list(names)
    if len(names) < 2:
        for name in names:
            call(name)
        return
    with concurrent.futures.ThreadPoolExecutor(TRANSFERS) as threads:
        running = [threads.submit(call, name) for name in names]
        try:
            for done in concurrent.futures.as_completed(running):
                done.result()
        finally:
            for waiting in running:
                waiting.cancel()


@contextlib.contextmanager
def _local_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise CannotWrite(f"{path}: cannot be written: {error.strerror or one_line(error)}") from None


def _remove_empty(directory: Path) -> None:
    """Removes empty folders: a store has none."""
    for folder, _, _ in os.walk(directory, topdown=False):
        if Path(folder) != directory:
            with contextlib.suppress(OSError):  # it is not empty
                os.rmdir(folder)
