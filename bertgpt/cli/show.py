"""Show an experiment: its fields, parameters, FLOPs, memory, and tokens per epoch."""

import dataclasses
from pathlib import Path
from typing import Any

from bertgpt.cli.experiments import FIELDS, describe_fields, load_experiments, with_fields
from bertgpt.cli.options import Command, Fields, Positional
from bertgpt.config import Experiment, infer, leaves
from bertgpt.types import UserError


@dataclasses.dataclass(frozen=True)
class Options:
    """Show an experiment without training it: its fields, parameters by component, FLOPs per step, memory, and tokens
    per epoch."""

    experiment: Positional[str]
    """name from `bertgpt list`, file or module; NAME:ARM for one arm"""
    data: bool = True
    """read the data, if it is there, to count its tokens and labels"""
    workdir: str = "runs"
    """folder of the runs, where prepared data is kept"""
    fields: Fields = ()


def run(options: Options) -> int:
    workdir = Path(options.workdir)
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
    from bertgpt.inference.model import with_model
    from bertgpt.planning.estimate import estimate, with_assumed_labels

    try:
        experiment = with_model(experiment, workdir / experiment.name, workdir)
    except UserError as error:
        return [("parameters", f"unknown: the model is that of init_from: {error}")]
    found: list[tuple[str, str]] = []
    try:
        if not read_data:
            raise UserError("the data is not read")
        experiment = infer(experiment)
    except UserError as error:
        labelled = with_assumed_labels(experiment)
        if labelled is not experiment:
            found.append(("labels", f"unknown, counted as 2: {error}"))
        experiment = labelled
    try:
        costs = estimate(experiment)
    except UserError as error:
        found.append(("parameters", f"unknown: {error}"))
    else:
        found.append(("parameters", f"{costs.total:,}, {costs.trained:,} of them trained"))
        found += [(f"  {name}", f"{number:,}") for name, number in costs.parameters.items()]
        found.append(("matmul FLOPs per step", f"{costs.flops:.3e}"))
        for name, size in costs.bytes.items():
            found.append((f"memory of {name}", f"{size / 2**20:,.1f} MiB"))
        shards = experiment.mesh.fsdp * experiment.mesh.tensor
        each = sum(costs.bytes.values()) / max(shards, 1) / 2**20
        divided = f" on each of {shards} shards (fsdp × tensor)" if shards > 1 else " on each device"
        found.append(("together", f"{each:,.1f} MiB{divided}, without activations"))
    found.append(("tokens per step", f"{experiment.batch_size * experiment.data.seq_len:,} with padding"))
    found.append(("tokens per epoch", tokens_per_epoch(experiment, workdir) if read_data else "unknown: data not read"))
    return found


def tokens_per_epoch(experiment: Experiment, workdir: Path) -> str:
    """Tokens without padding and steps of an epoch, or why they are unknown."""
    from bertgpt.training.loop import find_tokenizer
    from bertgpt.types import DataRequest

    try:
        tokenizer = find_tokenizer(experiment, workdir / experiment.name, workdir)
        batches: Any = experiment.data.make(
            DataRequest("train", tokenizer, experiment.batch_size, experiment.seed, workdir / "cache", shuffle=True)
        )
    except UserError as error:
        return f"unknown: {error}"
    dataset = batches.dataset
    tokens = round(len(dataset) * experiment.data.seq_len * (1 - dataset.padding))
    return f"{tokens:,} in {len(dataset):,} examples, {batches.steps_per_epoch:,} steps"


COMMAND = Command(Options, run, epilog=FIELDS, describe=describe_fields)
