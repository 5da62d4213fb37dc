"""Text in: stream the records or documents of files, clean them, cut them into sentences, tell their split.

Formats: .txt (a blank line ends a document), .jsonl, .csv with a header row, .tsv without quoting, each also as .gz and
.zst. Everything is read line by line, so that a corpus need not fit in memory, and every complaint names file and line.
"""

import csv
import hashlib
import html
import json
import os
import re
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from bertgpt.config import UserError
from bertgpt.data.files import COMPRESSED, JSON_SUFFIXES, facts, inside_package, open_file, resolve, suffix_of

__all__ = [
    "Document", "Record", "Split", "clean", "facts", "field", "inside_package", "read_documents", "read_file",
    "read_json_lines", "read_records", "resolve", "sentences", "split_of",
]  # fmt: skip

Split = Literal["train", "validation", "test"]

MAX_CSV_FIELD = 2**31 - 1  # the csv module's own limit of 128 KiB is shorter than a novel


class Record(NamedTuple):
    """One row of a .jsonl, .csv or .tsv file, and where it starts."""

    fields: dict[str, str]
    file: str
    line: int


class Document(NamedTuple):
    """One document, and where it starts."""

    text: str
    file: str
    line: int


def read_documents(path: str, text_field: str) -> Iterator[Document]:
    """Streams the documents of every file that `path` names (see `resolve`).

    Raises:
      UserError: as `resolve` and `read_file`.
    """
    for file in resolve(path):
        yield from read_file(file, text_field)


def read_file(path: str, text_field: str) -> Iterator[Document]:
    """Streams the documents of one file of `resolve`.

    In .txt files documents are paragraphs between blank lines; elsewhere each record is one, its text in `text_field`.

    Raises:
      UserError: the file is missing, empty, damaged or not text, or a record has no `text_field`.
    """
    if suffix_of(path) == ".txt":
        yield from _read_paragraphs(path)
    else:
        for record in read_records(path):
            yield Document(field(record, text_field), record.file, record.line)


