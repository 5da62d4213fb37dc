"""Files: atomic writes, JSON, and streams from local or remote files.

A file appears under its name only when it is complete: it is written as `.NAME.PID.partial` beside its target and then
renamed. Nothing is removed that this program did not make.
Local paths are `pathlib.Path`. Files that are read may also be URLs (gs://, s3://, https://). fsspec opens these rather
than etils' epath, which uses fsspec as well but not the byte ranges that Parquet needs.
"""

import contextlib
import errno
import functools
import gzip
import io
import json
import math
import os
import re
import secrets
import shutil
import stat
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from bertgpt.io.retry import CannotWrite, CannotWriteNow, may_pass
from bertgpt.io.zstd import ZstdReader
from bertgpt.types import JsonObject, UserError

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
HTTP = re.compile(r"https?://")
PIPE = re.compile(r"/dev/(stdin$|fd/)|/proc/self/fd/")
"""standard input, and what a shell writes for <(command): pipes that somebody fills"""
COMPRESSED = (".gz", ".zst")
_BUFFER = 1 << 20
JSON_BYTES = 1 << 28
"""largest JSON file, in bytes; a tokenizer.json of 250,000 tokens has 2²⁴"""
LINE_BYTES = 1 << 28
"""longest line of a text, in bytes, unless the caller says otherwise"""
JSON_DEPTH = 100
"""deepest nesting of a JSON file: code that walks its values must not exhaust the stack"""
HALF_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")


# -- writing ----------------------------------------------------------------------------------------------------------


def check_local(path: Path) -> None:
    """Refuses a URL such as gs://bucket/runs. Where one is supported, `io.paths.local_path` has replaced it.

    Raises:
      UserError: it is a URL. Python reads it as a folder named `gs:`.
    """
    if re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]+:", (path.parts or ("",))[0]):
        url = f"{path.parts[0]}//{'/'.join(path.parts[1:])}"
        raise UserError(
            f"{url}: is a URL, which nothing but runs, reports of runs and stores is written to, at gs:// and s3://;"
            " name a local path, and copy it"
        )


def partial_path(path: Path) -> Path:
    """A new hidden path beside `path` to write to before renaming."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")


@contextlib.contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """A binary file to write, which replaces `path` when the block ends and vanishes if the block fails.

    A symbolic link stays, and what it points to is replaced. A pipe or device, such as /dev/null, is written to.

    Raises:
      CannotWrite: it cannot be written.
    """
    check_local(path)
    target = Path(os.path.realpath(path))
    partial = partial_path(target) if target.is_file() or not target.exists() else None
    try:
        with open(target, "wb") if partial is None else open(partial, "xb") as file:
            yield file
            if partial is not None:  # on disk before the name is, or a loss of power leaves an empty file
                file.flush()
                os.fsync(file.fileno())
                os.replace(partial, target)
    except OSError as error:
        kind = CannotWriteNow if may_pass(error) else CannotWrite
        raise kind(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)


def write_atomic(path: Path, content: bytes) -> None:
    """Writes a file so that it always has either its old content or all of the new content.

    Raises:
      CannotWrite: it cannot be written.
    """
    with open_atomic(path) as file:
        file.write(content)


def is_finite(value: Any) -> bool:
    """Whether no number in a JSON value is NaN or infinite."""
    if isinstance(value, dict | list | tuple):
        return all(map(is_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON that every parser reads: null stands for NaN and infinities, which JSON does not have."""
    try:
        return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value if is_finite(value) else None


