"""List the experiments that come with bertgpt, and their arms."""

import dataclasses
import importlib

from bertgpt.cli.experiments import find_all
from bertgpt.cli.options import Command, Positional

FOOTER = """
`bertgpt train demo/pretrain` trains an experiment, `demo/sentiment:scratch` one arm of another. In a checkout the path
of the file (experiments/demo/pretrain.py) is another name for it, in Python that of the module
(bertgpt.experiments.demo.pretrain)."""


@dataclasses.dataclass(frozen=True)
class Options:
    """List the experiments that come with bertgpt, each with the first line of its docstring, and their arms."""

    folder: Positional[str] = ""
    """list those in this folder only, e.g. finetune"""
    arms: bool = True
    """show arms too, for which the experiments are imported"""


def run(options: Options) -> int:
    for found in find_all():
        if not found.name.startswith(options.folder):
            continue
        print(f"{found.name:<32} {found.title}")
        if options.arms:
            arms = vars(importlib.import_module(found.module)).get("ARMS", {})
            if arms:
                print(" " * 33 + " ".join(f":{arm}" for arm in arms))
    print(FOOTER)
    return 0


COMMAND = Command(Options, run)
