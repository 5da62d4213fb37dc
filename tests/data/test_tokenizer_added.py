"""Added tokens are one id each; files and settings that disagree; ids that are kept whatever the lines hold."""

import json
from pathlib import Path

import pytest
from data.test_tokenizer_files import ALBERT, LINES, ROBERTA, T5, byte_level, sentence_piece

from bertgpt.data.tokenizer import WordPiece, load_tokenizer
from bertgpt.types import JsonObject, UserError

BASE = "[PAD] [UNK] [CLS] [SEP] [MASK] e ##1 1 [ ] paris is / < > covid ##19".split()
KINDS = ("wordpiece", "gpt2", "roberta", "t5", "albert")


def entry(content: str, special: bool, **flags: bool) -> JsonObject:
    default = {"lstrip": False, "rstrip": False, "normalized": not special, "single_word": False}
    return {"content": content, **default, "special": special, **flags, "__type": "AddedToken"}


def write_vocab(directory: Path, pieces: list[str], **settings: object) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "vocab.txt").write_bytes("".join(f"{piece}\n" for piece in pieces).encode())
    if settings:
        (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


def write_kind(kind: str, directory: Path) -> Path:
    if kind == "wordpiece":
        files = WordPiece(1200, limit_alphabet=600).make(lambda: iter(LINES)).files()
        directory.mkdir(exist_ok=True)
        (directory / "vocab.txt").write_bytes(files["vocab.txt"])
    elif kind in ("gpt2", "roberta"):
        byte_level(directory, ROBERTA if kind == "roberta" else ["<|endoftext|>"])
    else:
        sentence_piece(directory, **(T5 if kind == "t5" else ALBERT))
    return directory


def add(layout: str, directory: Path, size: int) -> None:
    """Adds [e1], covid1 and <e2> to a tokenizer of `size` tokens, in one of the ways that there are."""
    settings: JsonObject = {}
    if layout == "added_tokens.json":
        (directory / "added_tokens.json").write_text(json.dumps({"covid1": size + 1, "[e1]": size, "<e2>": size + 2}))
        (directory / "special_tokens_map.json").write_text('{"additional_special_tokens": ["[e1]"]}')
    elif layout == "added_tokens_decoder":
        added = [entry("[e1]", True), entry("covid1", False), entry("<e2>", False, normalized=False)]
    elif layout == "flags":
        added = [
            entry("[e1]", True, lstrip=True, rstrip=True),
            entry("covid1", False, single_word=True),
            entry("<e2>", False, rstrip=True),
        ]
    else:
        settings = {"additional_special_tokens": ["[e1]", entry("<e2>", True, lstrip=True)]}
    if layout in ("added_tokens_decoder", "flags"):
        settings = {"added_tokens_decoder": {str(size + i): item for i, item in reversed(list(enumerate(added)))}}
    if settings:
        (directory / "tokenizer_config.json").write_text(json.dumps(settings))


LAYOUTS = ("added_tokens.json", "added_tokens_decoder", "flags", "additional_special_tokens")
MARKED = ["the [e1] cat", "[e1]", "a[e1]b", " [e1] ", "x covid1y covid1 COVID1", "Paris[e1] [e1]film", "<e2>x <e2> x"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_added_tokens_are_one_id_each_and_stay_so_when_saved(kind, layout, tmp_path: Path):
    plain = load_tokenizer(write_kind(kind, tmp_path / "a"))
    size = plain.vocab.size
    add(layout, tmp_path / "a", size)
    tokenizer = load_tokenizer(tmp_path / "a")
    names = ["[e1]", "<e2>"] if layout == "additional_special_tokens" else ["[e1]", "covid1", "<e2>"]
    assert [tokenizer.backend.token_to_id(name) for name in names] == [size + i for i in range(len(names))]
    assert tokenizer.vocab.size == size + len(names)
    before, after = plain.encode(["the", "cat"])
    if kind in ("wordpiece", "t5", "albert"):  # which see no space at the end of a word
        assert tokenizer.encode(["the [e1] cat", "the[e1]cat"]) == [[*before, size, *after]] * 2
    assert [row.count(size) for row in tokenizer.encode(MARKED)] == [1, 1, 1, 1, 0, 2, 0]
    assert tokenizer.encode(MARKED) == tokenizer.encode(MARKED, parse_special=True)
    assert tokenizer.encode(LINES) == plain.encode(LINES)
    assert "[e1]" not in tokenizer.decode(tokenizer.encode(["the [e1] cat"])[0])  # a special token
    tokenizer.save(tmp_path / "b")
    again = load_tokenizer(tmp_path / "b")
    assert again.hash == tokenizer.hash and again.vocab == tokenizer.vocab
    assert again.encode(MARKED) == tokenizer.encode(MARKED)
    for name in ("tokenizer.json", "special_tokens_map.json"):
        (tmp_path / "b" / name).unlink()
    assert load_tokenizer(tmp_path / "b").encode(MARKED) == tokenizer.encode(MARKED)


def test_flags_of_added_tokens_count(tmp_path: Path):
    tokens = {"17": entry("[e1]", True, lstrip=True), "18": entry("covid1", False, single_word=True)}
    tokens |= {"19": entry("IS1", False), "20": entry("E1", False, normalized=False)}
    tokenizer = load_tokenizer(write_vocab(tmp_path, BASE, added_tokens_decoder=tokens, do_lower_case=True))
    assert tokenizer.encode(["paris [e1] is", "covid1 covid1x"]) == [[10, 17, 11], [18, 1]]
    # IS1 is looked for in the lower-cased text, E1 in the text as it is.
    assert tokenizer.encode(["is1 Is1", "E1 e1"]) == [[19, 19], [20, 5, 6]]


def test_a_role_can_be_given_to_an_added_token(tmp_path: Path):
    write_vocab(tmp_path, [piece for piece in BASE if piece != "[MASK]"], mask_token="<mask>")
    (tmp_path / "added_tokens.json").write_text('{"<mask>": 16}')
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.vocab.mask == 16 and tokenizer.encode(["paris <mask>"], parse_special=True) == [[9, 16]]
    assert 16 not in tokenizer.encode(["paris <mask>"])[0]


def test_a_text_that_spells_a_token_with_a_role_is_only_text_beside_added_tokens(tmp_path: Path):
    write_vocab(tmp_path, BASE, additional_special_tokens=["[e1]"])
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode(["[e1] [MASK]"]) == [[17, 8, 1, 9]]
    assert tokenizer.encode(["[e1] [MASK]"], parse_special=True) == [[17, 4]]


@pytest.mark.parametrize(
    "settings, added, message",
    [
        ({"added_tokens_decoder": {"5": entry("[e1]", True)}}, None, "gives '[e1]' the id 5, but 'e' has it"),
        ({"added_tokens_decoder": {"30": entry("paris", False)}}, None, "the id 10 in the vocabulary"),
        ({"added_tokens_decoder": {"x": entry("[e1]", True)}}, None, "the id 'x' of '[e1]' is not a whole number"),
        ({"added_tokens_decoder": {str(2**31): entry("[e1]", True)}}, None, "is above 4,194,303"),
        ({"added_tokens_decoder": []}, None, "added_tokens_decoder is not an object"),
        ({"added_tokens_decoder": {"17": 5}}, None, "5 is neither a token nor an object"),
        ({"additional_special_tokens": 7}, None, "additional_special_tokens is neither a list nor an object"),
        ({}, {"[e1]": -1}, "the id -1 of '[e1]' is not a whole number"),
        ({}, {"[e1]": 17, "[e2]": 17}, "gives '[e2]' the id 17, but '[e1]' has it"),
        ({}, {"[e1]": 1.5}, "the id 1.5 of '[e1]' is not a whole number"),
        ({}, {"": 17}, "adds a token without a character"),
        ({}, ["[e1]"], "does not hold a JSON object"),
    ],
)  # fmt: skip
def test_impossible_added_tokens_are_refused_with_their_file(settings, added, message, tmp_path: Path):
    write_vocab(tmp_path, BASE, **settings)
    if added is not None:
        (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    with pytest.raises(UserError, match="added_tokens.json: |tokenizer_config.json: ") as caught:
        load_tokenizer(tmp_path)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_ids_that_are_not_the_next_ones_are_kept(tmp_path: Path):
    write_vocab(tmp_path, [*BASE, "is"], added_tokens_decoder={"30": entry("[e1]", True)})  # `is` twice
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode(["is [e1]"]) == [[17, 30]] and tokenizer.vocab.size == 31
    assert tokenizer.tokens([30, 20]) == ["[e1]", "<id 20>"] and tokenizer.decode([17, 20, 30]) == "is"
    tokenizer.save(tmp_path / "b")
    assert load_tokenizer(tmp_path / "b").encode(["is [e1]"]) == [[17, 30]]
    (tmp_path / "b" / "tokenizer.json").unlink()
    assert load_tokenizer(tmp_path / "b").encode(["is [e1]"]) == [[17, 30]]
    (tmp_path / "tokenizer_config.json").write_text('{"additional_special_tokens": ["[e1]"]}')
    assert load_tokenizer(tmp_path).encode(["is [e1]"]) == [[17, 18]]


# -- lines of vocabulary files ----------------------------------------------------------------------------------------

STRANGE = [
    "\u2028",
    "##\u2028",
    "\u2029",
    "\x85",
    "\x0b",
    "\x0c",
    "\x1c",
    "\x1d",
    "\x1e",
    "\u3000",
    "x\u3000",
    "",
    "\xa0",
]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_of_a_vocabulary_end_at_line_ends_alone(end, tmp_path: Path):
    pieces = [part for i, odd in enumerate(STRANGE) for part in (odd, f"word{i}")]
    pieces = [*BASE[:5], *pieces, "last"]
    (tmp_path / "vocab.txt").write_bytes("".join(piece + end for piece in pieces).encode())
    tokenizer = load_tokenizer(tmp_path)
    assert {piece: pieces.index(piece) for piece in pieces} == tokenizer.backend.get_vocab()
    words = [f"word{i}" for i in range(len(STRANGE))]
    assert tokenizer.encode([" ".join(words), "last"]) == [[pieces.index(word) for word in words], [len(pieces) - 1]]
    tokenizer.save(tmp_path / "b")
    assert (tmp_path / "b" / "vocab.txt").read_bytes() == "".join(f"{piece}\n" for piece in pieces).encode()
    assert load_tokenizer(tmp_path / "b" / "vocab.txt").backend.get_vocab() == tokenizer.backend.get_vocab()


def test_a_repeated_line_shifts_no_id_when_saved(tmp_path: Path):
    tokenizer = load_tokenizer(write_vocab(tmp_path / "a", [*BASE[:5], "a", "b", "a", "c", "b", "d"]))
    expected = {piece: i for i, piece in enumerate(BASE[:5])} | {"a": 7, "c": 8, "b": 9, "d": 10}
    assert tokenizer.backend.get_vocab() == expected and tokenizer.vocab.size == 11
    tokenizer.save(tmp_path / "b")
    assert load_tokenizer(tmp_path / "b").backend.get_vocab() == expected
    lines = (tmp_path / "b" / "vocab.txt").read_text().splitlines()
    assert len(lines) == 11 and {piece: i for i, piece in enumerate(lines)} == expected


def test_a_vocabulary_that_no_text_file_can_hold_is_saved_without_one(tmp_path: Path):
    content = json.loads(load_tokenizer(write_vocab(tmp_path / "a", BASE)).backend.to_str())
    content["model"]["vocab"]["two\nlines"] = len(BASE)
    (tmp_path / "a" / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = load_tokenizer(tmp_path / "a")
    tokenizer.save(tmp_path / "b")
    assert not (tmp_path / "b" / "vocab.txt").exists()
    assert load_tokenizer(tmp_path / "b").backend.get_vocab() == tokenizer.backend.get_vocab()


def test_merges_are_read_line_by_line_and_a_bad_one_is_named(tmp_path: Path):
    byte_level(tmp_path, ROBERTA)
    tokenizer = load_tokenizer(tmp_path)
    file = tmp_path / "merges.txt"
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    assert load_tokenizer(tmp_path).encode(LINES) == tokenizer.encode(LINES)
    with file.open("a") as stream:
        stream.write("a nowhere\n")
    number = len(file.read_bytes().split(b"\n")) - 1
    with pytest.raises(UserError, match=f"merges.txt:{number}: is not a pair of tokens of vocab.json"):
        load_tokenizer(tmp_path)


# -- tokenizer_config.json against tokenizer.json ---------------------------------------------------------------------

CASED = [*BASE[:5], "Caf", "##é", "cafe", "caf", "中", "中文"]
SPLIT = {"cased": ["Caf", "##é"], "folded": ["cafe"], "lower": ["caf", "##é"]}


@pytest.mark.parametrize(
    "stored, settings, expected",
    [
        (False, {}, "cased"),
        (True, {}, "folded"),
        (False, {"do_lower_case": True}, "folded"),
        (True, {"do_lower_case": False}, "cased"),
        (False, {"do_lower_case": True, "strip_accents": False}, "lower"),
        (False, {"tokenizer_class": "BertTokenizer"}, "folded"),
        (False, {"tokenizer_class": "BertTokenizerFast", "do_lower_case": False}, "cased"),
        (True, {"tokenizer_class": "DistilBertTokenizer", "strip_accents": False}, "lower"),
        (False, {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": True}, "cased"),
    ],
)
def test_settings_win_over_tokenizer_json(stored, settings, expected, tmp_path: Path):
    write_vocab(tmp_path / "a", CASED, do_lower_case=stored)
    (tmp_path / "tokenizer.json").write_text(load_tokenizer(tmp_path / "a").backend.to_str())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.tokens(tokenizer.encode(["Café"])[0]) == SPLIT[expected]


def test_settings_for_chinese_prefix_spaces_and_accents_win_too(tmp_path: Path):
    write_vocab(tmp_path / "a", CASED)
    (tmp_path / "tokenizer.json").write_text(load_tokenizer(tmp_path / "a").backend.to_str())
    (tmp_path / "tokenizer_config.json").write_text('{"tokenize_chinese_chars": false}')
    assert load_tokenizer(tmp_path).encode(["中文"]) == [[10]]
    byte_level(tmp_path / "b", ROBERTA)
    plain = load_tokenizer(tmp_path / "b")
    plain.save(tmp_path / "c")
    (tmp_path / "c" / "tokenizer_config.json").write_text('{"add_prefix_space": true}')
    spaced = load_tokenizer(tmp_path / "c")
    assert spaced.encode(["the"]) == plain.encode([" the"]) != plain.encode(["the"])
    sentence_piece(tmp_path / "d", **ALBERT)
    folding = load_tokenizer(tmp_path / "d")
    (tmp_path / "d" / "tokenizer.json").write_text(folding.backend.to_str())
    for settings, same in ({"do_lower_case": False}, "Cafe"), ({"keep_accents": True}, "café"):
        (tmp_path / "d" / "tokenizer_config.json").write_text(json.dumps(settings))
        keeping = load_tokenizer(tmp_path / "d")
        assert keeping.encode(["Café"]) == keeping.encode([same]) != keeping.encode(["cafe"])
        assert keeping.backend.encode("Café", add_special_tokens=False).ids == keeping.encode(["Café"])[0]
