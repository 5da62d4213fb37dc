"""Every reader divides its file at line ends alone: other characters that Python takes for line ends are text."""

import json
from pathlib import Path

import pytest

from bertgpt.data.sources.conll import read_columns, read_token_lists
from bertgpt.data.sources.text import read_documents, read_records
from bertgpt.io.files import read_json_lines, read_lines, write_json_lines

ODD = ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\u3000", "\xa0", "\u200b", "\ufeff"]
WORDS = [part for odd in ODD for part in (f"a{odd}b", f"{odd}a", f"a{odd}")]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_records_and_documents_keep_characters_that_look_like_line_ends(end, tmp_path: Path):
    def write(name: str, lines: list[str]) -> str:
        (tmp_path / name).write_bytes("".join(line + end for line in lines).encode())
        return str(tmp_path / name)

    assert list(read_lines(write("lines.txt", WORDS))) == [word + end for word in WORDS]
    for name, separator in (("a.tsv", "\t"), ("a.csv", ",")):
        file = write(name, [f"text{separator}label", *(f"{word}{separator}{word}" for word in WORDS)])
        assert [record.fields for record in read_records(file)] == [{"text": word, "label": word} for word in WORDS]
    file = write("a.jsonl", [json.dumps({"text": word}, ensure_ascii=False) for word in WORDS])
    assert [record.fields["text"] for record in read_records(file)] == WORDS
    assert [document.text for document in read_documents(file, "text")] == WORDS
    file = write("documents.txt", [line for word in WORDS for line in (word, word, "")])
    assert [document.text for document in read_documents(file, "text")] == [word + end + word for word in WORDS]
    file = write("a.conll", [line for word in WORDS for line in (f"{word} O", f"x{word}\tB-{word}", "")])
    sentences = [(sentence.words, sentence.tags) for sentence in read_columns(file, (), "", "")]
    assert sentences == [((word, f"x{word}"), ("O", f"B-{word}")) for word in WORDS]
    file = write("b.jsonl", [json.dumps({"tokens": WORDS, "tags": WORDS}, ensure_ascii=False)])
    assert next(read_token_lists(file, "tokens", "tags")).words == tuple(WORDS)


def test_json_lines_are_read_as_they_were_written(tmp_path: Path):
    values = [{"text": word, word: None} for word in WORDS]
    write_json_lines(tmp_path / "a.jsonl", values)
    assert [value for _, value in read_json_lines(tmp_path / "a.jsonl")] == values
