"""Reads text: streams records or documents of files, finds their sentences, assigns their split.

Formats: .txt (a blank line ends a document), .jsonl, .csv with a header row, .tsv without quoting, each also as .gz and
.zst; .parquet; datasets of TFDS (see `tfds`); from Python also iterables in memory. Everything is streamed, so a corpus
need not fit in memory. Errors name file and line (Parquet and TFDS: the number of the record).
"""

import csv
import hashlib
import html
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from bertgpt.data.sources.files import JSON_SUFFIXES, SHARD_SUFFIX, facts, inside_package, resolve, suffix_of
from bertgpt.data.sources.records import Record, field, record_of, text_of, texts_of
from bertgpt.io.files import COMPRESSED, LINE_BYTES, open_file, read_json_lines, read_lines
from bertgpt.types import Split, UserError

if TYPE_CHECKING:
    import pyarrow


__all__ = [
    "Document", "Record", "Split", "clean", "facts", "field", "inside_package", "read_documents", "read_file",
    "read_json_lines", "read_lines", "read_records", "record_of", "resolve", "sentence_starts", "sentences", "split_of",
    "strip_markup", "text_of", "texts_of",
]  # fmt: skip

PARQUET_ROWS = 1024  # decoded at once
IN_MEMORY = "<items>"  # takes the place of the file name for documents in memory

Items = Iterable[str | Mapping[str, object]]


class Document(NamedTuple):
    """One document, and where it starts."""

    text: str
    file: str
    line: int


def read_documents(
    source: str | os.PathLike[str] | Items | Callable[[], Items], text_field: str, max_bytes: int = LINE_BYTES
) -> Iterator[Document]:
    """Streams the documents of a source.

    Args:
      source: a path of one or several files (see `resolve`); or an iterable of texts, or of mappings with a text in
        `text_field`; or, for sources that are read twice, a function that returns such an iterable, the same each time.
      text_field: the field of records that holds the text.
      max_bytes: as in `read_file`.

    Raises:
      UserError: as `resolve` and `read_file`; an item of an iterable is not text (the message gives its number from 1).
    """
    if isinstance(source, str | os.PathLike):
        for file in resolve(os.fspath(source)):
            yield from read_file(file, text_field, max_bytes)
    else:
        yield from _read_items(source() if callable(source) else source, text_field)


def _read_items(items: Iterable[object], text_field: str) -> Iterator[Document]:
    if isinstance(items, bytes | Mapping) or not isinstance(items, Iterable):
        raise UserError(f"documents must be a path or an iterable of texts, not a {type(items).__name__}")
    number = 0
    for number, item in enumerate(items, start=1):
        record = record_of(item if isinstance(item, Mapping) else {text_field: item}, IN_MEMORY, number)
        text = text_of(record, text_field)
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UserError(f"{IN_MEMORY}:{number}: {text_field!r} has half of a surrogate pair") from None
        yield Document(text, IN_MEMORY, number)
    if not number:
        raise UserError(f"{IN_MEMORY}: has no documents")


def read_file(path: str, text_field: str, max_bytes: int = LINE_BYTES) -> Iterator[Document]:
    """Streams the documents of one file of `resolve`.

    In .txt files documents are separated by blank lines; elsewhere each record is one, with its text in `text_field`.

    Args:
      path: the file.
      text_field: the field of records that holds the text.
      max_bytes: the longest line, the longest document of a .txt file, and the longest field of a table.

    Raises:
      UserError: the file is missing, empty, damaged or not text, a record has no text in `text_field`, or something is
        longer than `max_bytes`, of which no more is held in memory.
    """
    if suffix_of(path) == ".txt":
        yield from _read_paragraphs(path, max_bytes)
    else:
        # Only this column of a Parquet file is read.
        parquet = suffix_of(path) == ".parquet"
        for record in (
            _some(path, _read_parquet(path, text_field)) if parquet else read_records(path, max_bytes=max_bytes)
        ):
            yield Document(text_of(record, text_field), record.file, record.line)