def read_records(path: str) -> Iterator[Record]:
    """Streams the records of one .jsonl, .csv or .tsv file (or .gz or .zst of it). Blank lines are passed over.

    JSON numbers and booleans become strings as JSON writes them; null, lists and objects are left out.

    Raises:
      UserError: the file is missing, empty, damaged, of another kind, or one of its rows is malformed.
    """
    suffix = suffix_of(path)
    if suffix in JSON_SUFFIXES:
        records = _read_json(path)
    elif suffix == ".csv":
        records = _read_table(path, delimiter=",", quoting=csv.QUOTE_MINIMAL)
    elif suffix == ".tsv":
        records = _read_table(path, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        known = f"{', '.join((*JSON_SUFFIXES, '.csv', '.tsv'))} (or these with {' or '.join(COMPRESSED)})"
        raise UserError(f"{path}: does not hold records: its name must end in {known}")
    empty = True
    for record in records:
        empty = False
        yield record
    if empty:
        raise UserError(f"{path}: has no records")


def field(record: Record, name: str) -> str:
    """The value of one field.

    Raises:
      UserError: the record has no such field; the message names those it has.
    """
    try:
        return record.fields[name]
    except KeyError:
        known = ", ".join(map(repr, record.fields)) or "none"
        raise UserError(f"{record.file}:{record.line}: no column {name!r}; it has {known}") from None


def _read_lines(path: str) -> Iterator[str]:
    """The lines of a UTF-8 file, line ends kept, a byte order mark dropped."""
    with open_file(path) as file:
        for number, line in enumerate(file, start=1):
            if b"\0" in line:
                raise UserError(f"{path}: is binary, not text")
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                byte = error.object[error.start]
                raise UserError(f"{path}:{number}: is not valid UTF-8 (byte 0x{byte:02x})") from None


def _read_paragraphs(path: str) -> Iterator[Document]:
    lines: list[str] = []
    start, empty = 0, True
    for number, line in enumerate(_read_lines(path), start=1):
        if line.strip():
            start, empty = start or number, False
            lines.append(line.rstrip("\r\n"))
        elif lines:
            yield Document("\n".join(lines), path, start)
            lines, start = [], 0
    if lines:
        yield Document("\n".join(lines), path, start)
    if empty:
        raise UserError(f"{path}: has no documents")


def _read_json(path: str) -> Iterator[Record]:
    for number, values in read_json_lines(path):
        fields = {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in values.items()
            if isinstance(value, str | int | float)
        }
        yield Record(fields, path, number)


def read_json_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) for each line of a .jsonl file that is not blank.

    Raises:
      UserError: the file cannot be read, or a line is not a JSON object.
    """
    path = os.fspath(path)
    for number, line in enumerate(_read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            if "\\u" in line:
                json.dumps(values, ensure_ascii=False).encode()  # an escaped half of a surrogate pair is not text
        except UnicodeEncodeError:
            raise UserError(f"{path}:{number}: not valid JSON: half of a surrogate pair") from None
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{number}: not valid JSON: {error.msg} at column {error.colno}") from None
        except (ValueError, RecursionError) as error:  # a number of 5000 digits, brackets 5000 deep
            raise UserError(f"{path}:{number}: not valid JSON: {error}") from None
        if not isinstance(values, dict):
            raise UserError(f'{path}:{number}: must be a JSON object such as {{"text": "..."}}')
        yield number, values


def _read_table(path: str, delimiter: str, quoting: int) -> Iterator[Record]:
    csv.field_size_limit(MAX_CSV_FIELD)  # the module offers no limit per reader
    # strict: without it a quote that is never closed swallows the rest of the file in silence.
    rows = csv.reader(_read_lines(path), delimiter=delimiter, quoting=quoting, strict=True)
    header: list[str] = []
    start = 1
    try:
        for row in rows:
            line, start = start, rows.line_num + 1
            if not row:
                continue
            if not header:
                header = row
                if len(set(header)) < len(header):
                    raise UserError(f"{path}:{line}: the header names a column twice: {', '.join(map(repr, header))}")
            elif len(row) != len(header):
                raise UserError(f"{path}:{line}: has {len(row)} columns, the header has {len(header)}")
            else:
                yield Record(dict(zip(header, row, strict=True)), path, line)
    except csv.Error as error:
        raise UserError(f"{path}:{start}: not a valid row: {error}") from None


_LINE_TAG = re.compile(r"<br\s*/?>|</p\s*>", re.IGNORECASE)
_TAG = re.compile(r"</?[A-Za-z][^<>]*>|<!--.*?-->", re.DOTALL)
_SPACES = re.compile(r"[^\S\n]+")


def clean(text: str, strip_html: bool) -> str:
    """Text as it is tokenized, compared and split: runs of spaces and tabs become one space, the ends are stripped.

    Unicode is left to the tokenizer. With `strip_html`, line breaks and paragraph ends become newlines, other tags are
    dropped and entities are replaced.
    """
    if strip_html:
        text = html.unescape(_TAG.sub("", _LINE_TAG.sub("\n", text)))
    return _SPACES.sub(" ", text).strip()


# A sentence may end after these, with any closing quotes and brackets; CJK full stops need no space after them.
_END = re.compile(r"""(?:[.!?…]+["'”’»)\]]*\s+|[。！？]+["'”’」』）)\]]*\s*)(?=\S)""")
_CJK_STOPS = "。！？"
_OPENERS = "\"'“‘«‹„([{¿¡「『（"
_ABBREVIATIONS = frozenset("mr mrs ms dr prof st vs no jr sr gen col rev sen rep capt lt sgt fig cf approx".split())
_INITIALS = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]")  # J. · U.S. · e.g. · a.m.


def sentences(text: str) -> list[str]:
    """Sentences of a cleaned text, by a light rule; no sentence is empty and only white space between them is lost.

    A newline always ends a sentence. So do . ! ? … before white space and a new start (not a lower-case letter),
    unless the word before a full stop is a common abbreviation or initials; and 。！？ anywhere.
    """
    found = []
    for line in text.split("\n"):
        start = 0
        for match in _END.finditer(line):
            if _ends_sentence(line, start, match):
                found.append(line[start : match.end()].strip())
                start = match.end()
        found.append(line[start:].strip())
    return [sentence for sentence in found if sentence]


def _ends_sentence(line: str, start: int, match: re.Match[str]) -> bool:
    stop, following = match.start(), line[match.end()]
    if line[stop] in _CJK_STOPS:
        return True
    if following.islower() or not (following.isalnum() or following in _OPENERS):
        return False
    if match[0].rstrip() != ".":
        return True
    word = line[line.rfind(" ", start, stop) + 1 : stop] if " " in line[start:stop] else line[start:stop]
    word = word.lstrip(_OPENERS)
    return word.lower() not in _ABBREVIATIONS and not _INITIALS.fullmatch(word)


def split_of(text: str, validation: float, test: float) -> Split:
    """The split of a cleaned text, from its hash alone: the same text is held out in every file and every task."""
    place = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, person=b"split").digest()) / 2**64
    if place < validation:
        return "validation"
    return "test" if place < validation + test else "train"
