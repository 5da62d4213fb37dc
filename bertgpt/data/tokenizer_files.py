"""Reads and writes tokenizers in the Hugging Face format, as a backend with the roles of its special tokens.

Four formats, in order of preference: tokenizer.json (any model); vocab.txt (WordPiece: BERT); vocab.json with
merges.txt (byte-level BPE: RoBERTa, GPT-2); spiece.model or sentencepiece.bpe.model (SentencePiece, unigram or BPE: T5,
ALBERT, XLM-RoBERTa, CamemBERT). What files beside them say takes precedence: tokenizer_config.json,
special_tokens_map.json, added_tokens.json.
"""

import json
from collections.abc import Collection
from pathlib import Path

import tokenizers
from tokenizers import models

from bertgpt.data.tokenizer_added import Added, add_tokens, build, check_ids, read_added
from bertgpt.data.tokenizer_clip import clip, is_clip, roles_of_clip, word_decoder
from bertgpt.data.tokenizer_rules import (
    BERT,
    FLAGS,
    GPT2,
    ROBERTA,
    ROLES,
    T5,
    Roles,
    Settings,
    apply_settings,
    byte_level,
    name_of,
    stated_rules,
    template_bert,
    wordpiece,
)
from bertgpt.data.tokenizer_spiece import SPIECE_FILES, numbered_like, read_sentencepiece, sentencepiece_beside
from bertgpt.io.files import library_errors, read_json_object, read_lines
from bertgpt.types import UserError

SETTINGS_FILES = ("special_tokens_map.json", "tokenizer_config.json")
FORMATS = ("tokenizer.json", "vocab.txt", "vocab.json", *SPIECE_FILES)
FILES = (*FORMATS, "merges.txt", *SETTINGS_FILES)
"""all files of a tokenizer"""
MARK, MARKED = "written_by", "bertgpt"  # in tokenizer_config.json: only such a tokenizer is replaced


def read(path: Path) -> tuple[tokenizers.Tokenizer, Roles, bytes | None]:
    """(backend, roles, SentencePiece model or None) of a directory in one of the formats, or of one file.

    Raises:
      UserError: there is no tokenizer, it cannot be read, or it lacks a token that its settings name.
    """
    if path.is_dir():
        found = [name for name in FORMATS if (path / name).exists()]
        if not found:
            raise UserError(f"{path}: holds neither tokenizer.json nor vocab.txt, vocab.json or spiece.model")
        path = path / found[0]
    if not path.exists():
        raise UserError(f"{path}: no such tokenizer")
    settings = read_settings(path.parent)
    added = read_added(path.parent, settings)
    readers = {".txt": read_wordpiece, ".model": read_sentencepiece}
    reader = read_byte_level if path.name == "vocab.json" else readers.get(path.suffix, read_backend)
    unreadable = f"{path}: cannot be read as a tokenizer"
    try:
        with library_errors(unreadable):
            backend, known = reader(path, settings, added)
            roles = roles_of(backend, path, known, settings)
            check_template(backend, path)
    except UserError as error:
        said = str(error).removeprefix(f"{path}: ")
        names_file = str(error).startswith(str(path.parent)) and not said.startswith("cannot be read as ")
        complete = names_file or str(error).startswith(unreadable)
        raise UserError(str(error) if complete else f"{unreadable}: {said}") from None
    return backend, roles, sentencepiece_beside(path, backend)


def read_settings(directory: Path) -> Settings:
    """The merged content of the settings files, and the type of the model if there is one beside them."""
    settings: Settings = {}
    for name in SETTINGS_FILES:
        if (directory / name).exists():
            settings |= read_json_object(directory / name)
    if "tokenizer_class" not in settings and (directory / "config.json").is_file():
        settings["model_type"] = read_json_object(directory / "config.json").get("model_type")
    return settings


def made_here(directory: Path) -> bool:
    """Whether `write` made the files of a directory."""
    try:
        return read_settings(directory).get(MARK) == MARKED
    except UserError:
        return False


