"""Files of tagged words, and the mistakes in them."""

import gzip
import json
from pathlib import Path

import pytest

from bertgpt.data.sources.conll import (
    Sentence,
    WarningCounter,
    entities,
    read_columns,
    read_spans,
    read_token_lists,
    repair,
    to_bio,
)
from bertgpt.types import UserError


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def columns(path: str, *names: str, word: str = "word", tag: str = "tag") -> list[Sentence]:
    return list(read_columns(path, names, word, tag))


def tagged(*tags: str) -> Sentence:
    return Sentence(tuple("abcdefgh"[: len(tags)]), tags, "f.txt", tuple(range(1, len(tags) + 1)))


CONLL = """-DOCSTART- -X- O O

EU NNP B-NP B-ORG
rejects VBZ B-VP O

Peter NNP B-NP B-PER
-DOCSTART- -X- O O

He PRP B-NP O
"""


def test_blank_lines_end_sentences_and_docstart_documents(tmp_path: Path):
    found = columns(write(tmp_path / "a.txt", CONLL))
    assert [(s.words, s.tags, s.lines, s.document) for s in found] == [
        (("EU", "rejects"), ("B-ORG", "O"), (3, 4), 1),
        (("Peter",), ("B-PER",), (6,), 1),
        (("He",), ("O",), (9,), 2),
    ]


def test_a_word_that_only_begins_like_docstart_is_a_word(tmp_path: Path):
    path = write(tmp_path / "a.txt", "-DOCSTART-\n\n-DOCSTART-x O\n-DOCSTART-\tO\nb\tO\n")
    assert [(s.words, s.document) for s in columns(path)] == [(("-DOCSTART-x",), 1), (("b",), 2)]


def test_columns_are_chosen_by_name(tmp_path: Path):
    path = write(tmp_path / "a.txt", CONLL)
    names = ("word", "pos", "chunk", "entity")
    assert columns(path, *names, tag="pos")[0].tags == ("NNP", "VBZ")
    with pytest.raises(UserError, match="no column 'ner' among columns=word, pos, chunk, entity"):
        columns(path, *names, tag="ner")


def test_tabs_spaces_compression_and_carriage_returns_are_all_the_same(tmp_path: Path):
    plain = columns(write(tmp_path / "a.txt", "New B-LOC\nis O\n\nso O\n"))
    path = tmp_path / "b.bmes.gz"
    path.write_bytes(gzip.compress(b"New\tB-LOC\r\nis  \tO\r\n \r\nso\tO"))
    other = columns(str(path))
    assert [s.tags for s in plain] == [s.tags for s in other]
    assert [s.words for s in other] == [("New", "is  "), ("so",)]


def test_an_ideographic_space_is_a_word(tmp_path: Path):
    assert columns(write(tmp_path / "a.txt", "中 O\n\u3000 O\n"))[0].words == ("中", "\u3000")


def test_conllu_has_comments_and_rows_that_are_no_words(tmp_path: Path):
    text = "# text = im Haus\n1-2\tim\t_\n1\tin\tADP\n2\tdem\tDET\n2.1\tx\tX\n3\tHaus\tNOUN\n"
    (sentence,) = columns(write(tmp_path / "a.conllu", text), "id", "word", "tag")
    assert sentence.words == ("in", "dem", "Haus") and sentence.lines == (3, 4, 6)
    row = "1\tThe\tthe\tDET\tDT\t_\t2\tdet\t_\t_\n"
    (sentence,) = columns(write(tmp_path / "b.conllu", row))  # without names: FORM and UPOS
    assert sentence.words == ("The",) and sentence.tags == ("DET",)


@pytest.mark.parametrize(
    ("text", "names", "message"),
    [
        ("EU NNP B-ORG\nrejects O\n", (), r"a.txt:2: has 2 columns, line 1 has 3"),
        ("EU NNP B-ORG\n", ("word", "tag"), r"a.txt:1: has 3 columns, 2 are named: word, tag"),
        ("EU\n", (), r"a.txt:1: 'EU' must be a word and its tag"),
        ("\n-DOCSTART- O\n\n", (), r"a.txt: has no sentences"),
    ],
)
def test_ragged_rows_are_named_by_file_and_line(tmp_path: Path, text: str, names: tuple, message: str):
    with pytest.raises(UserError, match=message):
        columns(write(tmp_path / "a.txt", text), *names)


