"""Convert models from and to the Hugging Face format, or compare them with transformers."""

import dataclasses
from pathlib import Path

from bertgpt.cli.options import Command, Positional
from bertgpt.ranges import Natural
from bertgpt.types import UserError


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
    step: Natural | None = None
    """checkpoint to use (None: the newest)"""


def run(options: Options) -> int:
    from bertgpt.inference.export import convert
    from bertgpt.inference.model import load, resolve

    if options.verify == (options.out is not None):
        raise UserError("bertgpt convert: give either a directory to write, or --verify")
    if options.verify:
        return verify_conversion(resolve(options.source), options.step)
    source = load(options.source, options.step, arrange="host")
    if source.report is not None:
        for kind, names in source.report.items():
            print(f"{kind}: {len(names)} tensors" + (f" ({', '.join(names)})" if names and kind != "loaded" else ""))
    print(f"{options.out}: {convert(source, Path(options.out), options.architecture)}")
    return 0


def verify_conversion(source: Path, step: int | None) -> int:
    """Prints the errors; exit code 1 if one is too large."""
    import tempfile

    from bertgpt.convert.verify import TOLERANCES, verify
    from bertgpt.inference.export import convert
    from bertgpt.inference.model import load
    from bertgpt.training.log import print_table

    with tempfile.TemporaryDirectory() as folder:
        directory = source
        if not (source / "config.json").exists():
            directory = Path(folder) / "exported"
            convert(load(source, step, arrange="host"), directory)
        errors = verify(directory)
    rows = [[kind, f"{errors[kind]:.1e}", f"{limit:.0e}"] for kind, limit in TOLERANCES.items()]
    print_table("against transformers", ["", "largest relative error", "allowed"], rows)
    return int(any(not errors[kind] <= limit for kind, limit in TOLERANCES.items()))


COMMAND = Command(Options, run)