def roles_of(backend: tokenizers.Tokenizer, path: Path, known: Roles, settings: Settings) -> Roles:
    """The token of each role: as in the settings, otherwise the usual one of the format if the tokenizer has it."""
    roles = {role: token for role, token in known.items() if backend.token_to_id(token) is not None}
    for role in ROLES:
        if f"{role}_token" in settings:
            roles.pop(role, None)
            token = name_of(settings[f"{role}_token"])
            if token is not None:
                if backend.token_to_id(token) is None:
                    raise UserError(f"{path}: has no {token} token, which its settings name as {role}_token")
                roles[role] = token
    return {role: roles[role] for role in ROLES if role in roles}


def check_template(backend: tokenizers.Tokenizer, path: Path) -> None:
    """Encodes a text and a pair, which fails where the rules of a tokenizer.json are broken.

    Raises:
      UserError: the special-token template adds an id that is not in the vocabulary.
    """
    for encoded in (backend.encode("a"), backend.encode("a", "b")):
        for token, i in zip(encoded.tokens, encoded.ids, strict=True):
            if backend.id_to_token(i) is None:
                raise UserError(f"{path}: the template adds {token!r} with the id {i}, which is not in the vocabulary")


# -- the formats ------------------------------------------------------------------------------------------------------


def read_backend(path: Path, settings: Settings, added: list[Added]) -> tuple[tokenizers.Tokenizer, Roles]:
    """A tokenizer.json, with what its settings change."""
    content = read_json_object(path)
    content |= {"truncation": None, "padding": None}
    apply_settings(content, settings)
    dropout = content["model"].get("dropout") if isinstance(content.get("model"), dict) else None
    if dropout:
        raise UserError(f"model.dropout is {dropout}: a text would have other ids each time; set it to null")
    backend = add_tokens(build(content), added)
    if is_clip(content):
        backend.decoder = word_decoder()
    return backend, usual_roles(backend)


def usual_roles(backend: tokenizers.Tokenizer) -> Roles:
    """The roles of the format that the vocabulary points to; the tokenizer need not have all of these tokens."""
    vocabulary = backend.get_vocab(with_added_tokens=True)
    if roles := roles_of_clip(vocabulary):
        return roles
    if "[CLS]" in vocabulary:
        return BERT | ({} if "[PAD]" in vocabulary else {"pad": "<pad>", "unk": "<unk>"})
    if "<s>" in vocabulary:
        return ROBERTA
    return T5 if "</s>" in vocabulary else GPT2


def lines_of(path: Path) -> list[str]:
    r"""The lines of a vocabulary file, which end at \n or \r\n alone: U+2028 and others are tokens of BERT-Chinese."""
    return [line.removesuffix("\n").removesuffix("\r") for line in read_lines(str(path))]


def read_wordpiece(path: Path, settings: Settings, added: list[Added]) -> tuple[tokenizers.Tokenizer, Roles]:
    """A vocab.txt. The id of a token is the number of its line; of equal lines the last counts, as in transformers."""
    pieces = {piece: i for i, piece in enumerate(lines_of(path))}
    check_ids(pieces.items())
    roles = {role: name_of(settings.get(f"{role}_token")) or token for role, token in BERT.items()}
    for token in roles.values():
        if token not in pieces and token not in {item.content for item in added}:
            raise UserError(f"{path}: has no {token} token")
    guess = not any(piece[:1].isupper() for piece in pieces if not piece.startswith("["))
    rules = stated_rules(settings)
    backend = wordpiece(
        models.WordPiece(pieces, unk_token=roles["unk"]),
        rules.get("do_lower_case", guess),
        rules.get("strip_accents"),
        rules.get("tokenize_chinese_chars", True),
    )
    return template_bert(add_tokens(backend, added), roles), roles


def read_byte_level(path: Path, settings: Settings, added: list[Added]) -> tuple[tokenizers.Tokenizer, Roles]:
    """A vocab.json with the merges.txt beside it."""
    file = path.with_name("merges.txt")
    if not file.exists():
        raise UserError(f"{path}: needs merges.txt beside it")
    vocabulary = read_json_object(path)
    merges = []
    for number, line in enumerate(lines_of(file), start=1):
        if (number == 1 and line.startswith("#version")) or not line:
            continue
        pair = line.split(" ")
        if len(pair) != 2 or any(token not in vocabulary for token in (*pair, "".join(pair))):
            raise UserError(f"{file}:{number}: is not a pair of tokens of vocab.json that are one token together")
        merges.append((pair[0], pair[1]))
    check_ids(vocabulary.items())
    known = {*vocabulary, *(item.content for item in added)}
    if roles := roles_of_clip(vocabulary):
        return add_tokens(clip(vocabulary, merges, settings), added), roles
    roles = ROBERTA if "<mask>" in known else GPT2
    roles = {role: token for role, token in roles.items() if token in known}
    return add_tokens(byte_level(models.BPE(vocabulary, merges), roles, settings), added), roles


