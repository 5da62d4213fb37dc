"""Added tokens: strings that are one token wherever they stand in a text, whatever the vocabulary makes of them."""

import json
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from tokenizers import models, normalizers

from bertgpt.data.tokenizer_rules import (
    ALBERT,
    BERT,
    FLAGS,
    GPT2,
    ROBERTA,
    ROLES,
    T5,
    Roles,
    Settings,
    flags_of,
    name_of,
)
from bertgpt.io.files import read_json_object
from bertgpt.types import JsonObject, UserError

LARGEST_ID = (1 << 22) - 1
"""models have an embedding for every id up to the largest, so that a wrong one costs gigabytes"""
SENTINEL = re.compile(r"▁?<extra_id_(\d{1,6})>")
USUAL = {token for roles in (BERT, ROBERTA, GPT2, T5, ALBERT) for token in roles.values()}
REST = "\0"  # text between added tokens


class Added(NamedTuple):
    """A token that the settings of a tokenizer add."""

    content: str
    id: int | None
    """None: the next one"""
    special: bool
    flags: dict[str, bool]
    source: Path


def read_added(directory: Path, settings: Settings) -> list[Added]:
    """The tokens that settings add, by id: added_tokens_decoder, else added_tokens.json, and other special tokens.

    Raises:
      UserError: an entry is not understood; the message names the file.
    """
    config, file = directory / "tokenizer_config.json", directory / "added_tokens.json"
    found: dict[str, Added] = {}
    try:
        extra = {name_of(entry): entry for entry in _extra(settings)}
        special = {*extra, *(name_of(settings.get(f"{role}_token")) for role in ROLES)}
        decoder = settings.get("added_tokens_decoder")
        if decoder is not None:
            for key, entry in _object(decoder, "added_tokens_decoder").items():
                token = name_of(entry)
                is_special = isinstance(entry, dict) and bool(entry.get("special", False))
                found[token] = Added(token, number(key, token), is_special, flags_of(entry), config)
        elif file.exists():
            config = file
            for token, i in read_json_object(file).items():
                found[token] = Added(token, number(i, token), token in special, {}, file)
        for token, entry in extra.items():
            if token is not None and token not in found:
                found[token] = Added(token, None, True, flags_of(entry), config)
    except UserError as error:
        raise UserError(f"{config}: {str(error).removeprefix(f'{config}: ')}") from None
    if "" in found:
        raise UserError(f"{config}: adds a token without a character")
    return sorted(found.values(), key=lambda added: LARGEST_ID + 1 if added.id is None else added.id)


def _extra(settings: Settings) -> list[Any]:
    """Special tokens without a role: a list, or in newer files an object of named tokens."""
    entries = []
    for name in ("additional_special_tokens", "extra_special_tokens"):
        value = settings.get(name) or []
        if not isinstance(value, list | dict):
            raise UserError(f"{name} is neither a list nor an object")
        entries += value.values() if isinstance(value, dict) else value
    return entries


def _object(value: Any, name: str) -> JsonObject:
    if not isinstance(value, dict):
        raise UserError(f"{name} is not an object")
    return value


def number(value: object, token: object) -> int:
    """An id of a file, as an integer or its digits.

    Raises:
      UserError: it is none, or is too large.
    """
    if isinstance(value, bool) or not str(value).isdecimal() or not str(value).isascii():
        raise UserError(f"the id {value!r} of {token!r} is not a whole number")
    if len(str(value)) > 10 or int(value) > LARGEST_ID:
        raise UserError(f"the id {value} of {token!r} is above {LARGEST_ID:,}, the largest supported")
    return int(value)


def check_ids(ids: Iterable[tuple[object, object]]) -> None:
    """Raises UserError if two tokens have the same id, or an id is too large."""
    owners: dict[object, object] = {}
    for token, i in ids:
        if type(i) is not int or not 0 <= i <= LARGEST_ID:
            number(i, token)  # which raises the error
        if owners.setdefault(i, token) != token:
            raise UserError(f"{owners[i]!r} and {token!r} have the same id, {i}")


