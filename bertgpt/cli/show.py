"""Show an experiment: its fields, parameters, FLOPs, memory, and tokens per epoch."""

import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from bertgpt.cli.experiments import FIELDS, describe_fields, load_experiments, with_fields
from bertgpt.cli.options import Command, Fields, Positional
from bertgpt.config import Experiment, infer, leaves
from bertgpt.io.paths import cache_of, local_path
from bertgpt.runs.mirror import open_copy
from bertgpt.types import UserError

if TYPE_CHECKING:
    from bertgpt.data.loader import Batches
    from bertgpt.planning.estimate import Estimate


@dataclasses.dataclass(frozen=True)
class Options:
    """Show an experiment without training it: its fields, parameters by component, FLOPs per step, memory, and tokens
    per epoch."""

    experiment: Positional[str]
    """name from `bertgpt list`, file or module; NAME:ARM for one arm"""
    data: bool = False
    """read the data, to count its tokens and labels; training uses what this prepares"""
    workdir: str = "runs"
    """folder of the runs, where prepared data is kept"""
    fields: Fields = ()


def run(options: Options) -> int:
    workdir = local_path(options.workdir)
    for number, experiment in enumerate(with_fields(load_experiments(options.experiment), options.fields)):
        if number:
            print()
        print(f"{experiment.name}\n")
        for path, value in leaves(experiment):
            print(f"  {path:<36} {value}")
        print()
        for name, value in facts(experiment, workdir, options.data):
            print(f"  {name:<36} {value}")
    return 0


def facts(experiment: Experiment, workdir: Path, read_data: bool) -> list[tuple[str, str]]:
    """(name, value) of what the experiment costs; where a number is unknown, the value says why."""
    from bertgpt.planning.estimate import estimate, with_assumed_labels
    from bertgpt.training.start import find_architecture

    try:
        experiment, _ = find_architecture(experiment, open_copy(workdir / experiment.name), workdir)
    except UserError as error:
        return [("parameters", f"unknown: the model is that of init_from: {error}")]
    found: list[tuple[str, str]] = []
    batches, missing = None, "--data reads the data"
    try:
        if read_data:
            experiment = infer(experiment)
            batches = training_batches(experiment, workdir)
    except UserError as error:
        missing = str(error)
    if batches is None and (labelled := with_assumed_labels(experiment)) is not experiment:
        found.append(("labels", f"unknown, counted as 2: {missing}"))
        experiment = labelled
    try:
        found += costs(experiment, estimate(experiment, None if batches is None else batches[0]))
    except UserError as error:
        found.append(("parameters", f"unknown: {error}" + ("" if read_data else "; --data reads the data")))
    found.append(("tokens per step", f"{experiment.batch_size * experiment.data.seq_len:,} with padding"))
    if batches is None:
        found.append(("tokens per epoch", f"unknown: {missing}"))
    else:
        dataset = batches.dataset
        tokens = round(len(dataset) * experiment.data.seq_len * (1 - dataset.padding))
        size = f"{len(dataset):,} examples, {batches.steps_per_epoch:,} steps"
        found.append(("tokens per epoch", f"{tokens:,} without padding, in {size}"))
    return found


def costs(experiment: Experiment, found: "Estimate") -> list[tuple[str, str]]:
    """(name, value) of parameters, FLOPs and memory."""
    from bertgpt.sharding import PARAMETER_AXES, num_shards

    shards = num_shards({axis: max(size, 1) for axis, size in vars(experiment.mesh).items()}, PARAMETER_AXES)
    where = f"on each of {shards} shards ({' × '.join(PARAMETER_AXES)})" if shards > 1 else "on each device"
    together = f"{sum(found.bytes.values()) / shards / 2**20:,.1f} MiB {where}, without activations"
    return [
        ("parameters", f"{found.total:,}, {found.trained:,} of them trained"),
        *((f"  {name}", f"{number:,}") for name, number in found.parameters.items()),
        ("matmul FLOPs per step", f"{found.flops:.3e}"),
        *((f"memory of {name}", f"{size / 2**20:,.1f} MiB") for name, size in found.bytes.items()),
        ("memory together", together),
    ]


def training_batches(experiment: Experiment, workdir: Path) -> "Batches":
    """The batches of training; prepared data is kept in workdir/cache, where training finds it.

    Raises:
      UserError: the data or its tokenizer is not there.
    """
    from bertgpt.training.start import find_tokenizer
    from bertgpt.types import DataRequest

    with tempfile.TemporaryDirectory() as folder:  # the run is not begun
        own = open_copy(workdir / experiment.name)
        tokenizer = find_tokenizer(experiment, own if own.exists() else Path(folder), workdir)
    return experiment.data.make(
        DataRequest(
            split="train",
            tokenizer=tokenizer,
            batch_size=experiment.batch_size,
            seed=experiment.seed,
            cache=cache_of(workdir),
            shuffle=True,
        )
    )


COMMAND = Command(Options, run, epilog=FIELDS, describe=describe_fields)
