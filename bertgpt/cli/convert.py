"""Convert models from and to the Hugging Face format, or compare them with transformers."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from bertgpt.cli.options import Command, Inline, Positional
from bertgpt.inference.compose import Joining
from bertgpt.ranges import Natural
from bertgpt.types import UserError

if TYPE_CHECKING:
    from bertgpt.inference.model import Model


@dataclasses.dataclass(frozen=True)
class Options:
    """Convert a Hugging Face model to bertgpt's format, or a run or converted model to the Hugging Face format."""

    source: Positional[str]
    """directory of a run, a converted model or a Hugging Face model"""
    out: Positional[str | None] = None
    """directory to write"""
    verify: bool = False
    """compare outputs and gradients with those of transformers, and write nothing; exit code 1 if they differ"""
    architecture: str | None = None
    """transformers class to write, e.g. BertForMaskedLM (None: the one that fits)"""
    drop_crf: bool = False
    """write a tagger without its conditional random field, which changes its answers"""
    task_name: str | None = None
    """of a run of several tasks, the one to write"""
    step: Natural | None = None
    """checkpoint to use (None: the newest)"""
    language: str | None = None
    """join the part of the source that reads images with this language model (a directory or an id of the Hub), as
    --join says, and write a model in bertgpt's format to train from with --init_from"""
    how: Inline[Joining] = Joining()
    """how they are joined"""


def run(options: Options) -> int:
    from bertgpt.inference.export import convert

    if options.verify == (options.out is not None):
        raise UserError("bertgpt convert: give either a directory to write, or --verify")
    if options.language is None and options.how != Joining():
        raise UserError("bertgpt convert: --join, --projector, --features and --layer need --language")
    if options.language is not None:
        return join(options)
    if options.verify:
        return verify_conversion(options)
    source = read(options)
    if source.report is not None:
        for kind, names in source.report.items():
            print(f"{kind}: {len(names)} tensors" + (f" ({', '.join(names)})" if names and kind != "loaded" else ""))
    print(f"{options.out}: {convert(source, Path(options.out), options.architecture, options.drop_crf)}")
    return 0


def join(options: Options) -> int:
    """Joins the source with a language model."""
    from bertgpt.inference.compose import compose

    if options.out is None or options.architecture is not None or options.step is not None:
        raise UserError("bertgpt convert: --language goes with a source, a directory to write, and how to join alone")
    report = compose(options.source, options.language, options.out, options.how).report
    counts = ", ".join(f"{len(names)} {kind}" for kind, names in report.items())
    print(f"{options.out}: {counts}; train it with --init_from {options.out} --model None")
    return 0


def read(options: Options) -> "Model":
    """The source, of a run of several tasks the one that is named."""
    from bertgpt.inference.model import load
    from bertgpt.inference.predict import one_task

    model = load(options.source, options.step, arrange="host")
    return model if options.task_name is None else one_task(model, options.task_name)


def verify_conversion(options: Options) -> int:
    """Prints the errors; exit code 1 if one is too large."""
    import tempfile

    from bertgpt.convert.sentence_transformers import is_sentence_transformer, model_folder
    from bertgpt.convert.verify import TOLERANCES, verify
    from bertgpt.inference.export import convert
    from bertgpt.inference.model import resolve
    from bertgpt.training.log import print_table

    with tempfile.TemporaryDirectory() as folder:
        directory = resolve(options.source)
        if any((directory / marker).exists() for marker in ("experiment.json", "model.json")):
            directory = Path(folder) / "exported"
            convert(read(options), directory, options.architecture, options.drop_crf)
        if is_sentence_transformer(directory):
            directory = directory / model_folder(directory)
        errors = verify(directory)
    rows = [[kind, f"{errors[kind]:.1e}", f"{limit:.0e}"] for kind, limit in TOLERANCES.items()]
    print_table("against transformers", ["", "largest relative error", "allowed"], rows)
    return int(any(not errors[kind] <= limit for kind, limit in TOLERANCES.items()))


COMMAND = Command(Options, run)
