"""Runs the arms of an ablation, each with several seeds, and groups the runs by arm."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from bertgpt.config import Experiment, to_json, with_seeds
from bertgpt.studies.ablation import Arm, make_arm
from bertgpt.studies.results import is_label_share
from bertgpt.training.loop import train
from bertgpt.types import JsonObject, UserError


class Swept(NamedTuple):
    """The outcome of a sweep."""

    results: dict[str, JsonObject]
    """name of each finished run → its results.json"""
    failures: dict[str, str]
    """name of each failed run → the error"""
    stopped: str | None = None
    """the signal that ended the sweep early"""


def seeded(experiments: Sequence[Experiment], seeds: Sequence[int] | None) -> list[Experiment]:
    """Each experiment once per seed; unchanged if `seeds` is None.

    Raises:
      UserError: the arms already come with several seeds.
    """
    if seeds is None:
        return list(experiments)
    for run, arm in arm_names(experiments).items():
        if run != arm:
            raise UserError(f"--seeds: {run} has its seed already; its file gives every arm several")
    return list(with_seeds({experiment.name: experiment for experiment in experiments}, seeds).values())


def arm_names(experiments: Sequence[Experiment]) -> dict[str, str]:
    """Name of each run → name of its arm: without the seed that `with_seeds` appended.

    A name that ends in “.” and the run's seed is not proof of that: dropout0.0 with seed 0. The end counts as a seed
    only if another run has the same name apart from its own seed; a run without such a sibling is an arm by itself.
    """
    stems = {e.name: e.name.removesuffix(f".{e.seed}") for e in experiments if e.name.endswith(f".{e.seed}")}
    runs = Counter(stems.values())
    return {e.name: stems[e.name] if runs[stems.get(e.name)] > 1 else e.name for e in experiments}


def sweep(experiments: Sequence[Experiment], workdir: str | Path) -> Swept:
    """Trains one experiment after another. Finished runs are not trained again; a failed run does not end the sweep."""
    swept = Swept({}, {})
    for experiment in experiments:
        try:
            results = train(experiment, workdir)
        except (UserError, jax.errors.JaxRuntimeError) as error:  # the latter when memory runs out, for example
            swept.failures[experiment.name] = " ".join(str(error).split())[:300]
            print(f"{experiment.name}: FAILED: {swept.failures[experiment.name]}", flush=True)
            continue
        if results["stopped"]:
            return swept._replace(stopped=results["stopped"])
        swept.results[experiment.name] = results
    return swept


def collect_arms(experiments: Sequence[Experiment], results: Mapping[str, JsonObject]) -> list[Arm]:
    """The arms with at least one finished run, in the order of the experiments."""
    names = arm_names(experiments)
    members: dict[str, list[Experiment]] = {}
    for experiment in experiments:
        if experiment.name in results:
            members.setdefault(names[experiment.name], []).append(experiment)
    return [
        make_arm(name, [to_json(run) for run in runs], [results[run.name] for run in runs])
        for name, runs in members.items()
    ]


def metrics_of(arms: Sequence[Arm]) -> list[str]:
    """Every metric that an arm has, those of which higher is better first, without the distribution of labels."""
    directions: dict[str, bool | None] = {}
    for arm in arms:
        directions |= arm.directions
    names = dict.fromkeys(metric for arm in arms for metric in arm.metrics)
    return sorted((name for name in names if not is_label_share(name)), key=lambda name: not directions.get(name))
