"""Damaged and hostile tokenizer files, and senseless settings of trainers: one line that names the file or field."""

import base64
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from data.test_tokenizer_added import BASE, write_vocab
from data.test_tokenizer_files import LINES, ROBERTA, T5, byte_level, sentence_piece

from bertgpt.cli.main import main
from bertgpt.data.tokenizer import ByteBPE, SentencePiece, WordPiece, load_tokenizer
from bertgpt.types import JsonObject, UserError

CHARSMAP = base64.b64encode((1024).to_bytes(4, "little") + b"\xff" * 1024 + b"abc").decode()


def change(content: JsonObject, path: str, value: object) -> None:
    *parents, last = path.split("/")
    for name in parents:
        content = content[int(name)] if name.isdecimal() else content[name]
    content[int(last) if last.isdecimal() else last] = value


@pytest.mark.parametrize(
    "path, value, message",
    [
        ("model/vocab/e", 2**31, "the id 2147483648 of 'e' is above 4,194,303"),
        ("model/vocab/e", 2**70, "of 'e' is above 4,194,303"),
        ("model/vocab/e", -1, "the id -1 of 'e' is not a whole number"),
        ("model/vocab/e", 1.5, "the id 1.5 of 'e' is not a whole number"),
        ("model/vocab/e", 3, "'[SEP]' and 'e' have the same id, 3"),
        ("model/vocab", [], "cannot be read as a tokenizer"),
        ("model/vocab", None, "cannot be read as a tokenizer"),
        ("model", None, "cannot be read as a tokenizer"),
        ("model/type", "Telepathy", "cannot be read as a tokenizer"),
        ("model/unk_token", "[NONE]", "WordPiece error: Missing [UNK] token"),
        ("added_tokens/0/id", 2**31, "is above 4,194,303"),
        ("added_tokens/0/id", 5, "have the same id, 5"),
        ("added_tokens", {}, "cannot be read as a tokenizer"),
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}, "Cannot parse precompiled_charsmap"),
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": CHARSMAP}, "index out of bounds"),
        ("normalizer", [], "cannot be read as a tokenizer"),
        ("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated", "invert": False},
         "parenthesis"),
        ("post_processor/cls", ["[CLS]", 2**31], "with the id 2147483648, which is not in the vocabulary"),
        ("post_processor", {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x", "type_id": 0}}],
                            "pair": [], "special_tokens": {}}, "cannot be read as a tokenizer"),
    ],
)  # fmt: skip
def test_a_damaged_tokenizer_json_is_refused_in_one_line(path, value, message, tmp_path: Path):
    content = json.loads(load_tokenizer(write_vocab(tmp_path / "a", BASE)).backend.to_str())
    change(content, path, value)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="tokenizer.json: ") as caught:
        load_tokenizer(tmp_path)
    assert any(part in str(caught.value) for part in message.split("|")) and "\n" not in str(caught.value)
    assert str(caught.value).count("cannot be read as a tokenizer") <= 1


def test_random_merges_are_refused(tmp_path: Path):
    byte_level(tmp_path / "a", ROBERTA)
    content = json.loads(load_tokenizer(tmp_path / "a").backend.to_str())
    for dropout in (None, 0.0, 0.1):
        content["model"]["dropout"] = dropout
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
        if not dropout:
            assert load_tokenizer(tmp_path).encode(["low lower"]) == load_tokenizer(tmp_path / "a").encode(
                ["low lower"]
            )
    with pytest.raises(UserError, match="tokenizer.json: .*model.dropout is 0.1: a text would have other ids"):
        load_tokenizer(tmp_path)


def test_a_role_that_the_settings_take_away_stays_away_when_saved(tmp_path: Path):
    write_vocab(tmp_path / "a", BASE)
    load_tokenizer(tmp_path / "a").save(tmp_path / "b")
    path = tmp_path / "b" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"mask_token": None}))
    (tmp_path / "b" / "special_tokens_map.json").unlink()
    read = load_tokenizer(tmp_path / "b")
    assert read.vocab.mask is None
    read.save(tmp_path / "c")
    again = load_tokenizer(tmp_path / "c")
    assert (again.roles, again.hash) == (read.roles, read.hash)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 10**5, '{"model": ' * 5000, '{"model": {}}', "\ud800"])
def test_what_is_no_tokenizer_json_at_all_is_refused(text, tmp_path: Path):
    (tmp_path / "tokenizer.json").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(UserError, match="tokenizer.json: (cannot be read as a|does not hold a JSON obj)") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["wordpiece", "byte_level", "spiece"])