def add_tokens(backend: tokenizers.Tokenizer, added: list[Added]) -> tokenizers.Tokenizer:
    """The backend with added tokens; one that it has already takes the flags stated here.

    Raises:
      UserError: an id is taken or differs from that of the backend; the message names the file.
    """
    if not added:
        return backend
    content = json.loads(backend.to_str())
    entries = {entry["content"]: entry for entry in content["added_tokens"]}
    ids = backend.get_vocab(with_added_tokens=True)
    tokens = {i: token for token, i in ids.items()}
    for item in added:
        i = ids.get(item.content, item.id)
        i = max(tokens, default=-1) + 1 if i is None else i
        if item.id is not None and (i != item.id or tokens.get(i, item.content) != item.content):
            other = f"{tokens[item.id]!r} has it" if item.id in tokens else f"it has the id {i} in the vocabulary"
            raise UserError(f"{item.source}: gives {item.content!r} the id {item.id}, but {other}")
        number(i, item.content)
        tokens[i], ids[item.content] = item.content, i
        default = dict.fromkeys(FLAGS, False) | {"normalized": not item.special}
        flags = default | {name: entries.get(item.content, default)[name] for name in FLAGS} | item.flags
        is_special = item.special or (item.content in entries and entries[item.content]["special"])
        entries[item.content] = {"id": i, "content": item.content, **flags, "special": is_special}
    content["added_tokens"] = sorted(entries.values(), key=lambda entry: entry["id"])
    return build(content)


def build(content: JsonObject) -> tokenizers.Tokenizer:
    """The backend of the content of a tokenizer.json, in which every token has the id that is stated.

    The library numbers added tokens that are not in the vocabulary one after the other, whatever their ids, from the
    size of the vocabulary on, even if there are larger ids. Such tokens are put into the vocabulary.

    Raises:
      UserError: two tokens have the same id, or an id is too large.
    """
    added = content.get("added_tokens") or []
    vocabulary = content["model"].get("vocab")
    listed = vocabulary.items() if isinstance(vocabulary, dict) else ((row[0], i) for i, row in enumerate(vocabulary))
    check_ids((*listed, *((entry["content"], entry["id"]) for entry in added)))
    backend = tokenizers.Tokenizer.from_str(json.dumps(content))
    if all(backend.token_to_id(entry["content"]) == entry["id"] for entry in added):
        return backend
    for entry in added:
        if not isinstance(vocabulary, dict) or vocabulary.setdefault(entry["content"], entry["id"]) != entry["id"]:
            raise UserError(f"the id {entry['id']} of {entry['content']!r} is not the next one after the vocabulary")
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def found_in_text(backend: tokenizers.Tokenizer, roles: Roles) -> frozenset[str]:
    """The special tokens that are tokens in every text too: markers that users added, such as [e1].

    Not those with a role, nor the usual names of these, nor sentinels: a text that spells [MASK] is only text.
    """
    special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    return frozenset(token for token in special - set(roles.values()) - USUAL if not SENTINEL.fullmatch(token))


def demoted(backend: tokenizers.Tokenizer, tokens: frozenset[str]) -> tokenizers.Tokenizer:
    """The backend with these special tokens as normal added tokens, which `encode_special_tokens` does not affect."""
    return _marked(backend, tokens, special=False) if tokens else backend


def promoted(backend: tokenizers.Tokenizer, tokens: frozenset[str]) -> tokenizers.Tokenizer:
    """The inverse of `demoted`."""
    return _marked(backend, tokens, special=True) if tokens else backend


def _marked(backend: tokenizers.Tokenizer, tokens: frozenset[str], special: bool) -> tokenizers.Tokenizer:
    content = json.loads(backend.to_str())
    for entry in content["added_tokens"]:
        if entry["content"] in tokens:
            entry["special"] = special
    return tokenizers.Tokenizer.from_str(json.dumps(content))


class Splitter:
    """Finds added tokens in a text, as the tokenizers library does, for an encoder that does not know them."""

    def __init__(self, backend: tokenizers.Tokenizer, tokens: Collection[str], fold: normalizers.Normalizer | None):
        """Finds these tokens of the backend; those with the flag `normalized` in the text after `fold`."""
        added = {token.content: (i, token) for i, token in backend.get_added_tokens_decoder().items()}
        self._splitter = tokenizers.Tokenizer(models.WordLevel({REST: 0}, unk_token=REST))
        if fold is not None:
            self._splitter.normalizer = fold
        self._splitter.add_tokens([added[token][1] for token in tokens])
        self.ids = {self._splitter.token_to_id(token): added[token][0] for token in tokens}
        self._splitter.encode_special_tokens = False

    def split(self, text: str) -> list[tuple[int, int, int | None]]:
        """(start, end, id) of each part of the text; the id is None where the text is not an added token."""
        parts: list[tuple[int, int, int | None]] = []
        end = 0
        encoded = self._splitter.encode(text, add_special_tokens=False) if self.ids else None
        # What lies between added tokens is not taken from the offsets, which are vague where `fold` changes the text.
        for i, (first, last) in zip(encoded.ids, encoded.offsets, strict=True) if encoded else ():
            if i in self.ids:
                parts += [(end, first, None)] if first > end else []
                parts.append((first, last, self.ids[i]))
                end = last
        return [*parts, (end, len(text), None)] if end < len(text) or not parts else parts
