"""Draw learning curves and tables of runs."""

import dataclasses

from bertgpt.cli.options import Command, Positional
from bertgpt.io.paths import shown


@dataclasses.dataclass(frozen=True)
class Options:
    """Draw learning curves and tables of runs, as a page."""

    runs: Positional[tuple[str, ...]]
    """directories of runs, or their URLs"""
    out: str = "report"
    """folder to write"""


def run(options: Options) -> int:
    from bertgpt.studies.report import report

    for path in report(options.runs, options.out):
        print(shown(str(path)))
    return 0


COMMAND = Command(Options, run)
