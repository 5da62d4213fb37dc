"""Records of files and from Python: fields of text, and what other values are."""

import json
import math
from collections.abc import Mapping
from typing import NamedTuple

from bertgpt.types import UserError


class Record(NamedTuple):
    """One record, and where it starts."""

    fields: dict[str, str]
    file: str
    line: int
    other: dict[str, str] = {}  # never modified
    """fields that cannot be text → what they are"""
    lists: dict[str, list[str]] = {}
    """those of `other` that are lists of texts or numbers"""
    kinds: dict[str, str] = {}
    """`fields` and `lists` that are not texts in the file → what they are, such as “a number”"""


def text_of(record: Record, name: str) -> str:
    """The text of one field.

    Raises:
      UserError: as `field`, or it is a number or a boolean, not a text.
    """
    if name in record.kinds:
        raise UserError(f"{record.file}:{record.line}: {name!r} is {record.kinds[name]}, not text; quote it if it is")
    return field(record, name)


def texts_of(record: Record, name: str) -> list[str]:
    """The texts of a field that holds one or a list of them. Raises UserError as `text_of`."""
    return record.lists[name] if name in record.lists and name not in record.kinds else [text_of(record, name)]


def field(record: Record, name: str) -> str:
    """The value of one field: its text, or a number or a boolean as JSON writes it.

    Raises:
      UserError: the record has no such field, and the message names those it has; or its value cannot be text.
    """
    try:
        return record.fields[name]
    except KeyError:
        if name in record.other:
            raise UserError(f"{record.file}:{record.line}: {name!r} is {record.other[name]}, not text") from None
        known = ", ".join(map(repr, record.fields | record.other)) or "none"
        raise UserError(f"{record.file}:{record.line}: no column {name!r}; it has {known}") from None


def as_text(value: object) -> str:
    """The text of a value: a text itself, anything else as JSON writes it, so that true is "true" in every format."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def record_of(values: Mapping[str, object], file: str, line: int) -> Record:
    """The record of a mapping: numbers become strings as JSON writes them; `other` describes what cannot be text."""
    fields: dict[str, str] = {}
    kinds: dict[str, str] = {}
    other: dict[str, str] = {}
    lists: dict[str, list[str]] = {}
    for name, value in values.items():
        if isinstance(value, str):
            fields[name] = value
        elif _is_number(value):
            fields[name], kinds[name] = json.dumps(value), _kind(value)
        else:
            other[name] = "null" if value is None else f"of type {type(value).__name__}"
            if isinstance(value, float):
                other[name] = json.dumps(value)  # NaN or an infinity
            if isinstance(value, list) and all(isinstance(item, str) or _is_number(item) for item in value):
                lists[name] = [item if isinstance(item, str) else json.dumps(item) for item in value]
                odd = [item for item in value if not isinstance(item, str)]
                if odd:
                    kinds[name] = f"a list with {_kind(odd[0])}"
    return Record(fields, file, line, other, lists, kinds)


def _is_number(value: object) -> bool:
    return isinstance(value, int) or isinstance(value, float) and math.isfinite(value)


def _kind(value: float) -> str:
    return "a boolean" if isinstance(value, bool) else "a number"
