"""The class that encodes and decodes text."""

import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers

from bertgpt.data import tokenizer_files as formats
from bertgpt.data.tokenizer_added import SENTINEL, Splitter, demoted, found_in_text, promoted
from bertgpt.data.tokenizer_rules import BERT, Roles
from bertgpt.data.tokenizer_spiece import CONTROL, USER_DEFINED, folding, numbered_like, pieces_of_type
from bertgpt.io.directories import check_replaceable, replace_directory
from bertgpt.io.files import library_errors
from bertgpt.types import UserError, Vocab

# White space at the start of a token: space, \n, \t, \v, \f, \r. A word begins with it.
BYTE_BLANKS = ("Ġ", "Ċ", "ĉ", "ċ", "Č", "č")
PIECE_BLANKS = ("▁", "\n", "\t", "\v", "\f", "\r", *(f"<0x{ord(blank):02X}>" for blank in " \n\t\v\f\r"))


class Tokenizer:
    """Text ↔ ids. Encoding adds no special tokens and never pads or truncates."""

    def __init__(self, backend: tokenizers.Tokenizer, roles: Roles, spiece: bytes | None = None):
        """A tokenizer around a backend.

        Args:
          backend: vocabulary and rules.
          roles: pad, unk, cls, sep, mask, bos, eos, as far as they exist → special token.
          spiece: the SentencePiece model that the backend was made from, if any. Then the sentencepiece library
            encodes: the backend has the same ids, but reads “</s>” in a text as the special token and differs slightly
            in normalisation.
        """
        backend.no_padding()
        backend.no_truncation()
        self.roles, self.spiece = roles, spiece
        self.markers = found_in_text(backend, roles)
        if self.markers and spiece is not None:
            self.markers -= pieces_of_type(numbered_like(spiece, backend)[1], CONTROL)
        self.backend = demoted(backend, self.markers)
        self.backend.encode_special_tokens = True

    def __setstate__(self, state: dict[str, object]) -> None:
        """In another process; backends do not carry this setting along."""
        vars(self).update(state)
        self.backend.encode_special_tokens = True

    def backend_for(self, parse_special: bool) -> tokenizers.Tokenizer:
        """The backend that reads special tokens in texts as such, or as plain text.

        They are two, because threads share a tokenizer: one would see the setting that another needs.
        """
        return self._parsing if parse_special else self.backend

    @functools.cached_property
    def _parsing(self) -> tokenizers.Tokenizer:
        copy = tokenizers.Tokenizer.from_str(self.backend.to_str())
        copy.encode_special_tokens = False
        return copy

    @functools.cached_property
    def vocab(self) -> Vocab:
        ids = self.backend.get_vocab(with_added_tokens=True)
        numbers = {
            token: int(match[1]) for token in ids if "extra_id_" in token and (match := SENTINEL.fullmatch(token))
        }
        # Of <extra_id_0> and ▁<extra_id_0> the former.
        sentinels = {numbers[token]: ids[token] for token in sorted(numbers, reverse=True)}
        return Vocab(
            max(ids.values(), default=-1) + 1,
            **{role: ids.get(token) for role, token in self.roles.items()},
            sentinels=tuple(sentinels[number] for number in sorted(sentinels)),
            continuation=self._continuation(),
        )

    def _continuation(self) -> tuple[int, ...]:
        """Ids of subwords that continue a word, by the mark that the decoder removes; none if there is no such mark."""
        added = self.backend.get_added_tokens_decoder()
        special = {i for i, token in added.items() if token.special or token.content in self.markers}
        special |= {self.backend.token_to_id(token) for token in self.roles.values()}
        pieces = [(i, piece) for piece, i in self.backend.get_vocab().items() if i not in special]
        model = json.loads(self.backend.to_str())
        if model["model"]["type"] == "WordPiece":
            prefix = model["model"]["continuing_subword_prefix"]
            return tuple(sorted(i for i, piece in pieces if piece.startswith(prefix) and piece != prefix))
        decoder = json.dumps(model["decoder"], ensure_ascii=False)
        blanks = BYTE_BLANKS if "ByteLevel" in decoder else PIECE_BLANKS if "▁" in decoder else ("",)
        return tuple(sorted(i for i, piece in pieces if not piece.startswith(blanks)))

    @functools.cached_property
    def hash(self) -> str:
        """A digest of vocabulary and rules: tokenizers with equal hashes give equal ids."""
        canonical = json.dumps(json.loads(self.backend.to_str()), sort_keys=True)
        if self.roles != BERT:
            canonical += json.dumps(self.roles, sort_keys=True)
        if self.spiece is not None:
            canonical += hashlib.sha256(self.spiece).hexdigest()
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    @functools.cached_property
    def template(self) -> tuple[list[int], list[int]]:
        """(ids before a text, ids after it), the special-token template: [CLS] … [SEP] in BERT, … </s> in T5."""
        bare = self.backend.encode("a", add_special_tokens=False).ids
        encoded = self.backend.encode("a").ids
        before = next(i for i in range(len(encoded)) if encoded[i : i + len(bare)] == bare)
        return encoded[:before], encoded[before + len(bare) :]

    @functools.cached_property
    def separator(self) -> list[int]:
        """Ids between the two texts of a pair: [SEP] in BERT, </s></s> in RoBERTa, <|endoftext|> in GPT-2."""
        own = [self.roles.get("sep") or self.roles.get("eos")]
        ends = [self.backend.token_to_id(token) for token in own if token is not None]
        bare = self.backend.encode("a", add_special_tokens=False).ids
        before, after = self.template
        encoded = self.backend.encode("a", "a").ids
        found = encoded[len(before) + len(bare) : len(encoded) - len(after) - len(bare)]
        return found or after or ends

    def encode(self, texts: list[str], parse_special: bool = False) -> list[list[int]]:
        """Ids of each text. Added tokens are one id each, the special ones among them too.

        Args:
          texts: the texts.
          parse_special: “[MASK]” in a text is the special token too. Otherwise tokens with a role, and sentinels, are
            plain characters in a text.

        Raises:
          UserError: a text holds half of a surrogate pair, or the rules of the tokenizer are broken.
        """
        with library_errors("the tokenizer cannot encode a text"):
            try:
                if self.spiece is not None:
                    return self._encode_by_sentencepiece(texts, parse_special)
                found = self.backend_for(parse_special).encode_batch_fast(texts, add_special_tokens=False)
                return [item.ids for item in found]
            except Exception:
                for text in texts:
                    check_text(text)
                raise

    def _encode_by_sentencepiece(self, texts: list[str], parse_special: bool) -> list[list[int]]:
        processor, fold, _ = self._sentencepiece
        splitter = self._splitters[parse_special]
        if not splitter.ids:
            return processor.encode([fold(text) for text in texts])
        rows = []
        for text in texts:
            parts = splitter.split(text)  # sentencepiece drops the spaces beside added tokens
            ids = iter(processor.encode([fold(text[start:end]) for start, end, token in parts if token is None]))
            rows.append([i for *_, token in parts for i in (next(ids) if token is None else [token])])
        return rows

    @functools.cached_property
    def _sentencepiece(self) -> tuple[Any, Callable[[str], str], Splitter]:
        """(the library's encoder, the normalisation before it, what finds added tokens in a text)."""
        from sentencepiece import SentencePieceProcessor

        found = numbered_like(self.spiece, self.backend)
        assert found is not None  # as `sentencepiece_beside` has made sure
        return SentencePieceProcessor(model_proto=found[1]), folding(self.backend).normalize_str, self._splitters[False]

    @functools.cached_property
    def _splitters(self) -> tuple[Splitter, Splitter]:
        """What finds the added tokens that sentencepiece does not know: in plain text, and where special ones count."""
        added = self.backend.get_added_tokens_decoder()
        _, model = numbered_like(self.spiece, self.backend)
        own = pieces_of_type(model, USER_DEFINED)
        plain = [token.content for token in added.values() if not token.special and token.content not in own]
        every = [*plain, *(token.content for token in added.values() if token.special)]
        fold = folding(self.backend)
        return Splitter(self.backend, plain, fold), Splitter(self.backend, every, fold)

    def decode(self, ids: list[int]) -> str:
        """Text of the ids, without special tokens."""
        if self.markers:
            ids = [i for i in ids if self.backend.id_to_token(i) not in self.markers]
        return self.backend.decode(ids, skip_special_tokens=True)

    def tokens(self, ids: list[int]) -> list[str]:
        """The tokens as strings; an id without a token, which only a vocabulary with gaps has, as “<id 7>”."""
        return [self.backend.id_to_token(i) or f"<id {i}>" for i in ids]

    def files(self) -> dict[str, bytes]:
        """The files of the Hugging Face format, name → content."""
        return formats.write(
            promoted(self.backend, self.markers), self.roles, self.spiece, len(self.vocab.sentinels), self.markers
        )

    def save(self, directory: Path) -> None:
        """Writes a directory in the Hugging Face format atomically. Replaces a tokenizer that `save` wrote there.

        Raises:
          UserError: the directory holds anything else, or cannot be written.
        """
        check_writable(directory)
        with replace_directory(Path(directory), formats.FILES) as folder:
            for name, content in self.files().items():
                (folder / name).write_bytes(content)


def check_text(text: str) -> None:
    """Raises UserError if a text holds half of a surrogate pair, which is no character."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        before = text[max(error.start - 20, 0) : error.start]
        raise UserError(f"the text has half of a surrogate pair after {before!r}, which is no character") from None


def check_writable(directory: Path) -> Path:
    """The absolute path of a directory that `Tokenizer.save` may write: it is missing, empty, or was written by `save`.

    Raises:
      UserError: it is anything else.
    """
    target = check_replaceable(Path(directory), formats.FILES)
    if target.exists() and any(target.iterdir()) and not formats.made_here(target):
        raise UserError(f"{directory}: exists already and holds files that bertgpt did not write; name a new directory")
    return target
