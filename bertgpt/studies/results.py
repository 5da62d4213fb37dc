"""Reads run directories: the experiment, its log, its results, and for each metric whether higher is better."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bertgpt.config import from_json
from bertgpt.runs.directory import read_facts, read_results
from bertgpt.runs.mirror import open_copy
from bertgpt.training.log import read_metrics
from bertgpt.types import ObjectiveConfig, UserError


class RunRecord(NamedTuple):
    """The files of a run directory as plain data."""

    name: str
    experiment: dict[str, Any]
    """experiment.json"""
    lines: list[dict[str, Any]]
    """metrics.jsonl"""
    results: dict[str, Any] | None
    """results.json; None while the run is unfinished"""

    @property
    def directions(self) -> dict[str, bool | None]:
        """`metric_directions` of its results."""
        return metric_directions(self.results or {}, self.experiment)


def read_run(path: str | Path) -> RunRecord:
    """Reads a run directory, or the run at a URL.

    Raises:
      UserError: it is not a run, has logged nothing yet, or a file is damaged.
    """
    path = open_copy(path)
    experiment = read_facts(path)
    for field, kind in (("name", str), ("objective", dict)):
        if not isinstance(experiment.get(field), kind):
            raise UserError(f"{path / 'experiment.json'}: {field} is missing, or not as a run writes it")
    if not (path / "metrics.jsonl").exists():
        raise UserError(f"{path}: has logged nothing yet (no metrics.jsonl)")
    return RunRecord(experiment["name"], experiment, read_metrics(path / "metrics.jsonl"), read_results(path))


def metric_directions(results: Mapping[str, Any], experiment: Mapping[str, Any]) -> dict[str, bool | None]:
    """“split metric” → whether higher is better; None or absent: unknown.

    Runs record it in results.json. For a metric of which the direction is not recorded it is what the objective
    declares (`ObjectiveConfig.higher_is_better`); "loss" should fall, as it is what training minimises.

    Args:
      results: results.json, or {}.
      experiment: experiment.json.
    """
    known = {name.replace("/", " ", 1): value for name, value in results.get("higher_is_better", {}).items()}
    best = experiment.get("best_metric", "").replace("/", " ", 1)
    if best and known.get(best) is None:
        known[best] = experiment["best_mode"] == "max"
    missing = [name for name in by_split(results.get("evals", {})) if known.get(name) is None]
    rising = declared(experiment["objective"]) if missing else frozenset()
    for name in missing:
        metric = name.partition(" ")[2]
        if metric in rising or metric == "loss":
            known[name] = metric in rising
    return known


def declared(objective: Any) -> frozenset[str]:
    """The metrics of an objective, given as in experiment.json, of which higher is better; empty if it is unknown."""
    try:
        config = from_json(objective)
    except UserError:  # of an older version, or of a module that is not imported
        return frozenset()
    return config.higher_is_better if isinstance(config, ObjectiveConfig) else frozenset()


def by_split(evals: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """“split metric” → value, from split → metric → value."""
    return {f"{split} {metric}": value for split, values in evals.items() for metric, value in values.items()}


def is_label_share(metric: str) -> bool:
    """Whether it is one of the numbers that `training.log.means` makes of the distribution of labels in the data.

    They belong to the data and are the same for all runs, so they are not compared.
    """
    return metric.endswith(("_labels_max", "_labels_min", "_labels_entropy"))


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested JSON as dotted path → leaf."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        items = ((str(i), item) for i, item in enumerate(value))
    else:
        return {prefix[:-1]: value}
    return {path: leaf for name, item in items for path, leaf in flatten(item, f"{prefix}{name}.").items()}
