"""Tokenize text files into a token store that experiments map into memory."""

import dataclasses
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

from bertgpt.cli.options import Command, Inline, Positional, Rest
from bertgpt.io.paths import local_path, shown
from bertgpt.prepare.filters import Preparation
from bertgpt.ranges import Range
from bertgpt.types import UserError


@dataclasses.dataclass(frozen=True)
class Options:
    """Tokenize text files into a token store that experiments map into memory."""

    source: Positional[str | None] = None
    """file, directory, glob or URL, package:module/inner/file, or tfds:NAME"""
    out: str | None = None
    """folder to write; also gs://BUCKET/FOLDER or s3://BUCKET/FOLDER"""
    tokenizer: str | None = None
    """directory of the tokenizer, or id of a model of the Hugging Face Hub"""
    workers: Annotated[int, Range(1, 10_000)] | None = None
    """processes (None: one for each processor)"""
    runner: Literal["local", "beam"] = "local"
    """processes of this machine, or Apache Beam, whose flags follow after --"""
    check: str | None = None
    """do nothing but compare every byte of this token store with its hashes"""
    preparation: Inline[Preparation] = Preparation()
    beam_flags: Rest = ()

    def __post_init__(self):
        if self.check is None:
            missing = [name for name in ("source", "tokenizer", "out") if vars(self)[name] is None]
            if missing:
                names = ", ".join(name.upper() if name == "source" else f"--{name}" for name in missing)
                raise UserError(f"bertgpt prepare: {names} {'is' if len(missing) == 1 else 'are'} required")
        if self.beam_flags and self.runner != "beam":
            raise UserError(f"bertgpt prepare: {self.beam_flags[0]} needs --runner beam")


def run(options: Options) -> int:
    from bertgpt.data.store import check_store
    from bertgpt.data.tokenizer import load_tokenizer
    from bertgpt.prepare.pipeline import is_prepared_copy, prepare
    from bertgpt.prepare.workers import available_cpus
    from bertgpt.runs.mirror import publish_directory

    if options.check:
        digest = check_store(Path(options.check))["digest"]
        print(f"{options.check}: every file has the bytes that were written; digest {digest}")
        return 0
    sys.path.insert(0, os.getcwd())  # where the module of --language_filter may lie
    tokenizer = load_tokenizer(options.tokenizer)
    out = local_path(options.out)
    try:
        if options.runner == "beam":
            from bertgpt.prepare.beam import prepare_with_beam

            prepare_with_beam(options.source, tokenizer, options.out, options.preparation, list(options.beam_flags))
        else:
            processes = options.workers or available_cpus()
            if not is_prepared_copy(out, options.source, tokenizer, options.preparation):
                prepare(options.source, tokenizer, out, options.preparation, processes=processes)
            publish_directory(out, last="store.json")
    except OSError as error:
        raise UserError(f"{options.out}: cannot be written: {error.strerror or error}") from None
    except KeyboardInterrupt:
        print(f"bertgpt: {options.out}: interrupted. The same command resumes it.", file=sys.stderr)
        return 130
    if (out / "report.json").exists():  # else it lies in a bucket
        print_preparation(out)
    return 0


def print_preparation(out: Path) -> None:
    """Prints a summary of a store's report."""
    from bertgpt.io.files import read_json_object
    from bertgpt.prepare.report import summary_of

    for line in summary_of(out, read_json_object(out / "report.json")):
        print(shown(line))


EPILOG = (
    "Flags of Apache Beam may follow after --. Running the same command again resumes a preparation that was stopped."
)
COMMAND = Command(Options, run, epilog=EPILOG)