def read_records(path: str, columns: Sequence[str] = (), max_bytes: int = LINE_BYTES) -> Iterator[Record]:
    """Streams the records of one .jsonl, .csv or .tsv file (or .gz or .zst of it), .parquet file, dataset of TFDS, tar
    file of WebDataset, or folder of pictures (see `resolve`).

    Blank lines are skipped. Numbers and booleans become strings as JSON writes them; null, lists and other values are
    not included in `fields`.

    Args:
      path: the file.
      columns: names of the columns of a .csv or .tsv file without a header row.
      max_bytes: the longest line, and the longest field of a table.

    Raises:
      UserError: the file is missing, empty, damaged, of another kind, or one of its rows is malformed or too long.
    """
    suffix = suffix_of(path)
    if path.startswith("tfds:"):
        records = _read_tfds(path)
    elif path.endswith("/") or suffix == SHARD_SUFFIX:
        records = _read_pictures(path)
    elif suffix == ".parquet":
        records = _read_parquet(path)
    elif suffix in JSON_SUFFIXES:
        records = _read_json(path, max_bytes)
    elif suffix == ".csv":
        records = _read_table(path, columns, max_bytes, delimiter=",", quoting=csv.QUOTE_MINIMAL)
    elif suffix == ".tsv":
        records = _read_table(path, columns, max_bytes, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        known = (
            f"{', '.join((*JSON_SUFFIXES, '.csv', '.tsv'))} (or these with {' or '.join(COMPRESSED)}), .parquet or .tar"
        )
        raise UserError(f"{path}: does not hold records: its name must end in {known}")
    yield from _some(path, records)


def _some(path: str, records: Iterator[Record]) -> Iterator[Record]:
    """The records. Raises UserError if there are none."""
    empty = True
    for record in records:
        empty = False
        yield record
    if empty:
        raise UserError(f"{path}: has no records")


def _read_paragraphs(path: str, max_bytes: int) -> Iterator[Document]:
    lines: list[str] = []
    start, size, empty = 0, 0, True
    for number, line in enumerate(read_lines(path, max_bytes), start=1):
        if line.strip():
            start, empty = start or number, False
            lines.append(line)
            size += len(line)  # characters: at least a byte each
            if size > max_bytes:
                limit = f"{max_bytes:,} bytes, the limit"
                raise UserError(f"{path}:{start}: the document has more than {limit}; a blank line ends a document")
        elif lines:
            yield Document(_without_end("".join(lines)), path, start)
            lines, start, size = [], 0, 0
    if lines:
        yield Document(_without_end("".join(lines)), path, start)
    if empty:
        raise UserError(f"{path}: has no documents")


def _without_end(text: str) -> str:
    """The text without its last line end; those inside it stay as they are, \\n or \\r\\n."""
    return text.removesuffix("\n").removesuffix("\r")


def _read_json(path: str, max_bytes: int) -> Iterator[Record]:
    for number, values in read_json_lines(path, max_bytes):
        yield record_of(values, path, number)


def _read_table(path: str, columns: Sequence[str], max_bytes: int, delimiter: str, quoting: int) -> Iterator[Record]:
    csv.field_size_limit(max_bytes)  # the module has no limit per reader; its default is too small for books
    # strict: otherwise a quote that is never closed silently takes in the rest of the file.
    rows = csv.reader(read_lines(path, max_bytes), delimiter=delimiter, quoting=quoting, strict=True)
    header = list(columns)
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
                expected = "`columns` names" if columns else "the header has"
                raise UserError(f"{path}:{line}: has {len(row)} columns, {expected} {len(header)}")
            else:
                yield Record(dict(zip(header, row, strict=True)), path, line)
    except csv.Error as error:
        # Where a line ends at \r alone, the module asks for an option of `open`.
        reason = "a carriage return without a line feed" if "new-line character" in str(error) else error
        raise UserError(f"{path}:{start}: not a valid row: {reason}") from None


def _read_parquet(path: str, only: str | None = None) -> Iterator[Record]:
    """The records of a Parquet file; with `only`, just this column, which must hold strings."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{path}: pyarrow is not installed; pip install 'bertgpt[text]'") from None
    with open_file(path) as raw:
        try:
            # With pyarrow's defaults the whole column of a row group is read at once.
            file = parquet.ParquetFile(raw, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True)
            columns, other = _parquet_columns(path, file.schema_arrow, only)
            number = 0
            for batch in file.iter_batches(PARQUET_ROWS, columns=columns, use_threads=False):
                values = [_parquet_values(path, number, column) for column in batch.columns]
                for row in zip(*values, strict=True) if columns else [()] * len(batch):
                    number += 1
                    record = record_of(dict(zip(batch.schema.names, row, strict=True)), path, number)
                    yield record._replace(other=other | record.other) if other else record
        except (pa.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{path}: is not a Parquet file, corrupt or cut short: {reason}") from None


def _parquet_columns(path: str, schema: "pyarrow.Schema", only: str | None) -> tuple[list[str], dict[str, str]]:
    """(the columns to read, name → type of those that cannot be text)."""
    from pyarrow import types

    def is_text(kind: "pyarrow.DataType") -> bool:
        kind = kind.value_type if types.is_dictionary(kind) else kind
        return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)

    kinds = dict(zip(schema.names, schema.types, strict=True))
    if len(kinds) < len(schema.names):
        raise UserError(f"{path}: names a column twice: {', '.join(map(repr, schema.names))}")
    if only is not None:
        if only not in kinds:
            raise UserError(f"{path}: no column {only!r}; it has {', '.join(map(repr, kinds)) or 'none'}")
        if not is_text(kinds[only]):
            raise UserError(f"{path}: column {only!r} is of type {kinds[only]}, not string")
        return [only], {}
    scalar = (is_text, types.is_integer, types.is_floating, types.is_boolean)
    columns = [name for name, kind in kinds.items() if any(test(kind) for test in scalar)]
    return columns, {name: f"of type {kind}" for name, kind in kinds.items() if name not in columns}


def _parquet_values(path: str, before: int, column: "pyarrow.Array") -> list[object]:
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        for row, value in enumerate(column, start=before + 1):
            try:
                value.as_py()
            except UnicodeDecodeError as error:
                byte = error.object[error.start]
                raise UserError(f"{path}:{row}: is not valid UTF-8 (byte 0x{byte:02x})") from None
        raise


def _read_tfds(path: str) -> Iterator[Record]:
    from bertgpt.data.sources.tfds import read_examples

    for number, values in read_examples(path):
        yield record_of(values, path, number)


def _read_pictures(path: str) -> Iterator[Record]:
    from bertgpt.data.images.folders import read_folder
    from bertgpt.data.images.shards import read_samples

    return read_folder(path) if path.endswith("/") else read_samples(path)


_LINE_TAG = re.compile(r"<br\s*/?>|</p\s*>", re.IGNORECASE)
_TAG = re.compile(r"</?[A-Za-z][^<>]*>")
_TAG_OR_COMMENT = re.compile(rf"{_TAG.pattern}|<!--.*?-->", re.DOTALL)
_LONG_NUMBER = re.compile(r"&#[0-9]{1000,}+;?")  # no character; Python refuses numbers of 4,300 digits
_SPACES = re.compile(r"[^\S\n]+")
# All white space but \n and the space. Searching for one character after the other is ten times as fast as a pattern.
_ODD_SPACES = tuple(c for c in map(chr, range(0x3001)) if c.isspace() and c not in "\n ")


def strip_markup(text: str) -> str:
    """Text of HTML: line breaks and ends of paragraphs become newlines, other tags vanish, entities are replaced."""
    text = _LINE_TAG.sub("\n", text)
    # Beyond the last --> no comment ends: searching for its end from each <!-- would take quadratic time.
    end = text.rfind("-->") + 3 if "-->" in text else 0
    text = _TAG_OR_COMMENT.sub("", text[:end]) + _TAG.sub("", text[end:])
    return html.unescape(_LONG_NUMBER.sub("\N{REPLACEMENT CHARACTER}", text))


def clean(text: str, strip_html: bool) -> str:
    """Text as it is compared and assigned to a split: runs of spaces and tabs are one space, the ends are stripped.

    With `strip_html`, markup is removed before (`strip_markup`). Tokenizers see the text without these changes.
    """
    if strip_html:
        text = strip_markup(text)
    if "  " in text or any(map(text.__contains__, _ODD_SPACES)):
        text = _SPACES.sub(" ", text)
    return text.strip()


_LINE = re.compile(r"\S[^\r\n]*")  # from its first character that is not white space
# A sentence may end after these, with any closing quotes and brackets; CJK full stops need no space after them.
# The pattern begins with a set of characters, to which `re` can skip; that doubles the speed. It matches every run of
# stops, whether or not a sentence ends there, so that no run is searched again from its second stop.
_END = re.compile(r"""[.!?…。！？](?:(?<=[.!?…])[.!?…]*["'”’»)\]]*|(?<=[。！？])[。！？]*["'”’」』）)\]]*)\s*""")
# Characters that are written without spaces between words.
CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_CJK_STOPS = "。！？"
_OPENERS = "\"'“‘«‹„([{¿¡「『（"
_ABBREVIATIONS = frozenset("mr mrs ms dr prof st vs no jr sr gen col rev sen rep capt lt sgt fig cf approx".split())
_INITIALS = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]")  # J. · U.S. · e.g. · a.m.
_LONGEST_INITIALS = 40  # characters before a full stop that are read


def sentence_starts(text: str) -> list[int]:
    """Where each sentence of a text begins, by simple rules; white space after a sentence belongs to it.

    A line break always ends a sentence. So do . ! ? … before white space and anything but a lower-case letter, unless
    the word before a full stop is a common abbreviation or initials; and 。！？ anywhere. Takes linear time.
    """
    found = []
    for line in _LINE.finditer(text):
        start, last = line.span()
        found.append(start)
        for match in _END.finditer(text, start, last):
            stop, end = match.span()
            if end < last and _ends_sentence(text, start, stop, end):
                found.append(start := end)
    return found


def sentences(text: str) -> list[str]:
    """The sentences of a text (`sentence_starts`) without the white space between them. No sentence is empty."""
    starts = sentence_starts(text)
    return [text[start:end].rstrip() for start, end in itertools.pairwise([*starts, len(text)])]


def _ends_sentence(text: str, start: int, stop: int, end: int) -> bool:
    """Whether the sentence that began at `start` ends with the mark at `stop`, before the character at `end`."""
    if text[stop] in _CJK_STOPS:
        return True
    following = text[end]
    if not text[end - 1].isspace():
        return False
    if not following.isupper() and (following.islower() or not (following.isalnum() or following in _OPENERS)):
        return False
    if text[stop] != "." or not text[stop + 1].isspace():
        return True
    before = text[max(start, stop - _LONGEST_INITIALS) : stop]
    word = before.split()[-1].lstrip(_OPENERS) if before and not before[-1].isspace() else ""
    return word.lower() not in _ABBREVIATIONS and not _INITIALS.fullmatch(word)


def split_of(texts: str | Sequence[str], validation: float, test: float) -> Split:
    """The split of cleaned texts, from their hash alone: the same texts are held out in every file and every task.

    Args:
      texts: a text, or the texts of a record.
      validation: fraction of all texts that is held out for validation.
      test: fraction that is held out for testing.
    """
    # The unit separator of ASCII, which no cleaned text contains, tells ("ab", "c") from ("a", "bc").
    joined = texts if isinstance(texts, str) else "\N{INFORMATION SEPARATOR ONE}".join(texts)
    place = int.from_bytes(hashlib.blake2b(joined.encode(), digest_size=8, person=b"split").digest()) / 2**64
    if place < validation:
        return "validation"
    return "test" if place < validation + test else "train"
