"""Cleaning and filtering of documents.

The rules are deliberately few and simple; dropped documents are counted by reason. Boilerplate is detected by the
heuristics of Gopher (Rae et al. 2021, table A1) and C4 (Raffel et al. 2020, section 2.2). Deviations: C4 drops lines,
and every page with a brace; here whole documents are kept or dropped, and prose may contain a brace. Gopher has some
twenty rules; here are those that separate listings, tables and code from prose.
"""

import dataclasses
import functools
import hashlib
import importlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Annotated, Literal

from bertgpt.data.sources.text import Document, clean, strip_markup
from bertgpt.io.files import LINE_BYTES
from bertgpt.ranges import Count, Natural, Range, Rate, check_fields
from bertgpt.types import UserError

# C0 and C1 controls that are not white space, and invisible characters: soft hyphen, zero-width space, word joiner,
# byte order mark, direction marks. The joiners U+200C and U+200D are kept: Persian, Indic scripts and emoji need them.
CONTROL = [*range(0x00, 0x09), *range(0x0E, 0x1C), *range(0x7F, 0x85), *range(0x86, 0xA0)]
INVISIBLE = [
    0xAD,
    0x200B,
    0x200E,
    0x200F,
    *range(0x202A, 0x202F),
    *range(0x2060, 0x2065),
    *range(0x2066, 0x206A),
    0xFEFF,
]
_DELETE = dict.fromkeys([*CONTROL, *INVISIBLE])

REPEATED_LINES = 0.3  # fraction of lines that repeat an earlier one (Gopher: 0.3)
UNPUNCTUATED_LINES = 0.8  # fraction of lines that do not end in . ! ? … or a quote (C4 drops each such line)
MIN_LINES = 5  # documents with fewer lines are not checked by line
BULLET_LINES = 0.9  # fraction of lines that begin with a bullet (Gopher: 0.9)
LETTER_WORDS = 0.8  # minimum fraction of words with a letter (Gopher: 0.8)
BRACE_CHARS = 0.005  # fraction of characters that are braces or angle brackets (C4: one brace in the page)

_BULLETS = tuple("•●○■□▪▫◦‣⁃–-*·")
_STOPS = tuple(".!?…。！？：:;\"'”’»」』)）")


@dataclasses.dataclass(frozen=True)
class Preparation:
    """How raw text becomes a token store.

    The defaults change no text, and drop only empty documents and duplicates: those that differ from an earlier
    document in nothing but spaces, tabs, and the white space at both ends.
    """

    text_field: str = "text"
    """column of .csv, .tsv, .jsonl and .parquet files that holds the text"""
    id_field: str | None = None
    """column that holds the id of a document; a repeated id is an error (None: documents have no ids)"""
    max_line_bytes: Count = LINE_BYTES
    """the longest line of a file, document of a .txt file and field of a table, in bytes; a longer one is an error"""
    strip_html: bool = False
    """turn <br> into line breaks and remove other tags"""
    normalize: Literal["nfc", "nfkc"] | None = None
    """Unicode normalisation: compose accents (nfc), also unify full-width forms, ligatures and similar (nfkc)"""
    remove_control: bool = False
    """remove control and invisible characters (`CONTROL`, `INVISIBLE`); line ends become \\n"""
    min_chars: Natural = 0
    """documents with fewer characters are dropped"""
    max_chars: Count | None = None
    """documents with more characters are dropped (None: no limit)"""
    boilerplate: bool = False
    """drop listings, tables and code (see `boilerplate_reason`)"""
    language_filter: Callable[[str], bool] | str | None = None
    """function that returns whether to keep a text, or its name module:function (None: keep all)"""
    near_duplicates: Annotated[float, Range(0.0, 1.0, above=True)] | None = None
    """drop documents whose estimated Jaccard similarity to an earlier one is at least this (None: keep them)"""
    validation: Rate = 0.02
    """fraction of documents held out for validation"""
    test: Rate = 0.02
    """fraction of documents held out for testing"""
    shard_tokens: Annotated[int, Range(1, 10**12)] = 100_000_000
    """approximate number of tokens in a shard: a document belongs to the shard in which it begins"""
    block_documents: Count = 2000
    """documents that are processed and saved together; fewer if they are long"""

    def __post_init__(self):
        check_fields(self)
        if self.validation + self.test >= 1.0:
            raise UserError(f"prepare: validation={self.validation} and test={self.test} must leave text to train on")
        if self.max_chars is not None and self.max_chars < max(self.min_chars, 1):
            raise UserError(f"prepare: max_chars={self.max_chars} is below min_chars={self.min_chars}")
        load_filter(self.language_filter)

    def describe(self) -> dict[str, str | int | float | bool | None]:
        """The fields as JSON; a function becomes its name."""
        values = dataclasses.asdict(self)
        if callable(self.language_filter):
            function = self.language_filter
            values["language_filter"] = f"{function.__module__}:{function.__qualname__}"
        return values


