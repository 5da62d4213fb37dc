"""Draw learning curves and tables of runs."""

import dataclasses

from bertgpt.cli.options import Command, Positional


@dataclasses.dataclass(frozen=True)
class Options:
    """Draw learning curves and tables of runs, as a page."""

    runs: Positional[tuple[str, ...]]
    """directories of runs"""
    out: str = "report"
    """folder to write"""


def run(options: Options) -> int:
    from bertgpt.studies.report import report

    for path in report(options.runs, options.out):
        print(path)
    return 0


COMMAND = Command(Options, run)
