"""Train a tokenizer, or inspect one."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from bertgpt.cli.options import Command, Fields, Positional, Repeatable, print_fields
from bertgpt.overrides import UnknownField, parse_overrides, split_flags
from bertgpt.types import UserError

Kind = Literal["wordpiece", "byte_bpe", "unigram", "bpe"]


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a WordPiece, byte-level BPE or SentencePiece tokenizer on text files."""

    source: Positional[str]
    """file, directory, glob or URL, package:module/inner/file, or tfds:NAME"""
    out: str
    """folder to write"""
    text_field: str = "text"
    """column that holds the text"""
    strip_html: bool = False
    """turn <br> into line breaks and remove other tags"""
    kind: Kind = "wordpiece"
    """algorithm; unigram and bpe are those of SentencePiece"""
    fields: Fields = ()


@dataclasses.dataclass(frozen=True)
class Inspect:
    """Show what a tokenizer is and how it splits texts."""

    tokenizer: Positional[str]
    """directory or file of a tokenizer, directory of a run, or id of a model of the Hugging Face Hub"""
    source: Positional[tuple[str, ...]] = ()
    """texts to measure it on: files, directories, globs, …"""
    text: Repeatable[tuple[str, ...]] = ()
    """a text to show as tokens"""
    text_field: str = "text"
    """column that holds the text"""


def configs() -> dict[Kind, Any]:
    """The default config of each kind."""
    from bertgpt.data.tokenizer import ByteBPE, SentencePiece, WordPiece

    return {
        "wordpiece": WordPiece(),
        "byte_bpe": ByteBPE(),
        "unigram": SentencePiece("unigram"),
        "bpe": SentencePiece("bpe"),
    }


def train(options: Train) -> int:
    from bertgpt.data.tokenizer_codec import check_writable
    from bertgpt.io.directories import make_directory
    from bertgpt.io.locks import lock
    from bertgpt.prepare.corpus import Corpus

    if not options.out:
        raise UserError("--out: names no directory")

    corpus = Corpus(
        options.source, tokenizer_config(options.kind, options.fields),
        text_field=options.text_field, strip_html=options.strip_html, validation=0.0, test=0.0,
    )  # fmt: skip
    out = check_writable(Path(options.out))  # before minutes of training
    make_directory(out.parent)
    busy = f"{options.out}: another process is training a tokenizer there"
    with lock(out.with_name(f".{out.name}.lock"), busy, wait=False):
        tokenizer = corpus.train_tokenizer()
        tokenizer.save(out)
    print(f"{options.out}: {tokenizer.vocab.size:,} tokens, hash {tokenizer.hash}")
    return 0


def tokenizer_config(kind: Kind, flags: Sequence[str]) -> Any:
    """The config of a kind with what the flags set.

    Raises:
      UserError: a flag that this kind does not have, or a value that does not fit.
    """
    known = configs()
    given = [name for name, _ in split_flags(flags)]
    try:
        config = parse_overrides(known[kind], flags)
    except UnknownField as error:
        owners = [name for name, other in known.items() if error.path in vars(other)]
        if not owners:
            raise
        raise UserError(f"bertgpt tokenizer train: --{error.path} is not for --kind {kind}") from None
    if "sentinels" in given and config.style == "albert":
        raise UserError("bertgpt tokenizer train: --sentinels is not for --style albert")
    return config


def describe_kinds(words: Sequence[str]) -> None:
    """Prints the options of each kind of tokenizer."""
    for kind, config in configs().items():
        if kind != "bpe":  # SentencePiece too
            print()
            print_fields(type(config), config, f"bertgpt tokenizer train SOURCE --out OUT --kind {kind}")


def inspect(options: Inspect) -> int:
    from bertgpt.data.sources.text import read_documents
    from bertgpt.data.tokenizer import load_tokenizer
    from bertgpt.data.tokenizer_inspect import describe, measure, readable
    from bertgpt.training.log import print_table

    path = Path(options.tokenizer)
    inside = path / "tokenizer"  # of a run
    tokenizer = load_tokenizer(inside if inside.is_dir() else options.tokenizer)
    print_table(str(path), ["", "value"], [[name, value] for name, value in describe(tokenizer).items()])
    for text in options.text:
        ids = tokenizer.encode([text], parse_special=True)[0]
        print(f"text:   {text}")
        print(f"tokens: {' '.join(readable(tokenizer, ids))}")
        print(f"ids:    {' '.join(map(str, ids))}")
    for source in options.source:
        documents = read_documents(source, options.text_field)
        fit = measure(tokenizer, (document.text for document in documents), source)
        print_table(source, ["", "value"], [[name, value] for name, value in fit.rows().items()])
        rows = [[token, f"{count:,}"] for token, count in fit.longest(tokenizer)]
        print_table("longest tokens", ["token", "count"], rows)
    return 0


ACTIONS = {"train": Command(Train, train, describe=describe_kinds), "inspect": Command(Inspect, inspect)}