def json_bytes(value: Any) -> bytes:
    """The JSON of a file: `json_text`, indented, in UTF-8, with a final newline."""
    return (json_text(value, indent=2) + "\n").encode()


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file atomically. Errors: as `write_atomic`."""
    write_atomic(path, json_bytes(value))


def write_json_lines(path: Path, values: Iterable[Any]) -> None:
    """Writes each value as a line of JSON; the file appears when all are written. Errors: as `write_atomic`."""
    with open_atomic(path) as file:
        for value in values:
            file.write((json_text(value) + "\n").encode())


def publish(made: Path, path: Path) -> None:
    """Renames a finished file or folder to its final path, on the same file system."""
    os.rename(made, path)


def remove_tree(directory: Path) -> None:
    """Removes a folder that this program made, with everything in it; no error if it is not there."""
    shutil.rmtree(directory, ignore_errors=True)


# -- reading ----------------------------------------------------------------------------------------------------------


def open_regular(path: str | os.PathLike[str], buffering: int = -1) -> BinaryIO:
    """Opens a local file for reading. Pipes, devices and sockets are refused at once: a read could wait for ever.

    Raises:
      UserError: it is not a regular file.
      OSError: it is missing or cannot be read.
    """
    # Without O_NONBLOCK, opening a named pipe waits for its writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return open(descriptor, "rb", buffering)
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    raise UserError(f"{os.fspath(path)}: is a pipe or device, not a file")


def read_bytes(path: Path, limit: int | None = None) -> bytes:
    """The content of a local file.

    Args:
      path: the file.
      limit: largest size in bytes; None: any.

    Raises:
      UserError: it is missing, not a regular file, too large, or cannot be read.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if limit is not None and size > limit:
                raise UserError(f"{path}: has {size:,} bytes; the limit for such a file is {limit:,}")
            return file.read()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except MemoryError:
        raise UserError(f"{path}: does not fit into memory") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def read_json(path: Path, limit: int = JSON_BYTES) -> Any:
    """Reads a JSON file, which may come from a stranger.

    Args:
      path: a local file.
      limit: largest size in bytes.

    Raises:
      UserError: it is missing, no regular file, larger than `limit`, not UTF-8, not valid JSON, or nested more than
        JSON_DEPTH deep.
    """
    return parse_json(path, read_bytes(path, limit))


def parse_json(path: str | Path, content: bytes) -> Any:
    """The value that the content of a JSON file holds. Errors: as `read_json`."""
    too_deep = f"{path}: cannot be read as JSON: is nested more than {JSON_DEPTH} deep"
    try:
        value = json.loads(content.decode("utf-8-sig"))
        if HALF_PAIR.search(content):
            json.dumps(value, ensure_ascii=False).encode()  # fails on an unpaired surrogate, which is not text
    except UnicodeEncodeError:
        raise UserError(f"{path}: cannot be read as JSON: half of a surrogate pair") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read as JSON: is not valid UTF-8 at byte {error.start}") from None
    except ValueError as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from None
    except RecursionError:
        raise UserError(too_deep) from None
    if content.count(b"[") + content.count(b"{") > JSON_DEPTH and depth(value) > JSON_DEPTH:
        raise UserError(too_deep)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> JsonObject:
    if len(values := dict(pairs)) < len(pairs):
        raise ValueError("an object names a field twice")
    return values


_RECORD = json.JSONDecoder(object_pairs_hook=_unique)  # made once: making it takes as long as reading a line


def read_json_object(path: Path, limit: int = JSON_BYTES) -> JsonObject:
    """Reads a JSON file that must hold an object. Errors: as `read_json`, or it holds something else."""
    if not isinstance(value := read_json(path, limit), dict):
        raise UserError(f"{path}: does not hold a JSON object")
    return value


def depth(value: Any) -> int:
    """How deep lists and objects of a JSON value are nested; a number has depth 0."""
    level, found = [value], 0
    while level := [item for item in level if isinstance(item, dict | list)]:
        level = [item for box in level for item in (box.values() if isinstance(box, dict) else box)]
        found += 1
    return found


def read_lines(path: str, max_bytes: int = LINE_BYTES) -> Iterator[str]:
    """The lines of a UTF-8 file with their line ends, without a byte order mark.

    Args:
      path: a local file or URL.
      max_bytes: the longest line; no more of a longer one is held in memory.

    Raises:
      UserError: the file cannot be read, is binary, is not UTF-8, or has a longer line; the message names the line.
    """
    with open_file(path) as file:
        for number, line in enumerate(iter(functools.partial(file.readline, max_bytes + 1), b""), start=1):
            if len(line) > max_bytes:
                raise UserError(f"{path}:{number}: the line has more than {max_bytes:,} bytes, the limit")
            if b"\0" in line:
                raise UserError(f"{path}: is binary, not text")
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                byte = error.object[error.start]
                raise UserError(f"{path}:{number}: is not valid UTF-8 (byte 0x{byte:02x})") from None


