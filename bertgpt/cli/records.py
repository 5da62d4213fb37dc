"""Records that commands read and write: texts given as flags, files of records, lines of JSON."""

import codecs
import dataclasses
import json
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from bertgpt.cli.options import Positional
from bertgpt.cli.streams import Closed
from bertgpt.io.files import is_finite, json_text, read_json_lines, write_json_lines
from bertgpt.ranges import Count, Natural
from bertgpt.types import JsonObject, UserError

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """Options of commands that use a model on records."""

    run: Positional[str]
    """directory of a run, a converted model or a Hugging Face model"""
    input: str | None = None
    """.jsonl, .csv, .tsv or .parquet file of records, or - for lines of JSON from standard input"""
    output: str | None = None
    """file to write, lines of JSON (None: standard output)"""
    step: Natural | None = None
    """checkpoint to use (None: the newest)"""
    batch_size: Count = 16
    """examples at once"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """type to compute in"""

    def __post_init__(self):
        check_output(self.output)


def read_input(
    flag: str, texts: Sequence[str], path: str | None, fields: Sequence[str], *, lists: bool = False
) -> list[JsonObject]:
    """The texts given as flags, or the records of --input, each with these fields; other fields are kept.

    Args:
      flag: name of the flag of texts, which are the first of the fields.
      texts: values of the flag.
      path: value of --input.
      fields: what each record must have.
      lists: a field may also hold a list, or a number: the task of a run checks that.

    Raises:
      UserError: neither or both are given, a text is not valid UTF-8, a field is not text, or as `records_in`.
    """
    if bool(texts) == (path is not None):
        raise UserError(f"give either --{flag} or --input")
    if texts:
        return [{fields[0]: require_utf8(f"--{flag}", text)} for text in texts]
    return [record if lists else require_texts(place, record, fields) for place, record in records_in(path, fields)]


def require_texts(place: str, record: JsonObject, fields: Sequence[str]) -> JsonObject:
    """The record. Raises UserError if one of these fields holds anything but text."""
    for name in fields:
        if not isinstance(record[name], str):
            kind = "null" if record[name] is None else f"of type {type(record[name]).__name__}"
            raise UserError(f"{place}: {name!r} is {kind}, not text")
    return record


def require_utf8(place: str, text: str) -> str:
    """The text. Raises UserError if it is not valid Unicode, as bytes of another encoding in an argument are not."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{place} {ascii(text[:60])}: is not valid UTF-8 at character {error.start + 1}") from None
    return text


def records_in(path: str, fields: Sequence[str]) -> list[tuple[str, JsonObject]]:
    """(“file:line”, record) for each record of a file; of lines of JSON from standard input if the path is -.

    Values from lines of JSON keep their types; those of other files are texts, as in `read_records`.

    Raises:
      UserError: the file is missing, empty, damaged or of another kind, or a record lacks one of these fields.
    """
    from bertgpt.data.sources.files import JSON_SUFFIXES, suffix_of
    from bertgpt.data.sources.text import read_records

    if suffix_of(path) in (*JSON_SUFFIXES, ".json", "") and not path.startswith("tfds:"):
        lines = read_json_lines("/dev/stdin" if path == "-" else path)
        records = ((f"{path}:{line}", record) for line, record in lines)
    else:
        records = ((f"{r.file}:{r.line}", {**r.fields, **r.lists}) for r in read_records(path))
    found = []
    for place, record in records:
        for name in fields:
            if record.get(name) is None:
                raise UserError(f"{place}: has no field {name!r}; it has {', '.join(map(repr, record)) or 'none'}")
        found.append((place, record))
    if not found:
        raise UserError(f"{path}: has no records")
    return found


def parse_records(texts: Sequence[str], fields: Sequence[str], *, lists: bool = False) -> list[JsonObject]:
    """Records given as JSON on the command line; arguments as those of `read_input`.

    Raises:
      UserError: a text is not a JSON object with these fields, or as `read_input`.
    """
    records = []
    for text in texts:
        place = f"--record {ascii(text[:60])}"
        try:
            record = json.loads(require_utf8("--record", text))
            require_utf8(place, json_text(record))  # an escape may be half of a surrogate pair
        except UserError:
            raise
        except (ValueError, RecursionError) as error:
            reason = "brackets are nested too deep" if isinstance(error, RecursionError) else error
            raise UserError(f"{place}: not valid JSON: {reason}") from None
        if not isinstance(record, dict):
            raise UserError(f"{place}: not a JSON object")
        missing = [name for name in fields if record.get(name) is None]
        if missing:
            raise UserError(f"{place}: has no field {missing[0]!r}")
        records.append(record if lists else require_texts(place, record, fields))
    return records


def combine(record: JsonObject, answer: JsonObject) -> JsonObject:
    """The record and the answer; a name of the answer that the record has too becomes “predicted_…”."""
    both = dict(record)
    for name, value in answer.items():
        while name in record:
            name = f"predicted_{name}"
        both[name] = value
    return both


def write_lines(output: str | None, records: Sequence[JsonObject], answers: Iterable[JsonObject]) -> int:
    """Writes each record with its answer as a line of JSON, to standard output or to a file, whole or not at all.

    JSON has no NaN and no infinities: null stands for such a number of a record, and for every value of an answer that
    holds one. A warning counts them.

    Returns:
      The exit code, 0.
    """
    from bertgpt.inference.predict import known

    values = (combine(record, answer) for record, answer in zip(records, known(answers), strict=True))
    if output is None:
        lines = (json_text(value) for value in values)
        if not codecs.lookup(sys.stdout.encoding or "utf-8").name.startswith("utf"):
            lines = (json.dumps(json.loads(line)) for line in lines)  # \u4e2d is 中 to every reader of JSON
        sys.stdout.writelines(line + "\n" for line in lines)
    else:
        write_json_lines(Path(output), values)
    if odd := sum(not is_finite(record) for record in records):
        log.warning("%d of %d records hold NaN or an infinity, which is written as null", odd, len(records))
    return 0


def check_output(output: str | None, flag: str = "--output") -> None:
    """Checks, before any work, that the flag names a file that can be written.

    Raises:
      UserError: it is empty, a directory, or in a folder that does not exist or does not allow it.
    """
    if output is None:
        if isinstance(sys.stdout, Closed):
            raise UserError("standard output is closed; name a file with --output")
        return
    path = Path(output)
    if not output.strip() or path.is_dir():
        raise UserError(f"{flag} {output!r} must name a file, not a directory")
    if not path.parent.is_dir():
        raise UserError(f"{output}: cannot be written: No such directory as {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(f"{output}: cannot be written: Permission denied")
