"""Runs the arms of an ablation, each with several seeds, and tells them apart: mean ± standard deviation."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from bertgpt.config import Experiment, with_seeds
from bertgpt.studies.ablation import Arm, arm_of
from bertgpt.training.loop import train
from bertgpt.types import UserError


class Swept(NamedTuple):
    """What became of a sweep's runs."""

    results: dict[str, dict[str, Any]]
    """name of a finished run → its results.json"""
    failures: dict[str, str]
    """name of a run that failed → why"""
    stopped: str | None = None
    """the signal that ended the sweep early"""


def seeded(experiments: Sequence[Experiment], seeds: Sequence[int] | None) -> list[Experiment]:
    """Each experiment once for every seed; None: as they are.

    Raises:
      UserError: the arms have their seeds already.
    """
    if seeds is None:
        return list(experiments)
    for run, arm in arm_names(experiments).items():
        if run != arm:
            raise UserError(f"--seeds: {run} has its seed already; its file gives every arm several")
    return list(with_seeds({experiment.name: experiment for experiment in experiments}, seeds).values())


def arm_names(experiments: Sequence[Experiment]) -> dict[str, str]:
    """Each run's arm: its name without the seed that `with_seeds` added.

    That a name ends in “.” and the run's seed proves nothing: dropout0.0 with seed 0. It is a seed if another run has
    the same name but for its own seed; a run with no such sibling is an arm by its whole name.
    """
    stems = {e.name: e.name.removesuffix(f".{e.seed}") for e in experiments if e.name.endswith(f".{e.seed}")}
    runs = Counter(stems.values())
    return {e.name: stems[e.name] if runs[stems.get(e.name)] > 1 else e.name for e in experiments}


def sweep(experiments: Sequence[Experiment], workdir: str | Path) -> Swept:
    """Trains one after another; what is finished is not trained again, and a run that fails does not end the sweep."""
    swept = Swept({}, {})
    for experiment in experiments:
        try:
            results = train(experiment, workdir)
        except (UserError, jax.errors.JaxRuntimeError) as error:  # the latter: no memory left, say
            swept.failures[experiment.name] = " ".join(str(error).split())[:300]
            print(f"{experiment.name}: FAILED: {swept.failures[experiment.name]}", flush=True)
            continue
        if results["stopped"]:
            return swept._replace(stopped=results["stopped"])
        swept.results[experiment.name] = results
    return swept


def collect_arms(experiments: Sequence[Experiment], results: Mapping[str, dict[str, Any]]) -> list[Arm]:
    """The arms with at least one finished run, in the experiments' order."""
    arms = arm_names(experiments)
    members: dict[str, list[Experiment]] = {}
    for experiment in experiments:
        if experiment.name in results:
            members.setdefault(arms[experiment.name], []).append(experiment)
    return [
        arm_of(name, [run.seed for run in runs], [results[run.name] for run in runs]) for name, runs in members.items()
    ]


def metrics_of(arms: Sequence[Arm]) -> list[str]:
    """Every metric that an arm has, accuracies first, without the shares of labels, which belong to the data."""
    names = dict.fromkeys(metric for arm in arms for metric in arm.metrics)
    kept = [name for name in names if not name.endswith(("_labels_max", "_labels_min", "_labels_entropy"))]
    return sorted(kept, key=lambda name: not name.endswith("accuracy"))
