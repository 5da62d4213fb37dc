"""Readers: every format round trip, and every bad file refused in one line that says where."""

import gzip
import json
from pathlib import Path

import pytest

from bertgpt.config import UserError
from bertgpt.data.text import clean, read_documents, read_records, resolve, sentences, split_of

TEXTS = ["One, “quoted”.", 'Two "here"\tand there', "三 äöü"]


def write(path: Path, content: bytes | str) -> Path:
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("end", ["", ".gz"])
def test_each_format_gives_back_its_texts(tmp_path: Path, end: str):
    quoted = [f'"{text.replace(chr(34), chr(34) * 2)}"' for text in TEXTS]
    contents = {
        "a.txt": "\n\n\n".join(TEXTS) + "\n",
        "a.jsonl": "".join(json.dumps({"text": text, "n": 1}) + "\n\n" for text in TEXTS),
        "a.csv": "text,n\n" + "".join(f"{text},1\n" for text in quoted),
        "a.tsv": "n\ttext\n" + "".join(f"1\t{text.replace(chr(9), ' ')}\n" for text in TEXTS),
    }
    for name, content in contents.items():
        found = [document.text for document in read_documents(str(write(tmp_path / (name + end), content)), "text")]
        assert found == [text.replace("\t", " ") if name == "a.tsv" else text for text in TEXTS], name


def test_documents_know_their_place(tmp_path: Path):
    write(tmp_path / "a.txt", "one\ntwo\n\n\nthree\n")
    write(tmp_path / "b.csv", 'text\n"two\nlines"\nnext\n')
    found = [(d.text, Path(d.file).name, d.line) for d in read_documents(str(tmp_path), "text")]
    assert found == [("one\ntwo", "a.txt", 1), ("three", "a.txt", 5), ("two\nlines", "b.csv", 2), ("next", "b.csv", 4)]


def test_json_values_become_strings(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", '{"text": "x", "label": 1, "good": true, "none": null, "list": [1]}\n')
    assert next(read_records(str(path))).fields == {"text": "x", "label": "1", "good": "true"}


def test_a_byte_order_mark_is_dropped(tmp_path: Path):
    path = write(tmp_path / "a.csv", b"\xef\xbb\xbftext\nhello\n")
    assert next(read_records(str(path))).fields == {"text": "hello"}


BAD = [
    ("a.txt", b"", "a.txt: has no documents"),
    ("a.txt", b"\n \n\n", "a.txt: has no documents"),
    ("a.csv", b"text,label\n", "a.csv: has no records"),
    ("a.jsonl", b"\n", "a.jsonl: has no records"),
    ("a.txt", b"abc\0def", "a.txt: is binary, not text"),
    ("a.txt", b"fine\nb\xe4d\n", r"a.txt:2: is not valid UTF-8 \(byte 0xe4\)"),
    ("a.csv", b"id,body\n1,x\n", "a.csv:2: no column 'text'; it has 'id', 'body'"),
    ("a.csv", b"text,id\nx\n", "a.csv:2: has 1 columns, the header has 2"),
    ("a.csv", b"text,text\nx,y\n", "a.csv:1: the header names a column twice"),
    ("a.csv", b'text\n"never closed\n', "a.csv:2: not a valid row"),
    ("a.jsonl", b'{"text": "x"}\n{"text": \n', "a.jsonl:2: not valid JSON"),
    ("a.jsonl", b'["x"]\n', "a.jsonl:1: must be a JSON object"),
    ("a.jsonl", b'{"body": "x"}\n', "a.jsonl:1: no column 'text'; it has 'body'"),
    ("a.parquet", b"PAR1", "a.parquet: does not hold records"),
]


@pytest.mark.parametrize("name, content, message", BAD, ids=[m for *_, m in BAD])
def test_bad_files_are_refused_by_name_and_line(tmp_path: Path, name: str, content: bytes, message: str):
    with pytest.raises(UserError, match=message) as caught:
        list(read_documents(str(write(tmp_path / name, content)), "text"))
    assert "\n" not in str(caught.value)


def test_a_damaged_archive_is_refused(tmp_path: Path):
    whole = gzip.compress(b"some text\n" * 1000)
    for content in (whole[:-20], b"not gzip at all", whole[:30] + b"xxxx" + whole[34:]):
        (tmp_path / "a.txt.gz").write_bytes(content)
        with pytest.raises(UserError, match=r"a.txt.gz.*(corrupt|cut short|UTF-8|binary)"):
            list(read_documents(str(tmp_path / "a.txt.gz"), "text"))


def test_missing_files_directories_and_packages_are_refused(tmp_path: Path):
    for path, message in [
        (str(tmp_path / "no.txt"), "no.txt: no such file or directory"),
        (str(tmp_path / "*.csv"), "no such file or directory"),
        (str(tmp_path), "no file in this directory ends in .txt, .jsonl"),
        ("package:no_such_package/x.csv", "package 'no_such_package' is not installed; pip install no_such_package"),
        ("package:json/x.csv", "package:json/x.csv: no such file or directory"),
    ]:
        with pytest.raises(UserError, match=message):
            resolve(path)


def test_cleaning_collapses_spaces_and_strips_html():
    assert clean("  a \t b\n", strip_html=False) == "a b"
    assert clean("a<br /><br>b &amp; <i>c</i>", strip_html=True) == "a\n\nb & c"
    assert clean("1 < 2 and 3 > 2", strip_html=True) == "1 < 2 and 3 > 2"


@pytest.mark.parametrize(
    "text, expected",
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("Mr. Smith of the U.S. Army, e.g. Bob. He left.", ["Mr. Smith of the U.S. Army, e.g. Bob.", "He left."]),
        ('He said "Go." Then he left.', ['He said "Go."', "Then he left."]),
        ("Version 3.5 is out. it is small", ["Version 3.5 is out. it is small"]),
        ("first line\nsecond line", ["first line", "second line"]),
        ("好。不好！真的？是", ["好。", "不好！", "真的？", "是"]),
        ("Wait... What?", ["Wait...", "What?"]),
    ],
)
def test_sentences(text: str, expected: list):
    assert sentences(text) == expected


def test_the_split_is_a_function_of_the_text_with_the_asked_for_shares():
    splits = [split_of(f"text {i}", 0.1, 0.2) for i in range(10_000)]
    assert splits == [split_of(f"text {i}", 0.1, 0.2) for i in range(10_000)]
    assert abs(splits.count("validation") - 1000) < 150 and abs(splits.count("test") - 2000) < 200
