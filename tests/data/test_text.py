"""Readers: every format round trip, and every bad file refused in one line that says where."""

import gzip
import json
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zstandard
from pyarrow import parquet

from bertgpt.data.sources.text import (
    clean,
    field,
    read_documents,
    read_records,
    sentence_starts,
    sentences,
    split_of,
    strip_markup,
)
from bertgpt.prepare.filters import Preparation, boilerplate_reason, clean_document
from bertgpt.prepare.near_duplicates import signatures
from bertgpt.types import UserError

TEXTS = ["One, “quoted”.", 'Two "here"\tand there', "三 äöü"]


def write(path: Path, content: bytes | str) -> Path:
    data = content.encode() if isinstance(content, str) else content
    compress = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}.get(path.suffix, bytes)
    path.write_bytes(compress(data))
    return path


def write_parquet(path: Path, **columns: Any) -> str:
    parquet.write_table(pa.table(columns), path, row_group_size=2)
    return str(path)


def texts(source: Any, text_field: str = "text") -> list[str]:
    return [document.text for document in read_documents(source, text_field)]


@pytest.mark.parametrize("end", ["", ".gz", ".zst"])
def test_each_format_gives_back_its_texts(tmp_path: Path, end: str):
    quoted = [f'"{text.replace(chr(34), chr(34) * 2)}"' for text in TEXTS]
    contents = {
        "a.txt": "\n\n\n".join(TEXTS) + "\n",
        "a.jsonl": "".join(json.dumps({"text": text, "n": 1}) + "\n\n" for text in TEXTS),
        "a.ndjson": "".join(json.dumps({"text": text}, ensure_ascii=False) + "\r\n" for text in TEXTS),
        "a.csv": "text,n\n" + "".join(f"{text},1\n" for text in quoted),
        "a.tsv": "n\ttext\n" + "".join(f"1\t{text.replace(chr(9), ' ')}\n" for text in TEXTS),
    }
    for name, content in contents.items():
        found = texts(str(write(tmp_path / (name + end), content)))
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
    ("a.jsonl", b'{"text": "x"}\n{"text": "x", "text": "y"}\n', "a.jsonl:2: not valid JSON: .* names a field twice"),
    ("a.csv", b"text,id\rx,1\r", "a.csv:1: not a valid row: a carriage return without a line feed"),
    ("a.jsonl", b'{"body": "x"}\n', "a.jsonl:1: no column 'text'; it has 'body'"),
    ("a.jsonl", b'{"text": "x"}\n{"text": ["x"]}\n', "a.jsonl:2: 'text' is of type list, not text"),
    ("a.jsonl", b'{"text": null}\n', "a.jsonl:1: 'text' is null, not text"),
    ("a.jsonl", b'{"body": [], "n": 1}\n', "a.jsonl:1: no column 'text'; it has 'n', 'body'"),
    ("a.xml", b"<text/>", "a.xml: does not hold records: its name must end in .jsonl"),
    ("a.parquet", b"PAR1", "a.parquet: is not a Parquet file, corrupt or cut short"),
    ("a.parquet", b"", "a.parquet: is not a Parquet file, corrupt or cut short"),
]


@pytest.mark.parametrize("name, content, message", BAD, ids=[m for *_, m in BAD])
def test_bad_files_are_refused_by_name_and_line(tmp_path: Path, name: str, content: bytes, message: str):
    with pytest.raises(UserError, match=message) as caught:
        list(read_documents(str(write(tmp_path / name, content)), "text"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "column",
    [
        pa.array(TEXTS),
        pa.array(TEXTS, pa.large_string()),
        pa.array(TEXTS).dictionary_encode(),
        pa.array(TEXTS, pa.string_view()),
    ],
    ids=lambda column: str(column.type),
)
def test_parquet_gives_back_its_texts_and_their_rows(tmp_path: Path, column: pa.Array):
    path = write_parquet(tmp_path / "a.parquet", n=[1, 2, 3], text=column)
    assert [(d.text, d.file, d.line) for d in read_documents(path, "text")] == [
        (text, path, row) for row, text in enumerate(TEXTS, start=1)
    ]


@pytest.mark.parametrize("value", [5, True, 1.5, None, ["x"], float("nan")])
def test_a_document_that_is_no_text_is_refused_with_its_line(tmp_path: Path, value: object):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "x"}) + "\n" + json.dumps({"text": value}) + "\n")
    for source in (str(path), [{"text": "x"}, {"text": value}]):
        with pytest.raises(UserError, match=r"(a\.jsonl|<items>):2: 'text' is .*, not text"):
            list(read_documents(source, "text"))