def read_json_lines(path: str | os.PathLike[str], max_bytes: int = LINE_BYTES) -> Iterator[tuple[int, JsonObject]]:
    """(line number, object) for each line of a .jsonl file that is not blank.

    Raises:
      UserError: as `read_lines`, or a line is not a JSON object, or names a field twice; the message names the line.
    """
    path = os.fspath(path)
    for number, line in enumerate(read_lines(path, max_bytes), start=1):
        if not line.strip():
            continue
        try:
            values = _RECORD.decode(line)
            if "\\u" in line:
                json.dumps(values, ensure_ascii=False).encode()  # fails on an unpaired surrogate, which is not text
        except UnicodeEncodeError:
            raise UserError(f"{path}:{number}: not valid JSON: half of a surrogate pair") from None
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{number}: not valid JSON: {error.msg} at column {error.colno}") from None
        except (ValueError, RecursionError) as error:  # a number of 5000 digits, brackets 5000 deep
            raise UserError(f"{path}:{number}: not valid JSON: {error}") from None
        if not isinstance(values, dict):
            raise UserError(f'{path}:{number}: must be a JSON object such as {{"text": "..."}}')
        yield number, values


@contextlib.contextmanager
def open_file(path: str) -> Iterator[io.BufferedIOBase]:
    """The content of a local file or URL as a binary stream; .gz and .zst are decompressed while reading.

    Raises:
      UserError: here, or from any read inside the block: the file cannot be read, is corrupt or is truncated.
    """
    with file_errors(path), _open_raw(path) as raw:
        if file_name(path).endswith(".gz"):
            with gzip.GzipFile(fileobj=raw) as file:
                yield file
        elif file_name(path).endswith(".zst"):
            yield io.BufferedReader(ZstdReader(path, raw), _BUFFER)
        else:
            yield raw


def file_name(path: str) -> str:
    """The last component of a path or URL without its query, in lower case."""
    return os.path.basename((urlsplit(path).path if HTTP.match(path) else path).lower())


def file_system(url: str, **options: object) -> tuple[Any, str]:
    """The fsspec file system of a URL, opened with these options, and the path inside it.

    Raises:
      UserError: fsspec or the driver of the protocol is not installed, or credentials are missing.
    """
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise UserError(f"{url}: fsspec is not installed; pip install 'bertgpt[text]'") from None
    try:
        return url_to_fs(url, **options)
    except ImportError as error:  # fsspec says which package to install
        raise UserError(f"{url}: the driver of this protocol is not installed: {one_line(error)}") from None
    except Exception as error:  # an unknown protocol, missing credentials: each driver raises its own types
        raise UserError(f"{url}: {one_line(error)}") from None


def _open_raw(path: str) -> io.BufferedReader:
    if PIPE.match(path):
        return open(path, "rb", _BUFFER)
    if not URL.match(path):
        return open_regular(path, _BUFFER)
    system, inner = file_system(path)
    # From an HTTP server without byte ranges the whole file is read as one stream. Parquet needs ranges in any case.
    ranges = HTTP.match(path) is None or file_name(path).endswith(".parquet") or system.info(inner).get("partial")
    # The extra buffer is there because fsspec's own files search for line ends in Python.
    return io.BufferedReader(system.open(inner, "rb", block_size=4 * _BUFFER if ranges else 0), _BUFFER)


@contextlib.contextmanager
def file_errors(path: str) -> Iterator[None]:
    """Turns errors of reading a file into a UserError of one line that names it."""
    try:
        yield
    except UserError:
        raise
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: is corrupt or cut short: {one_line(error)}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or one_line(error)}") from None
    except Exception as error:
        if not URL.match(path):
            raise
        # Drivers of remote file systems pass on errors of their network libraries.
        raise UserError(f"{path}: cannot be read: {type(error).__name__}: {one_line(error)}") from None


@contextlib.contextmanager
def library_errors(what: str) -> Iterator[None]:
    """Turns errors of a library written in Rust, panics included, into a UserError of one line that begins with `what`.

    Such libraries raise plain `Exception`, and their panics are not an `Exception` at all.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__module__ != "pyo3_runtime":
            raise
        raise UserError(f"{what}: {one_line(error)}") from None


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