# -- writing ----------------------------------------------------------------------------------------------------------


def write(
    backend: tokenizers.Tokenizer, roles: Roles, spiece: bytes | None, sentinels: int, markers: Collection[str] = ()
) -> dict[str, bytes]:
    """The files of the Hugging Face format, name → content: tokenizer.json, settings, and the files of the model.

    Args:
      backend: vocabulary and rules.
      roles: role → special token.
      spiece: the SentencePiece model, if any.
      sentinels: how many sentinels were added to it.
      markers: other special tokens.
    """
    text = backend.to_str(pretty=True)
    content = json.loads(text)
    names: dict[str, str | None] = {f"{role}_token": token for role, token in roles.items()}
    for role, token in usual_roles(backend).items():
        if role not in roles and backend.token_to_id(token) is not None:
            names[f"{role}_token"] = None  # otherwise reading it again would give the token this role
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    files = {"tokenizer.json": text}
    normalizer = content["normalizer"] or {}
    ids = dict(sorted(backend.get_vocab(with_added_tokens=False).items(), key=lambda item: item[1]))
    if content["model"]["type"] == "WordPiece" and normalizer.get("type") == "BertNormalizer":
        lines = vocabulary_lines(ids)
        if lines is not None:
            files["vocab.txt"] = lines
        rules = {
            "do_lower_case": normalizer["lowercase"],
            "strip_accents": normalizer["strip_accents"],
            "tokenize_chinese_chars": normalizer["handle_chinese_chars"],
        }
        settings |= {"tokenizer_class": "BertTokenizer", **rules}
    elif content["model"]["type"] == "BPE" and (content["pre_tokenizer"] or {}).get("type") == "ByteLevel":
        pairs = [pair if isinstance(pair, list) else pair.split(" ") for pair in content["model"]["merges"]]
        if not any(set(" \n\r\0") & set(token) for pair in pairs for token in pair):
            files["vocab.json"] = json.dumps(ids, ensure_ascii=False) + "\n"
            files["merges.txt"] = "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in pairs)
        settings["add_prefix_space"] = content["pre_tokenizer"]["add_prefix_space"]
    name = "spiece.model"
    if spiece is not None:
        rules = json.dumps(content["normalizer"])
        settings["extra_ids"] = sentinels
        settings |= {"do_lower_case": "Lowercase" in rules, "keep_accents": "StripAccents" not in rules}
        layout = numbered_like(spiece, backend)
        name = SPIECE_FILES[layout is not None and layout[0] != "own"]
    if content["added_tokens"]:
        kept = (*FLAGS, "content", "special")
        settings["added_tokens_decoder"] = {
            str(entry["id"]): {name: entry[name] for name in kept} for entry in content["added_tokens"]
        }
    if markers:
        settings["additional_special_tokens"] = sorted(markers, key=backend.token_to_id)
    settings[MARK] = MARKED
    files["tokenizer_config.json"] = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    files["special_tokens_map.json"] = json.dumps(names, indent=2, ensure_ascii=False) + "\n"
    encoded = {name: value.encode() for name, value in files.items()}
    return encoded if spiece is None else encoded | {name: spiece}


def vocabulary_lines(ids: dict[str, int]) -> str | None:
    """The content of a vocab.txt that gives these ids; None if there is none, because of a token such as a line end.

    The line of an id without a token repeats a later token, of which the last line counts.
    """
    if any("\n" in token or "\0" in token or token.endswith("\r") or token.startswith("\ufeff") for token in ids):
        return None
    lines, last = [""] * (max(ids.values(), default=-1) + 1), None
    for token, i in ids.items():
        lines[i] = token
    taken = set(ids.values())
    for i in reversed(range(len(lines))):
        last = lines[i] if i in taken else last
        lines[i] = last
    return "".join(f"{line}\n" for line in lines)