def test_parquet_records_have_the_same_fields_as_those_of_json(tmp_path: Path):
    path = write_parquet(tmp_path / "a.parquet", text=["x", None], label=[1, 0], good=[True, False], list=[[1], [2]])
    first, second = read_records(path)
    assert first.fields == {"text": "x", "label": "1", "good": "true"} and first.line == 1
    assert second.fields == {"label": "0", "good": "false"} and second.line == 2
    with pytest.raises(UserError, match=r"a.parquet:1: 'list' is of type list<.*>, not text"):
        field(first, "list")
    with pytest.raises(UserError, match="a.parquet:2: 'text' is null, not text"):
        field(second, "text")
    with pytest.raises(UserError, match="a.parquet:1: no column 'body'; it has 'text', 'label', 'good', 'list'"):
        field(first, "body")


def test_a_parquet_file_without_texts_is_refused(tmp_path: Path):
    raw = pa.array([b"fine"] * 1499 + [b"b\xe4d"], pa.binary())  # beyond what is decoded at once
    invalid = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())
    for columns, message in [
        ({"body": ["x"], "n": [1]}, "a.parquet: no column 'text'; it has 'body', 'n'"),
        ({"text": [1, 2]}, "a.parquet: column 'text' is of type int64, not string"),
        ({"text": [["x"]]}, "a.parquet: column 'text' is of type list<.*>, not string"),
        ({"text": [b"x"]}, "a.parquet: column 'text' is of type binary, not string"),
        ({"text": ["x", "y", "z", None]}, "a.parquet:4: 'text' is null, not text"),
        ({"text": invalid}, r"a.parquet:1500: is not valid UTF-8 \(byte 0xe4\)"),
        ({"text": pa.array([], pa.string())}, "a.parquet: has no records"),
    ]:
        with pytest.raises(UserError, match=message):
            texts(write_parquet(tmp_path / "a.parquet", **columns))


def test_a_package_that_a_format_needs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files = {"pyarrow": "a.parquet", "zstandard": "a.txt.zst"}
    write_parquet(tmp_path / "a.parquet", text=TEXTS)
    write(tmp_path / "a.txt.zst", "text")
    for package, name in files.items():
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(UserError, match=rf"{name}: {package} is not installed; pip install 'bertgpt\[text\]'"):
            texts(str(tmp_path / name))


def test_documents_in_memory_are_texts_or_have_a_field_of_text():
    def again():
        return ({"body": text, "n": 1} for text in TEXTS)

    assert texts(TEXTS) == texts(iter(TEXTS)) == texts(again, "body") == texts(again, "body") == TEXTS
    assert [document.line for document in read_documents(TEXTS, "text")] == [1, 2, 3]


@pytest.mark.parametrize(
    "items, message",
    [
        ([], "<items>: has no documents"),
        (["x", None], "<items>:2: 'text' is null, not text"),
        (["x", b"x"], "<items>:2: 'text' is of type bytes, not text"),
        (["x", {"body": "x"}], "<items>:2: no column 'text'; it has 'body'"),
        ([{"text": ["x"]}], "<items>:1: 'text' is of type list, not text"),
        (["x", "\ud800"], "<items>:2: 'text' has half of a surrogate pair"),
        ({"text": "x"}, "must be a path or an iterable of texts, not a dict"),
    ],
)
def test_what_is_no_text_in_memory_is_refused_by_its_number(items: Any, message: str):
    with pytest.raises(UserError, match=message):
        texts(lambda: items)


