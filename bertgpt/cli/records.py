"""Records that commands read and write: texts given as flags, files of records, lines of JSON."""

import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from bertgpt.cli.options import Positional
from bertgpt.io import read_json_lines, write_json_lines
from bertgpt.ranges import Count, Natural
from bertgpt.types import JsonObject, UserError


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


def read_input(flag: str, texts: Sequence[str], path: str | None, fields: Sequence[str]) -> list[JsonObject]:
    """The texts given as flags, or the records of --input, each with these fields; other fields are kept.

    Args:
      flag: name of the flag of texts, which are the first of the fields.
      texts: values of the flag.
      path: value of --input.
      fields: what each record must have.

    Raises:
      UserError: neither or both are given, or as `records_in`.
    """
    if bool(texts) == (path is not None):
        raise UserError(f"give either --{flag} or --input")
    if texts:
        return [{fields[0]: text} for text in texts]
    found = records_in(path, fields)
    for place, record in found:
        if len(fields) == 1 and not isinstance(record[fields[0]], str | list):
            raise UserError(f"{place}: has no field {fields[0]!r} that is a string")
    return [record for _, record in found]


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


def parse_records(texts: Sequence[str], fields: Sequence[str]) -> list[JsonObject]:
    """Records given as JSON on the command line.

    Raises:
      UserError: a text is not a JSON object with these fields.
    """
    records = []
    for text in texts:
        try:
            record = json.loads(text)
        except ValueError as error:
            raise UserError(f"--record {text[:60]!r}: not valid JSON: {error}") from None
        if not isinstance(record, dict):
            raise UserError(f"--record {text[:60]!r}: not a JSON object")
        missing = [name for name in fields if name not in record]
        if missing:
            raise UserError(f"--record {text[:60]!r}: has no field {missing[0]!r}")
        records.append(record)
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

    Returns:
      The exit code, 0.
    """
    values = (combine(record, answer) for record, answer in zip(records, answers, strict=True))
    if output is None:
        sys.stdout.writelines(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
    else:
        write_json_lines(Path(output), values)
    return 0
