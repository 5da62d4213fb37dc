"""Questions with contexts from files: SQuAD's own format, or records; and where an answer occurs in a text."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bertgpt.data.sources.files import JSON_SUFFIXES, suffix_of
from bertgpt.data.sources.text import Record, read_records, record_of
from bertgpt.io.files import open_file, parse_json, read_json_lines
from bertgpt.types import JsonObject, UserError


class Span(NamedTuple):
    """The part text[start:end] of a text, in characters."""

    start: int
    end: int


class Question(NamedTuple):
    """A question about a text."""

    question: str
    context: str
    answers: tuple[str, ...] = ()
    """correct answers, each as good as the others; none if the context does not answer the question"""
    span: Span | None = None
    """where one of them occurs in the context"""


def read_json(path: str) -> object:
    """The content of a .json file of any size, also .gz, .zst or a URL.

    Raises:
      UserError: as `open_file` and `parse_json`.
    """
    with open_file(path) as file:
        return parse_json(path, file.read())


def read_questions(path: str, columns: Sequence[str], answers: str, json_format: str | None) -> Iterator[Record]:
    """The questions of one file, each as a record.

    Where the field `answers` is no plain text, its texts are in `lists` under that name, and their starts under
    `answers`.start; an unanswerable question has none. The `line` of a record of a .json file is its number.

    Args:
      path: a resolved file.
      columns: names of the columns of a table without a header row.
      answers: name of the field with the answers.
      json_format: what .json files hold: "squad", {"data": [articles]}, whose questions get the fields `question`,
        `context` and `id`; "records", a list of objects, or {"data": [objects]}; None: "squad" where the file is an
        object, "records" where it is a list.

    Raises:
      UserError: as `read_records`; a .json file of another format.
    """
    suffix = suffix_of(path)
    if suffix == ".json":
        for number, values in enumerate(_questions_of(path, answers, json_format), start=1):
            yield _record(values, path, number, answers)
    elif suffix in JSON_SUFFIXES:
        for line, values in read_json_lines(path):
            yield _record(values, path, line, answers)
    else:
        yield from read_records(path, columns)


def _questions_of(path: str, answers: str, json_format: str | None) -> Iterator[JsonObject]:
    content = read_json(path)
    kind = json_format or ("squad" if isinstance(content, dict) else "records")
    items = content.get("data") if isinstance(content, dict) else content
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise UserError(f'{path}: must be {{"data": [...]}} in SQuAD\'s format, or a list of objects, one a question')
    yield from _squad(path, items, answers) if kind == "squad" else items


def _squad(path: str, articles: list[object], answers: str) -> Iterator[JsonObject]:
    number = 0
    for article in articles:
        for paragraph in _part(article, "paragraphs", f"{path}: after question {number}"):
            for item in _part(paragraph, "qas", f"{path}: after question {number}"):
                number += 1
                if not isinstance(item, dict):
                    raise UserError(f"{path}:{number}: must be an object with a question, not {str(item)[:40]!r}")
                values = {name: item.get(name) for name in ("id", "question")}
                found = [] if is_impossible(item, f"{path}:{number}") else _part(item, "answers", f"{path}:{number}")
                yield values | {"context": paragraph.get("context"), "title": article.get("title"), answers: found}


def is_impossible(values: JsonObject, where: str) -> bool:
    """Whether a question is marked as unanswerable; such questions may list plausible answers.

    Raises:
      UserError: `is_impossible` is neither true nor false.
    """
    found = values.get("is_impossible", False)
    if not isinstance(found, bool):
        raise UserError(f"{where}: 'is_impossible' is {found!r:.60}; it must be true or false, without quotes")
    return found


def _part(values: object, name: str, where: str) -> list[object]:
    part = values.get(name) if isinstance(values, dict) else None
    if not isinstance(part, list):
        raise UserError(f"{where}: there is no list {name!r}; if the file holds records, set json_format to records")
    return part


def _record(values: JsonObject, file: str, line: int, answers: str) -> Record:
    record = record_of(values, file, line)
    if is_impossible(values, f"{file}:{line}") and answers in values:
        fields = {name: value for name, value in record.fields.items() if name != answers}
        return record._replace(fields=fields, lists={answers: [], f"{answers}.start": []})
    if answers not in record.other:
        return record._replace(lists={})
    texts, starts = _answers(values[answers], f"{file}:{line}: {answers!r}")
    other = {name: what for name, what in record.other.items() if name != answers}
    kinds = {name: what for name, what in record.kinds.items() if name != answers}
    return record._replace(other=other, lists={answers: texts, f"{answers}.start": starts}, kinds=kinds)


def _answers(value: object, where: str) -> tuple[list[str], list[str]]:
    """(texts, starts or "") of [{"text", "answer_start"}, …], {"text": […], "answer_start": […]}, [text, …] or null."""
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        texts = value["text"]
        starts = value.get("answer_start") or [""] * len(texts)
    else:
        items = [value] if isinstance(value, dict) else [] if value is None else value
        if not isinstance(items, list):
            raise UserError(f"{where} must hold texts, or objects with text and answer_start")
        items = [{"text": item} if isinstance(item, str) else item for item in items]
        if not all(isinstance(item, dict) for item in items):
            raise UserError(f"{where} must hold texts, or objects with text and answer_start")
        texts, starts = [item.get("text") for item in items], [item.get("answer_start", "") for item in items]
    if not isinstance(starts, list) or len(texts) != len(starts) or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where} must hold texts, or objects with text and answer_start")
    return list(texts), ["" if start is None else str(start) for start in starts]


def words_of(text: str) -> set[str]:
    """The different words of a text, in lower case."""
    return set(re.findall(r"\w+", text.lower()))


def find_answer(context: str, answer: str, start: int | None = None) -> Span | None:
    """Where an answer occurs in its context: at `start`; else the occurrence nearest to `start`, or the first one.

    If it does not occur at `start`, but does so when bytes of UTF-8 or units of UTF-16 are counted instead of
    characters, as programs in Go and in JavaScript count them, it is there.

    Whole words are preferred to parts of words; occurrences in exactly these characters to those that differ only in
    case, spaces and punctuation, as “two-thirds” and “two - thirds” do.

    Args:
      context: the text.
      answer: the answer.
      start: the character at which it is said to start; None: not known.

    Returns:
      The span, or None if the answer does not occur.
    """
    answer = answer.strip()
    if not answer:
        return None
    for place in () if start is None else _starts(context, start):
        if context.startswith(answer, place):
            return Span(place, place + len(answer))
    exact = re.escape(answer)
    loose = _loose(answer)
    for pattern, flags in ((rf"(?<!\w){exact}(?!\w)", 0), (exact, 0), (rf"(?<!\w){loose}(?!\w)", re.IGNORECASE)):
        found = [Span(*match.span()) for match in re.finditer(pattern, context, flags)]
        if found:
            return found[0] if start is None else min(found, key=lambda span: abs(span.start - start))
    return None


def _starts(context: str, start: int) -> Iterator[int]:
    """The start, and the characters at which it lies if it counts bytes of UTF-8 or units of UTF-16."""
    yield start
    for encoding, unit in (("utf-8", 1), ("utf-16-le", 2)):
        with contextlib.suppress(UnicodeDecodeError):  # it lies inside a character
            yield len(context.encode(encoding)[: start * unit].decode(encoding))


def _loose(answer: str) -> str:
    """A pattern for an answer that may differ from the text in spaces and in punctuation between and around words.

    Signs in numbers, and signs at the ends of words other than plain punctuation, must match, as in 1.5, -5 and C++.
    """
    core = answer.strip(" .,;:!?'\"()[]“”‘’") or answer
    parts = re.split(r"([\W_]+)", core)  # words and, at odd indices, what separates them
    pattern = re.escape(parts[0])
    for gap, word in zip(parts[1::2], parts[2::2], strict=True):
        signs = [re.escape(sign) for sign in gap if not sign.isspace()]
        if parts[0] and word and not (parts[0][-1].isdigit() or word[0].isdigit()):
            pattern += r"[\W_]+"
        else:
            pattern += r"\s*".join([*([""] if parts[0] else []), *signs, *([""] if word else [])]) if signs else r"\s+"
        pattern += re.escape(word)
        parts[0] = word
    return pattern