LONG = {  # the second entry of each has 100 bytes: its line, its document or its field
    "a.txt": b"one\n\n" + b"x" * 99 + b"\n",
    "b.txt": b"one\n\n" + b"x" * 100,
    "document.txt": b"one\n\n" + b"1234\n" * 20,
    "a.jsonl": b'{"text": "one"}\n{"text": "%s"}' % (b"x" * 88),
    "a.tsv": b"text\n" + b"x" * 99 + b"\n",
    "a.csv": b"text\n" + b"x" * 100,
    "field.csv": b'text\n"' + b"1234\n" * 20 + b'"',
}


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("name", LONG)
def test_what_is_too_long_is_refused_by_its_line(tmp_path: Path, name: str, compression: str):
    path = str(write(tmp_path / (name + compression), LONG[name]))
    assert len(list(read_documents(path, "text", 100))) in (1, 2)
    with pytest.raises(UserError) as caught:
        list(read_documents(path, "text", 99))
    reason = {
        "document.txt": "the document has more than 99 bytes, the limit; a blank line ends a document",
        "field.csv": "not a valid row: field larger than field limit (99)",
    }
    line = 3 if ".txt" in name else 2
    assert str(caught.value) == f"{path}:{line}: {reason.get(name, 'the line has more than 99 bytes, the limit')}"


def test_no_more_than_the_limit_of_a_line_is_held_in_memory(tmp_path: Path):
    with open(tmp_path / "a.txt", "wb") as file:
        file.write(b"short\n")
        file.truncate(1 << 40)  # a sparse file: a line of a terabyte
    tracemalloc.start()
    with pytest.raises(UserError, match=r"a.txt:2: the line has more than 1,000,000 bytes, the limit"):
        list(read_documents(str(tmp_path / "a.txt"), "text", 1_000_000))
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_what_is_compared_has_single_spaces_and_no_white_space_at_its_ends():
    assert clean("  a \t b\n", strip_html=False) == "a b"
    assert clean("a<br /><br>b &amp; <i>c</i>", strip_html=True) == "a\n\nb & c"
    assert clean("1 < 2 and 3 > 2", strip_html=True) == "1 < 2 and 3 > 2"


def test_markup_is_removed_and_nothing_else():
    assert strip_markup(" a  b<br/>\tc<P >d</P > &lt;x&gt; &#0065;&#x42;") == " a  b\n\tcd\n <x> AB"
    assert strip_markup("a<!-- b <i> --> c --> d <!-- e <i>f</i>") == "a c --> d <!-- e f"
    assert strip_markup("<!--> a -->b<!-->c") == "b<!-->c"
    assert strip_markup(f"&#{'9' * 5000};") == "\N{REPLACEMENT CHARACTER}"  # Python refuses such numbers


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


def test_sentences_begin_at_characters_of_the_text():
    text = "  One. Two!\r\n\r\n\tThree\u00a0four.\u2003Five 3.5. 好。」 不。\n "
    starts = sentence_starts(text)
    assert [text[i] for i in starts] == ["O", "T", "T", "F", "好", "不"]
    assert sentences(text) == ["One.", "Two!", "Three\u00a0four.", "Five 3.5.", "好。」", "不。"]
    assert sentence_starts("") == sentence_starts(" \n\t") == []
    assert sentence_starts("a\rb\nc") == [0, 2, 4]


@pytest.mark.parametrize(
    "unit",
    [
        ".", "。", "?!", '."', "a. ", "U.", "A.\u00a0", "mr. ", "… ", "x", " ", "\n", "\r", "\u200b.",
        "<", "<!--", "<!-- ", "-->", "<a", "</", "<br ", "</p ", "&", "&#", "&#1", "&amp", "</a </a",
    ],
)  # fmt: skip
def test_any_text_takes_linear_time(unit: str):
    """A quadratic rule takes minutes."""
    text = unit * (50_000 // len(unit))
    begin = time.process_time()
    assert "".join("".join(sentences(text)).split()) == "".join(text.split())
    clean(text, strip_html=True)
    clean_document(text, Preparation(strip_html=True, remove_control=True, normalize="nfkc"))
    boilerplate_reason(text)
    signatures([text])
    assert time.process_time() - begin < 3


def test_the_split_is_a_function_of_the_text_with_the_asked_for_shares():
    splits = [split_of(f"text {i}", 0.1, 0.2) for i in range(10_000)]
    assert splits == [split_of(f"text {i}", 0.1, 0.2) for i in range(10_000)]
    assert abs(splits.count("validation") - 1000) < 150 and abs(splits.count("test") - 2000) < 200
