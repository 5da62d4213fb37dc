"""Questions with contexts, from files: SQuAD's JSON, or one question a row; and where an answer stands in a text."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from bertgpt.data.sources.files import JSON_SUFFIXES, resolve, suffix_of
from bertgpt.data.sources.text import Record, read_json_lines, read_records, record_of
from bertgpt.io import open_file
from bertgpt.types import UserError


class Span(NamedTuple):
    """A piece text[start:end] of a text, in characters."""

    start: int
    end: int


def read_json(path: str) -> Any:
    """The content of a .json file.

    Raises:
      UserError: it is not JSON, or not UTF-8.
    """
    with open_file(path) as file:
        try:
            return json.loads(file.read().decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: is not valid UTF-8 (byte 0x{error.object[error.start]:02x})") from None
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{error.lineno}: not valid JSON: {error.msg} at column {error.colno}") from None


def read_questions(path: str, columns: Sequence[str], answers: str) -> Iterator[Record]:
    """The questions of all files that `path` names, each as a record.

    In .json files, of SQuAD's form or a list of objects, `line` is the number of the question; its fields are
    `question`, `context` and `id`. Where the field `answers` is no plain text, its texts are in `lists` under that
    name, and their starts under `answers`.start; an unanswerable question has none.

    Raises:
      UserError: as `read_records`; a .json file of another form.
    """
    for file in resolve(path):
        suffix = suffix_of(file)
        if suffix == ".json":
            for number, values in enumerate(_questions_of(file, answers), start=1):
                yield _record(values, file, number, answers)
        elif suffix in JSON_SUFFIXES:
            for line, values in read_json_lines(file):
                yield _record(values, file, line, answers)
        else:
            yield from read_records(file, columns)


def _questions_of(path: str, answers: str) -> Iterator[dict[str, Any]]:
    content = read_json(path)
    if isinstance(content, dict) and isinstance(content.get("data"), list):
        content = content["data"]
        if content and isinstance(content[0], dict) and "paragraphs" in content[0]:
            yield from _squad(path, content, answers)
            return
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
        raise UserError(f'{path}: must be {{"data": [...]}} of SQuAD\'s form, or a list of objects, one a question')
    yield from content


def _squad(path: str, articles: list[Any], answers: str) -> Iterator[dict[str, Any]]:
    number = 0
    for article in articles:
        for paragraph in _part(article, "paragraphs", f"{path}: after question {number}"):
            for item in _part(paragraph, "qas", f"{path}: after question {number}"):
                number += 1
                if not isinstance(item, dict):
                    raise UserError(f"{path}:{number}: must be an object with a question, not {str(item)[:40]!r}")
                values = {name: item.get(name) for name in ("id", "question")}
                impossible = item.get("is_impossible", False)  # such questions may list plausible answers
                found = [] if impossible else _part(item, "answers", f"{path}:{number}")
                yield values | {"context": paragraph.get("context"), "title": article.get("title"), answers: found}


def _part(values: Any, name: str, where: str) -> list[Any]:
    part = values.get(name) if isinstance(values, dict) else None
    if not isinstance(part, list):
        raise UserError(f"{where}: there is no list {name!r}")
    return part


def _record(values: dict[str, Any], file: str, line: int, answers: str) -> Record:
    record = record_of(values, file, line)
    if answers not in record.other:
        return record._replace(lists={})
    texts, starts = _answers(values[answers], f"{file}:{line}: {answers!r}")
    other = {name: what for name, what in record.other.items() if name != answers}
    return record._replace(other=other, lists={answers: texts, f"{answers}.start": starts})


def _answers(value: Any, where: str) -> tuple[list[str], list[str]]:
    """(texts, starts or "") of [{"text", "answer_start"}, …], {"text": […], "answer_start": […]}, [text, …] or null."""
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        texts = value["text"]
        starts = value.get("answer_start") or [""] * len(texts)
    else:
        items = [value] if isinstance(value, dict) else value or []
        items = [{"text": item} if isinstance(item, str) else item for item in items]
        if not all(isinstance(item, dict) for item in items):
            raise UserError(f"{where} must hold texts, or objects with text and answer_start")
        texts, starts = [item.get("text") for item in items], [item.get("answer_start", "") for item in items]
    if len(texts) != len(starts) or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where} must hold texts, or objects with text and answer_start")
    return list(texts), [str(start) for start in starts]


def find_answer(context: str, answer: str, start: int | None = None) -> Span | None:
    """Where an answer stands in its context: at `start`; else the occurrence nearest to it, or the first one.

    Whole words come before parts of words; what stands there in exactly these characters before what differs in case,
    spaces and punctuation alone, as “two-thirds” and “two - thirds” do. None: nowhere.
    """
    answer = answer.strip()
    if not answer:
        return None
    if start is not None and context.startswith(answer, start):
        return Span(start, start + len(answer))
    exact = re.escape(answer)
    loose = _loose(answer)
    for pattern, flags in ((rf"(?<!\w){exact}(?!\w)", 0), (exact, 0), (rf"(?<!\w){loose}(?!\w)", re.IGNORECASE)):
        found = [Span(*match.span()) for match in re.finditer(pattern, context, flags)]
        if found:
            return found[0] if start is None else min(found, key=lambda span: abs(span.start - start))
    return None


def _loose(answer: str) -> str:
    """A pattern for an answer that differs from the text in spaces and in the punctuation between and around words.

    Signs of numbers and at the ends of words other than plain punctuation, as in 1.5, -5 and C++, must be there.
    """
    core = answer.strip(" .,;:!?'\"()[]“”‘’") or answer
    parts = re.split(r"([\W_]+)", core)  # words and, at odd places, what stands between them
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
