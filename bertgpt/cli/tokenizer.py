"""`bertgpt tokenizer`: train a tokenizer on text files, or look into one."""

import argparse
from pathlib import Path
from typing import Any

from bertgpt.types import UserError

# Kinds of tokenizers: for each the config in `data.tokenizer`, and what --style may be.
KINDS = {
    "wordpiece": ("WordPiece", ()),
    "byte_bpe": ("ByteBPE", ("roberta", "gpt2")),
    "unigram": ("SentencePiece", ("t5", "albert")),
    "bpe": ("SentencePiece", ("t5", "albert")),
}
# Flags of `tokenizer train`, which configs have such a field, and how they are read. Defaults are those of the fields.
TOKENIZER = (
    ("style", "ByteBPE SentencePiece", {"help": "special tokens: roberta (default) or gpt2; t5 (default) or albert"}),
    ("vocab_size", "WordPiece ByteBPE SentencePiece", {"type": int, "help": "tokens at most, special ones included"}),
    ("min_frequency", "WordPiece ByteBPE", {"type": int, "help": "a piece must occur this often (default: 2)"}),
    ("limit_alphabet", "WordPiece", {"type": int, "help": "wordpiece: characters kept at most (default: 1000)"}),
    ("cased", "WordPiece", {"action": "store_true", "default": None, "help": "wordpiece: keep case and accents"}),
    ("character_coverage", "SentencePiece", {"type": float, "help": "share of characters to know (default: 0.9995)"}),
    ("byte_fallback", "SentencePiece", {"action": "store_true", "default": None, "help": "spell the others in bytes"}),
    ("sentinels", "SentencePiece", {"type": int, "help": "t5: how many <extra_id_…> (default: 100)"}),
)  # fmt: skip


def add_tokenizer_command(commands: Any) -> None:
    command = commands.add_parser("tokenizer", help="train a tokenizer, or look into one")
    action = command.add_subparsers(dest="action", required=True, metavar="ACTION")
    command = action.add_parser("train", help="train WordPiece, byte-level BPE or SentencePiece on text files")
    add_text_arguments(command)
    command.add_argument("--kind", choices=KINDS, default="wordpiece", help="default: %(default)s")
    for name, _, options in TOKENIZER:
        command.add_argument(f"--{name}", **options)
    command.set_defaults(call=tokenizer_command)
    command = action.add_parser("inspect", help="what a tokenizer is, and how it takes texts apart")
    command.add_argument("tokenizer", help="directory or file of a tokenizer, or directory of a run")
    command.add_argument("source", nargs="*", help="text to measure it on: file, directory, glob, …")
    command.add_argument(
        "--text", action="append", default=[], help="text to show in pieces; may be given several times"
    )
    command.add_argument("--text_field", default="text", help="column with the text (default: %(default)s)")
    command.set_defaults(call=inspect_command)


def add_text_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("source", help="file, directory, glob or URL, package:module/inner/file, or tfds:NAME")
    command.add_argument("--out", required=True, help="folder to write")
    command.add_argument("--text_field", default="text", help="column with the text (default: %(default)s)")
    command.add_argument("--strip_html", action="store_true", help="turn <br> into line breaks and remove other tags")


def tokenizer_command(args: argparse.Namespace) -> int:
    from bertgpt.prepare.corpus import Corpus

    corpus = Corpus(
        args.source, tokenizer_config(args), text_field=args.text_field, strip_html=args.strip_html,
        validation=0.0, test=0.0,
    )  # fmt: skip
    tokenizer = corpus.train_tokenizer()
    save_into(args.out, tokenizer.save)
    print(f"{args.out}: {tokenizer.vocab.size:,} tokens, hash {tokenizer.hash}")
    return 0


def tokenizer_config(args: argparse.Namespace) -> Any:
    """The config of --kind with the flags that were given.

    Raises:
      UserError: a flag or a style that this kind does not have.
    """
    from bertgpt.data import tokenizer

    config, styles = KINDS[args.kind]
    given = {name: value for name, _, _ in TOKENIZER if (value := getattr(args, name)) is not None}
    for name, owners, _ in TOKENIZER:
        if name in given and config not in owners.split():
            raise UserError(f"bertgpt tokenizer train: --{name} is not for --kind {args.kind}")
    if "style" in given and given["style"] not in styles:
        raise UserError(f"bertgpt tokenizer train: --style {given['style']}: {args.kind} has {' and '.join(styles)}")
    if "sentinels" in given and given.get("style") == "albert":
        raise UserError("bertgpt tokenizer train: --sentinels is not for --style albert")
    if config == "SentencePiece":
        given["kind"] = args.kind
    if "cased" in given:
        given["lowercase"] = not given.pop("cased")
    return getattr(tokenizer, config)(**given)


def inspect_command(args: argparse.Namespace) -> int:
    from bertgpt.data.sources.text import clean, read_documents
    from bertgpt.data.tokenizer import load_tokenizer
    from bertgpt.data.tokenizer_inspect import describe, measure, readable
    from bertgpt.training.log import print_table

    path = Path(args.tokenizer)
    inside = path / "tokenizer"  # of a run
    tokenizer = load_tokenizer(inside if inside.is_dir() else path)
    print_table(str(path), ["", "value"], [[name, value] for name, value in describe(tokenizer).items()])
    for text in args.text:
        ids = tokenizer.encode([text], parse_special=True)[0]
        print(f"text:   {text}")
        print(f"pieces: {' '.join(readable(tokenizer, ids))}")
        print(f"ids:    {' '.join(map(str, ids))}")
    for source in args.source:
        documents = read_documents(source, args.text_field)
        fit = measure(tokenizer, (clean(document.text, strip_html=False) for document in documents), source)
        print_table(source, ["", "value"], [[name, value] for name, value in fit.rows().items()])
        rows = [[piece, f"{count:,}"] for piece, count in fit.longest(tokenizer)]
        print_table("longest pieces", ["piece", "times"], rows)
    return 0


def save_into(out: str, save: Any) -> None:
    try:
        save(Path(out))
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}") from None
