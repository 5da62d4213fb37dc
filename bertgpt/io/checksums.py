"""Checksums of files and of JSON objects, by which damage is noticed before anything damaged is used."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from bertgpt.io.files import json_bytes, read_json_object
from bertgpt.types import JsonObject, UserError


def checksum(path: Path, sync: bool = False) -> JsonObject:
    """Size and SHA-256 of a file, as JSON.

    Args:
      path: the file.
      sync: wait until its content is on the disk, so that it survives a loss of power.

    Raises:
      OSError: it cannot be read or written.
    """
    with open(path, "rb") as file:
        if sync:
            os.fsync(file.fileno())
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def checksums(directory: Path, sync: bool = False) -> dict[str, JsonObject]:
    """Path inside a directory → `checksum`, of all files below it, sorted by path."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): checksum(path, sync) for path in files}


def find_damage(directory: Path, expected: Mapping[str, JsonObject], contents: bool = True) -> str | None:
    """Compares files with their recorded checksums.

    Args:
      directory: where they lie.
      expected: path inside the directory → `checksum`, of the files to compare.
      contents: read every byte; otherwise only sizes are compared.

    Returns:
      What is wrong with the first file that differs; None if none does.
    """
    for name, check in expected.items():
        path = directory / name
        try:
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != check["bytes"]:
                return f"{name} has {path.stat().st_size:,} bytes, not {check['bytes']:,}"
            if contents and checksum(path) != check:
                return f"{name} is corrupt (checksum differs)"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return None


def sealed(facts: JsonObject) -> JsonObject:
    """A JSON object with one more field, `sha256`, the digest of all others: `read_sealed` notices any change."""
    return facts | {"sha256": hashlib.sha256(json_bytes(facts)).hexdigest()}


def read_sealed(path: Path) -> JsonObject:
    """Reads a JSON file that holds a `sealed` object, and returns it without the digest.

    Raises:
      UserError: it is missing, is not valid JSON, or has changed since it was written.
    """
    facts = read_json_object(path)
    if "sha256" not in facts:
        raise UserError(f"{path}: has no checksum of its content")
    content = {name: value for name, value in facts.items() if name != "sha256"}
    if sealed(content) != facts:
        raise UserError(f"{path}: is corrupt (checksum differs)")
    return content


def read_sealed_or_edited(path: Path) -> JsonObject:
    """Like `read_sealed`, of a file that people edit: without a checksum its content is taken as it is.

    Raises:
      UserError: it is missing, is not a JSON object, or has changed since it was written.
    """
    facts = read_json_object(path)
    if "sha256" not in facts:
        return facts
    try:
        return read_sealed(path)
    except UserError as error:
        raise UserError(f"{error}; if you edited it, remove its sha256") from None