@functools.cache
def load_filter(name: Callable[[str], bool] | str | None) -> Callable[[str], bool] | None:
    """The function that `language_filter` names.

    Raises:
      UserError: the name is not module:function, or there is no such function.
    """
    if name is None or callable(name):
        return name
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise UserError(f"language_filter {name!r} must read module:function")
    try:
        found = getattr(importlib.import_module(module), function)  # a name in user code: there is nothing to declare
    except (ImportError, AttributeError) as error:
        raise UserError(f"language_filter {name!r}: {error}") from None
    if not callable(found):
        raise UserError(f"language_filter {name!r} is not a function")
    return found


def clean_document(text: str, settings: Preparation) -> str:
    """The text as it is filtered and tokenised: changed only where `settings` ask for it."""
    if settings.normalize is not None:
        text = unicodedata.normalize(settings.normalize.upper(), text)
    if settings.remove_control and not (text.isascii() and text.isprintable()):
        text = text.replace("\r\n", "\n").translate(_DELETE)
    return strip_markup(text) if settings.strip_html else text


def reason_to_drop(text: str, settings: Preparation) -> str | None:
    """Why a cleaned text is dropped, by the first rule that applies; None: it is kept.

    Raises:
      UserError: the language filter raised an error.
    """
    if not text or text.isspace():
        return "empty"
    if len(text) < settings.min_chars:
        return "too_short"
    if settings.max_chars is not None and len(text) > settings.max_chars:
        return "too_long"
    if settings.boilerplate and (reason := boilerplate_reason(text)):
        return f"boilerplate:{reason}"
    keep = load_filter(settings.language_filter)
    if keep is not None:
        try:
            wanted = keep(text)
        except Exception as error:  # of user code
            raise UserError(f"language_filter: {type(error).__name__}: {error} (text {text[:60]!r})") from None
        if not wanted:
            return "language"
    return None


def boilerplate_reason(text: str) -> str | None:
    """The kind of boilerplate: repeated_lines, unpunctuated_lines, bullets, few_letters, braces; or None.

    Blank lines do not count. The thresholds are constants of this module.
    """
    lines = [stripped for line in text.split("\n") if (stripped := line.strip())]
    if len(lines) >= MIN_LINES:
        if len(lines) - len(set(lines)) > REPEATED_LINES * len(lines):
            return "repeated_lines"
        if sum(line.startswith(_BULLETS) for line in lines) > BULLET_LINES * len(lines):
            return "bullets"
        if sum(not line.endswith(_STOPS) for line in lines) > UNPUNCTUATED_LINES * len(lines):
            return "unpunctuated_lines"
    words = text.split()
    if sum(_has_letter(word) for word in words) < LETTER_WORDS * len(words):
        return "few_letters"
    if sum(map(text.count, "{}<>")) > BRACE_CHARS * len(text):
        return "braces"
    return None


def _has_letter(word: str) -> bool:
    return word.isalpha() or _LETTER.search(word) is not None


_LETTER = re.compile(r"[^\W\d_]")


def hash_of(text: str) -> int:
    """A 64-bit hash: the probability of any collision among 10⁹ texts is 3 %."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def unique_documents(documents: Iterator[Document], strip_html: bool, dropped: Counter) -> Iterator[str]:
    """Texts without markup where `strip_html` asks for it, each once; `dropped` counts the others by reason."""
    seen = set()
    for document in documents:
        text = strip_markup(document.text) if strip_html else document.text
        key = hash_of(clean(text, strip_html=False))
        if not text or text.isspace():
            dropped["empty"] += 1
        elif key in seen:
            dropped["duplicate"] += 1
        else:
            seen.add(key)
            yield text