def test_lists_of_tokens(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", json.dumps({"tokens": ["a", "b"], "tags": ["O", "B-X"]}))
    assert list(read_token_lists(path, "tokens", "tags")) == [Sentence(("a", "b"), ("O", "B-X"), path, (1, 1))]


def test_each_frame_is_a_sentence_with_its_predicate(tmp_path: Path):
    record = {"tokens": ["he", "came"], "frames": [{"pred": 1, "tags": ["B-A0", "B-V"]}, {"pred": 0, "tags": "OO"}]}
    path = write(tmp_path / "a.jsonl", json.dumps(record | {"frames": record["frames"][:1]}))
    (found,) = read_token_lists(path, "tokens", "tags", "pred", "frames")
    assert found.predicate == 1 and found.tags == ("B-A0", "B-V")
    with pytest.raises(UserError, match=r"a.jsonl:1: 'tags' must be a list of strings"):
        list(read_token_lists(write(tmp_path / "a.jsonl", json.dumps(record)), "tokens", "tags", "pred", "frames"))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"tokens": ["a"]}, r"a.jsonl:1: no field 'tags'; it has 'tokens'"),
        ({"tokens": "a b", "tags": ["O"]}, r"a.jsonl:1: 'tokens' must be a list of strings"),
        ({"tokens": ["a", "b"], "tags": ["O"]}, r"a.jsonl:1: 2 items in 'tokens', but 1 in 'tags'"),
        ({"tokens": ["a"], "tags": ["O"], "pred": 1}, r"a.jsonl:1: 'pred' is 1, not the number of a token"),
    ],
)
def test_bad_lists_are_named_by_file_and_line(tmp_path: Path, record: dict, message: str):
    path = write(tmp_path / "a.jsonl", json.dumps(record))
    with pytest.raises(UserError, match=message):
        list(read_token_lists(path, "tokens", "tags", "pred" if "pred" in record else None))


def test_spans_of_characters_become_tags(tmp_path: Path):
    record = {
        "text": "在台 湾见彭军",
        "label": {"place": {"台 湾": [[1, 3]]}, "name": {"彭军": [[5, 6]], "军": [[6, 6]]}},
    }
    (found,) = read_spans(write(tmp_path / "a.jsonl", json.dumps(record)), "text", "label")
    assert "".join(found.words) == "在台湾见彭军"
    assert found.tags == ("O", "B-place", "I-place", "O", "B-name", "I-name")
    assert found.overlaps == 1 and found.lines[0] == 1


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ({"place": {"台湾": [[0, 1]]}}, r"a.jsonl:1: the span \[0, 1\] is not '台湾'"),
        ([[0, 1, "place"]], r"a.jsonl:1: spans must read"),
    ],
)
def test_spans_that_do_not_fit_are_named(tmp_path: Path, label, message: str):
    path = write(tmp_path / "a.jsonl", json.dumps({"text": "在台湾", "label": label}))
    with pytest.raises(UserError, match=message):
        list(read_spans(path, "text", "label"))


@pytest.mark.parametrize(
    ("scheme", "tags", "expected"),
    [
        ("bio", "O B-A I-A B-A B-B I-B", "O B-A I-A B-A B-B I-B"),
        ("iob1", "I-A I-A B-A I-B O I-B", "B-A I-A B-A B-B O B-B"),
        ("bioes", "B-A I-A E-A S-A O B-B E-B", "B-A I-A I-A B-A O B-B I-B"),
        ("bioes", "B-A M-A E-A U-B B-B L-B", "B-A I-A I-A B-B B-B I-B"),
        ("plain", "NN B-IN I-", "NN B-IN I-"),
    ],
)
def test_schemes_become_bio(scheme: str, tags: str, expected: str):
    counter = WarningCounter()
    assert to_bio(tagged(*tags.split()), scheme, counter).tags == tuple(expected.split())
    assert counter.warnings == ()


@pytest.mark.parametrize(
    ("scheme", "tags", "expected", "count", "first"),
    [
        ("bio", "O I-A I-A I-B", "O B-A I-A B-B", 2, "f.txt:2"),
        ("bioes", "S-A E-A B-A E-A I-A", "B-A B-A B-A I-A B-A", 2, "f.txt:2"),
    ],
)
def test_violations_are_mended_and_counted(scheme: str, tags: str, expected: str, count: int, first: str):
    counter = WarningCounter()
    assert to_bio(tagged(*tags.split()), scheme, counter).tags == tuple(expected.split())
    ((_, _, note),) = counter.warnings
    assert note.startswith(f"{count} tags continue an entity that is not open") and note.endswith(first)


@pytest.mark.parametrize("tag", ["NN", "E-A", "B-", "B_A"])
def test_a_tag_of_another_scheme_is_named(tag: str):
    with pytest.raises(UserError, match=rf"f.txt:2: tag '{tag}' is not O, B-…, I-… \(scheme 'bio'"):
        to_bio(tagged("O", tag), "bio", WarningCounter())


def test_entities_are_found_in_what_a_model_says():
    tags = "B-A I-A I-B O I-B B-B I-A".split()
    assert repair(tags) == "B-A I-A B-B O B-B B-B B-A".split()
    assert entities(tags) == [("A", 0, 2), ("B", 2, 3), ("B", 4, 5), ("B", 5, 6), ("A", 6, 7)]
