"""Plan a run on accelerators that are not there: does it fit, what bounds it, how long and how many chip-hours?"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from bertgpt.cli.experiments import FIELDS, describe_fields, load_one, with_fields
from bertgpt.cli.options import Command, Fields, Positional
from bertgpt.ranges import Count, Natural, NonNegative, Positive

if TYPE_CHECKING:
    from bertgpt.config import Experiment
    from bertgpt.planning.plan import Plan


@dataclasses.dataclass(frozen=True)
class Options:
    """Compile the training step of an experiment ahead of time for accelerators that need not be there, and show what
    it needs: memory, FLOPs, communication, its time by published peaks, and what the whole run takes."""

    experiment: Positional[str]
    """name from `bertgpt list`, file or module; NAME:ARM for one arm"""
    topology: str
    """CHIP:LAYOUT: TPUs v4, v5e, v5p, v6e such as v5e:16x16 or v5p:4x4x4 (needs bertgpt[tpu]); GPUs by counts, such as
    h100:8 or a100:16; host devices, cpu:8"""
    slices: Count = 1
    """this many of that topology, connected by the data centre network: --mesh.dcn"""
    price: NonNegative | None = None
    """of a chip for an hour, in any currency, to show the cost of the run"""
    tries: Natural = 3
    """if it does not fit, compile at most this many settings that need less memory, until one fits"""
    search: bool = False
    """compile several meshes, remat policies and microbatches, and rank them"""
    candidates: Count = 12
    """settings that a search compiles: those that look best by formula"""
    workers: Count = 1
    """processes that compile at the same time; each takes about a core and a few GB of memory"""
    minutes: Positive = 30.0
    """longest time for compiling one setting of a search"""
    try_microbatches: tuple[Count, ...] = (1, 2, 4)
    """numbers of microbatches that a search tries"""
    json: str | None = None
    """file to write the plan to, or the list of plans of a search, the best first"""
    picture: str | None = None
    """PNG file to draw: memory as stacked bars, and the roofline (needs bertgpt[plot])"""
    workdir: str = "runs"
    """folder of the runs: of init_from, and of compiled plans, which are kept in WORKDIR/cache/plans"""
    fields: Fields = ()


def run(options: Options) -> int:
    import jax

    from bertgpt.cli.records import check_output
    from bertgpt.io.files import write_json
    from bertgpt.io.paths import cache_of, local_path
    from bertgpt.planning.compile import find_target
    from bertgpt.planning.plan import make_plan
    from bertgpt.planning.report import draw, lines_of, ranked
    from bertgpt.runs.mirror import open_copy
    from bertgpt.training.start import find_architecture

    for flag, path in (("--json", options.json), ("--picture", options.picture)):
        if path is not None:  # compiling may take minutes: a file that cannot be written is refused before
            check_output(path, flag)
    jax.config.update("jax_platforms", "cpu")  # the devices of this machine are not needed
    workdir = local_path(options.workdir)
    (experiment,) = with_fields([load_one(options.experiment)], options.fields)
    experiment, _ = find_architecture(experiment, open_copy(workdir / experiment.name), workdir)
    target = find_target(options.topology, options.slices)
    cache = cache_of(workdir) / "plans"
    if options.search:
        plans = ranked(search_settings(options, experiment, cache))
    else:
        plans = [make_plan(experiment, target, cache)]
        for line in lines_of(plans[0], options.price):
            print(line)
        if not plans[0].fits:
            plans += advise(plans[0], cache, options.tries)
    if options.json is not None:
        values = [plan.as_json(options.price) for plan in plans]
        write_json(Path(options.json), values if options.search else values[0])
    if options.picture is not None:
        draw(plans, Path(options.picture))
    return 0 if any(plan.fits for plan in plans[:1]) else 1


def search_settings(options: Options, experiment: "Experiment", cache: Path) -> list["Plan"]:
    """The plans of a search; prints each as it is done, and the ranking."""
    from bertgpt.planning.compile import find_target
    from bertgpt.planning.report import describe_settings, ranking
    from bertgpt.planning.search import search
    from bertgpt.training.log import print_table

    def done(setting: "Experiment", plan: "Plan | str") -> None:
        if isinstance(plan, str):
            print(f"{vars(setting.mesh)}: {plan}", flush=True)
        else:
            print(f"{describe_settings(plan)}: compiled in {plan.program.seconds:,.0f} s", flush=True)

    plans = search(
        experiment,
        find_target(options.topology, options.slices),
        cache,
        limit=options.candidates,
        workers=options.workers,
        minutes=options.minutes,
        microbatches=options.try_microbatches,
        done=done,
    )
    print_table(f"{experiment.name} on {options.topology}", *ranking(plans))
    return plans


def advise(plan: "Plan", cache: Path, tries: int) -> list["Plan"]:
    """Says what would fit in place of a plan that does not. Returns that plan, if one is found."""
    from bertgpt.planning.plan import first_that_fits
    from bertgpt.planning.report import describe_settings, gib

    if plan.limit is not None and plan.state > plan.limit:
        least = -(-plan.state // plan.limit)
        print(
            f"\nThe state alone does not fit: split it over at least {least:.0f} times as many devices (--mesh.fsdp)."
        )
        return []
    other, number = first_that_fits(plan, cache, tries)
    if other is None:
        print(f"\nNone of {number} settings tried fits; --search tries other meshes, --tries N more settings.")
        return []
    print(f"\nFits: {describe_settings(other)}, {gib(other.program.peak)} of {gib(other.limit)}.")
    return [other]


COMMAND = Command(Options, run, epilog=FIELDS, describe=describe_fields)
