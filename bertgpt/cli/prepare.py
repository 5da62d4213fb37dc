"""`bertgpt prepare`: its flags, and what it does with them. Heavy modules are imported when needed."""

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

from bertgpt.types import UserError


def add_prepare_command(commands: Any) -> None:
    """Fields of `filters.Preparation` under their names, and how to work. No flag, no value: the field's default."""
    command = commands.add_parser(
        "prepare",
        help="tokenize text files into a store that experiments map into memory",
        epilog="Flags of Apache Beam may follow after --. A preparation that was stopped goes on when the same command"
        " is given again.",
    )
    source = "file, directory, glob or URL, package:module/inner/file, or tfds:NAME"
    command.add_argument("source", nargs="?", help=source)
    command.add_argument("--out", help="folder to write")
    command.add_argument("--tokenizer", help="directory of the tokenizer")
    command.add_argument("--text_field", help="column with the text (default: text)")
    command.add_argument("--id_field", help="column with ids; the same id twice is an error")
    command.add_argument("--strip_html", action="store_true", help="turn <br> into line breaks and remove other tags")
    command.add_argument("--normalize", choices=("nfc", "nfkc"), help="Unicode normalisation (default: none)")
    command.add_argument("--remove_control", action="store_true", help="remove control and invisible characters")
    command.add_argument("--min_chars", type=int, help="drop documents with fewer characters")
    command.add_argument("--max_chars", type=int, help="drop documents with more characters")
    command.add_argument("--boilerplate", action="store_true", help="drop listings, tables and code")
    command.add_argument("--language_filter", metavar="MODULE:FUNCTION", help="keep texts of which this is true")
    command.add_argument(
        "--near_duplicates",
        type=float,
        metavar="JACCARD",
        help="drop documents this similar to an earlier one, e.g. 0.8",
    )
    command.add_argument("--validation", type=float, help="fraction held out (default: 0.02)")
    command.add_argument("--test", type=float, help="fraction held out (default: 0.02)")
    command.add_argument("--shard_tokens", type=int, help="tokens of a shard, about (default: 100 million)")
    command.add_argument("--block_documents", type=int, help="documents worked on together, at most (default: 2000)")
    command.add_argument("--workers", type=int, help="processes (default: one for each processor)")
    command.add_argument("--runner", choices=("local", "beam"), default="local", help="default: %(default)s")
    command.add_argument("--check", metavar="STORE", help="compare every byte of a store with its hashes; nothing else")
    command.set_defaults(call=prepare_command, beam_flags=[])


def prepare_command(args: argparse.Namespace) -> int:
    from bertgpt.data.store import check_store
    from bertgpt.data.tokenizer import load_tokenizer
    from bertgpt.prepare.filters import Preparation
    from bertgpt.prepare.pipeline import prepare
    from bertgpt.prepare.workers import available_cpus

    if args.check:
        print(f"{args.check}: every file is as it was written; digest {check_store(Path(args.check))['digest']}")
        return 0
    if missing := [name for name in ("source", "tokenizer", "out") if getattr(args, name) is None]:
        raise UserError(f"bertgpt prepare: the following arguments are required: {', '.join(missing)}")
    if args.workers is not None and args.workers < 1:
        raise UserError(f"--workers {args.workers} must be at least 1")
    if args.beam_flags and args.runner != "beam":
        raise UserError(f"bertgpt prepare: {args.beam_flags[0]} is for --runner beam")
    sys.path.insert(0, os.getcwd())  # where the module of --language_filter may lie
    fields = [field.name for field in dataclasses.fields(Preparation)]
    settings = Preparation(**{name: value for name in fields if (value := getattr(args, name, None)) is not None})
    tokenizer = load_tokenizer(args.tokenizer)
    out = Path(args.out)
    try:
        if args.runner == "beam":
            from bertgpt.prepare.beam import prepare_with_beam

            prepare_with_beam(args.source, tokenizer, args.out, settings, args.beam_flags)
        else:
            prepare(args.source, tokenizer, out, settings, processes=args.workers or available_cpus())
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}") from None
    except KeyboardInterrupt:
        print(f"bertgpt: {out}: interrupted. The same command goes on.", file=sys.stderr)
        return 130
    if (out / "report.json").exists():  # else it lies in a bucket
        print_preparation(out)
    return 0


def print_preparation(out: Path) -> None:
    """A summary of the report of a store."""
    from bertgpt.prepare.report import summary_of

    for line in summary_of(out, json.loads((out / "report.json").read_text(encoding="utf-8"))):
        print(line)
