"""Tagged words from files: CoNLL columns, lists of tokens in JSON, spans of characters in JSON.

All become `Sentence`s, and tags of the common schemes become BIO (Ramshaw & Marcus 1995, in the variant that is also
called IOB2): B-X begins an entity of type X, I-X continues it, O is outside. Suffixes decide the format: .jsonl files
hold JSON, all others columns.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from bertgpt.data.sources.files import JSON_SUFFIXES, suffix_of
from bertgpt.io.files import read_json_lines, read_lines
from bertgpt.types import DataWarning, JsonObject, UserError, WarningKind

Scheme = Literal["bio", "iob1", "bioes", "plain"]

# First letters of tags: of those that begin an entity, continue one, continue and end one, and are a whole entity.
LETTERS = {
    "bio": ("B", "I", "", ""),
    "iob1": ("B", "I", "", ""),
    "bioes": ("B", "IM", "EL", "SU"),  # BIOES, BMES, BILOU and mixtures of them
}
ORPHANS = "tags continue an entity that is not open and are read as its beginning"
_NOT_A_WORD = re.compile(r"\d+[-.]\d+")  # CoNLL-U: a contraction of the words 3-4, or an empty node 5.1


class Sentence(NamedTuple):
    """Words with a tag each, and their source."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    """as many as words; or none"""
    file: str
    lines: tuple[int, ...]
    """of each word"""
    predicate: int | None = None
    """index of the word whose arguments the tags are (semantic roles)"""
    document: int | None = None
    """number of the document in the file, where -DOCSTART- lines separate documents"""
    overlaps: int = 0
    """number of spans that were skipped because they overlap an earlier one"""

    def place(self, word: int) -> str:
        """file:line of a word."""
        return f"{self.file}:{self.lines[word]}"


class WarningCounter:
    """Counts what is wrong with data, by kind, and remembers where each was seen first."""

    def __init__(self):
        self.found: dict[tuple[WarningKind, str], tuple[int, str]] = {}

    def add(self, kind: WarningKind, what: str, place: str, count: int = 1) -> None:
        """Counts `what`, such as “words are skipped”, seen `count` times at `place`."""
        before, first = self.found.get((kind, what), (0, place))
        self.found[kind, what] = before + count, first

    @property
    def warnings(self) -> tuple[DataWarning, ...]:
        """A warning for each kind of problem."""
        return tuple(
            DataWarning(kind, count, f"{count:,} {what}; the first at {place}")
            for (kind, what), (count, place) in self.found.items()
            if count
        )


def is_json(path: str) -> bool:
    """Whether a file holds JSON lines, one sentence each, which its suffix decides; others hold columns."""
    return suffix_of(path) in JSON_SUFFIXES


# -- files ------------------------------------------------------------------------------------------------------------


def read_columns(path: str, columns: Sequence[str], word: str, tag: str) -> Iterator[Sentence]:
    """The sentences of a file with a word in each line and a blank line between sentences.

    Columns are separated by tabs, or in lines without a tab by spaces. A line whose first column is -DOCSTART- begins
    a document. In .conllu files, comments and lines that are not words are skipped.

    Args:
      path: a resolved file, also .gz or .zst.
      columns: names of the columns; none: the word is in the first, the tag in the last; in .conllu files they are in
        FORM and UPOS.
      word: name of the words' column.
      tag: name of the tags' column.

    Raises:
      UserError: a row has more or fewer columns than the others, there is no such column, or no sentence at all.
    """
    conllu = suffix_of(path) == ".conllu"
    width, since = len(columns), 0
    if columns:
        at, of = _column(path, columns, word), _column(path, columns, tag)
    else:
        at, of = (1, 3) if conllu else (0, -1)
    rows: list[tuple[str, str, int]] = []
    document, empty = None, True
    for number, line in enumerate(read_lines(path), start=1):
        line = line.strip(" \t\r\n")  # only these: an ideographic space can be a word
        if not line or re.split("[ \t]", line, maxsplit=1)[0] == "-DOCSTART-":
            if rows:
                yield _from_rows(path, rows, document)
            rows, empty = [], empty and not rows
            document = (document or 0) + 1 if line else document
            continue
        cells = line.split("\t") if "\t" in line else re.split(" +", line)
        if conllu and (line.startswith("#") or _NOT_A_WORD.fullmatch(cells[0])):
            continue
        if len(cells) != (width or len(cells)):
            other = f"line {since} has {width}" if since else f"{width} are named: {', '.join(columns)}"
            raise UserError(f"{path}:{number}: has {len(cells)} column{'s' * (len(cells) > 1)}, {other}")
        if len(cells) <= max(at, of, 1):
            raise UserError(f"{path}:{number}: {line[:40]!r} must be a word and its tag, separated by a tab or a space")
        width, since = len(cells), since or (0 if columns else number)
        rows.append((cells[at], cells[of], number))
    if rows:
        yield _from_rows(path, rows, document)
    elif empty:
        raise UserError(f"{path}: has no sentences")


def _column(path: str, columns: Sequence[str], name: str) -> int:
    if name not in columns:
        raise UserError(f"{path}: no column {name!r} among columns={', '.join(columns)}")
    return list(columns).index(name)


def _from_rows(path: str, rows: list[tuple[str, str, int]], document: int | None) -> Sentence:
    words, tags, lines = zip(*rows, strict=True)
    return Sentence(words, tags, path, lines, document=document)


def read_token_lists(
    path: str, tokens: str, tags: str, predicate: str | None = None, frames: str | None = None
) -> Iterator[Sentence]:
    """The sentences of a .jsonl file whose records have a list of tokens and one of as many tags.

    Args:
      path: a resolved file.
      tokens: field of the tokens.
      tags: field of the tags.
      predicate: field with the index of the token that the tags are about; None: they are about none.
      frames: field with a list of objects that have tags and predicate, each of which yields a sentence; None: the
        record itself has them. A record with an empty list yields no sentence.

    Raises:
      UserError: a field is missing or of another type, or the lists differ in length.
    """
    for line, record in read_json_lines(path):
        place = f"{path}:{line}"
        words = _strings(place, record, tokens)
        about = [record] if frames is None else _value(place, record, frames)
        if not isinstance(about, list) or not all(isinstance(frame, dict) for frame in about):
            raise UserError(f"{place}: {frames!r} must be a list of objects")
        for frame in about:
            names = _strings(place, frame, tags)
            if len(names) != len(words):
                raise UserError(f"{place}: {len(words)} items in {tokens!r}, but {len(names)} in {tags!r}")
            at = None if predicate is None else _value(place, frame, predicate)
            if at is not None and not (type(at) is int and 0 <= at < len(words)):
                raise UserError(
                    f"{place}: {predicate!r} is {at!r:.60}, not the number of a token from 0 to {len(words) - 1}"
                )
            yield Sentence(words, names, path, (line,) * len(words), at)


def read_spans(path: str, text: str, spans: str) -> Iterator[Sentence]:
    """The sentences of a .jsonl file with spans of characters; each character except spaces is a word (CLUENER).

    Args:
      path: a resolved file.
      text: field of the text.
      spans: field with {kind: {the entity: [[first, last], …]}}, numbers of characters from 0, both included.

    Raises:
      UserError: a field is missing or of another type, or the text of a span is not its key.
    """
    for line, record in read_json_lines(path):
        place = f"{path}:{line}"
        content = _value(place, record, text)
        if not isinstance(content, str):
            raise UserError(f"{place}: {text!r} must be a string")
        tags, overlaps = ["O"] * len(content), 0
        for kind, first, last in _spans(place, _value(place, record, spans), content):
            if any(tag != "O" for tag in tags[first : last + 1]):
                overlaps += 1
                continue
            tags[first : last + 1] = [f"B-{kind}"] + [f"I-{kind}"] * (last - first)
        kept = [i for i, character in enumerate(content) if not character.isspace()]
        words, names = tuple(content[i] for i in kept), tuple(tags[i] for i in kept)
        yield Sentence(words, names, path, (line,) * len(kept), overlaps=overlaps)


def _spans(place: str, kinds: object, text: str) -> Iterator[tuple[str, int, int]]:
    try:
        found = [
            (kind, first, last, entity)
            for kind, entities in kinds.items()
            for entity, places in entities.items()
            for first, last in places
        ]
    except (AttributeError, TypeError, ValueError):
        raise UserError(f"{place}: spans must read {{kind: {{entity: [[first, last], …]}}}}") from None
    for kind, first, last, entity in found:
        if not (type(first) is type(last) is int and 0 <= first <= last) or text[first : last + 1] != entity:
            raise UserError(f"{place}: the span [{first}, {last}] is not {entity!r:.60}")
        yield kind, first, last


def _value(place: str, record: JsonObject, name: str) -> object:
    if name not in record:
        raise UserError(f"{place}: no field {name!r}; it has {', '.join(map(repr, record)) or 'none'}")
    return record[name]


def _strings(place: str, record: JsonObject, name: str) -> tuple[str, ...]:
    value = _value(place, record, name)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UserError(f"{place}: {name!r} must be a list of strings")
    return tuple(value)


# -- schemes ----------------------------------------------------------------------------------------------------------


def to_bio(sentence: Sentence, scheme: Scheme, counter: WarningCounter) -> Sentence:
    """The sentence with its tags in BIO; those of the scheme `plain`, such as parts of speech, are not changed.

    A tag that continues an entity where none of its type is open begins one, and is counted. In IOB1 this is the rule:
    there, B is only for an entity right after another of its type.

    Raises:
      UserError: a tag that the scheme does not have.
    """
    if scheme == "plain":
        return sentence
    opens, continues, closes, single = LETTERS[scheme]
    tags, before = [], ""  # the type of the open entity
    for number, tag in enumerate(sentence.tags):
        letter, dash, kind = tag.partition("-")
        if tag == "O":
            tags.append(tag)
            before = ""
            continue
        if not dash or not kind or len(letter) != 1 or letter not in opens + continues + closes + single:
            letters = ", ".join(f"{known}-…" for known in opens + continues + closes + single)
            raise UserError(
                f"{sentence.place(number)}: tag {tag!r:.60} is not O, {letters}"
                f" (scheme {scheme!r}; 'plain' takes any tag)"
            )
        inside = letter in continues + closes
        if inside and kind != before and scheme != "iob1":
            counter.add("repaired", ORPHANS, sentence.place(number))
        tags.append(f"I-{kind}" if inside and kind == before else f"B-{kind}")
        before = "" if letter in closes + single else kind
    return sentence._replace(tags=tuple(tags))


def repair(tags: Sequence[str]) -> list[str]:
    """BIO tags, for example predicted ones, in which an I that continues nothing of its type becomes B."""
    repaired: list[str] = []
    for tag in tags:
        before = repaired[-1] if repaired else "O"
        goes_on = before[:2] in ("B-", "I-") and before[2:] == tag[2:]
        repaired.append(f"B-{tag[2:]}" if tag.startswith("I-") and not goes_on else tag)
    return repaired


def entities(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """(type, first word, one past the last) of each entity in BIO tags."""
    found: list[tuple[str, int, int]] = []
    for number, tag in enumerate(repair(tags)):
        if tag.startswith("B-"):
            found.append((tag[2:], number, number + 1))
        elif tag.startswith("I-"):
            kind, first, _ = found[-1]
            found[-1] = kind, first, number + 1
    return found