def test_files_with_random_damage_are_read_or_refused_but_never_break(kind, tmp_path: Path):
    if kind == "wordpiece":
        write_vocab(tmp_path, BASE, do_lower_case=True)
        load_tokenizer(tmp_path).save(tmp_path / "whole")
    elif kind == "byte_level":
        byte_level(tmp_path, ROBERTA)
        load_tokenizer(tmp_path).save(tmp_path / "whole")
    else:
        sentence_piece(tmp_path, **T5)
        (tmp_path / "whole").mkdir()
        (tmp_path / "spiece.model").rename(tmp_path / "whole" / "spiece.model")
    files = {file: file.read_bytes() for file in (tmp_path / "whole").iterdir()}
    rng, outcomes = random.Random(0), []
    for number in range(60):
        file = rng.choice(sorted(files))
        content = bytearray(files[file])
        if number % 3 == 0:
            del content[rng.randrange(len(content)) :]
        elif number % 3 == 1:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        else:
            at = rng.randrange(len(content))
            content[at : at + rng.randrange(1, 40)] = rng.randbytes(rng.randrange(40))
        file.write_bytes(content)
        try:
            tokenizer = load_tokenizer(tmp_path / "whole")
            outcomes.append("read")
            assert max(i for row in tokenizer.encode(LINES) for i in row) < tokenizer.vocab.size
        except UserError as error:
            outcomes.append("refused")
            assert "\n" not in str(error)
        file.write_bytes(files[file])
    assert {"read", "refused"} == set(outcomes)


@pytest.mark.parametrize("kind", ["wordpiece", "roberta", "t5"])
def test_half_of_a_surrogate_pair_is_no_text(kind, tmp_path: Path):
    if kind == "wordpiece":
        write_vocab(tmp_path, BASE)
    else:
        byte_level(tmp_path, ROBERTA) if kind == "roberta" else sentence_piece(tmp_path, **T5)
    with pytest.raises(UserError, match="half of a surrogate pair after 'paris '"):
        load_tokenizer(tmp_path).encode(["is", "paris \ud83d is"])


@pytest.mark.parametrize(
    "flags, field",
    [
        ("--limit_alphabet -1", "limit_alphabet"),
        ("--limit_alphabet 0", "limit_alphabet"),
        ("--min_frequency -1", "min_frequency"),
        ("--vocab_size -1", "vocab_size"),
        ("--vocab_size 100000000000", "vocab_size"),
        ("--kind byte_bpe --vocab_size 100000000000", "vocab_size"),
        ("--kind byte_bpe --vocab_size 100000000", "vocab_size"),
        ("--kind byte_bpe --min_frequency -1", "min_frequency"),
        (f"--kind byte_bpe --min_frequency {2**64}", "min_frequency"),
        ("--kind unigram --vocab_size 100000000000", "vocab_size"),
        ("--kind bpe --sentinels -1", "sentinels"),
        ("--kind bpe --sentinels 100000000000", "sentinels"),
        ("--kind unigram --character_coverage nan", "character_coverage"),
        ("--kind unigram --character_coverage -1", "character_coverage"),
    ],
)
def test_senseless_settings_of_trainers_are_refused_by_name(flags, field, tmp_path: Path, capsys):
    (tmp_path / "text.txt").write_text("the cat sat")
    code = main(["tokenizer", "train", str(tmp_path / "text.txt"), "--out", str(tmp_path / "t"), *flags.split()])
    message = capsys.readouterr().err
    assert code == 2 and field in message and message.count("\n") == 1 and not (tmp_path / "t").exists()


def test_errors_of_the_library_while_training_are_one_line_and_those_of_the_text_stay():
    for config in (ByteBPE(300), WordPiece(300)):
        object.__setattr__(config, "min_frequency", -1)  # past the check of the fields
        with pytest.raises(UserError, match="(ByteBPE|WordPiece): training failed: "):
            config.make(lambda: iter(["the cat"]))

    def broken():
        yield "the cat"
        raise UserError("text.txt:2: is not valid UTF-8")

    for trained in (ByteBPE(300), WordPiece(300), SentencePiece(vocab_size=200, sentinels=0)):
        with pytest.raises(UserError, match="^text.txt:2: is not valid UTF-8"):
            trained.make(broken)


@pytest.mark.slow
def test_a_vast_id_costs_no_memory(tmp_path: Path):
    content = json.loads(load_tokenizer(write_vocab(tmp_path / "a", BASE)).backend.to_str())
    content["model"]["vocab"]["e"] = 2**31
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_DATA, (2**31, 2**31)); "
        "from bertgpt.cli.main import main; sys.exit(main(['tokenizer', 'inspect', sys.argv[1]]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 2 and run.stderr.count("\n") == 1, run.stderr
