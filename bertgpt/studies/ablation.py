"""Arms of an ablation: runs that differ only in their seed, with mean and standard deviation over the seeds."""

import json
import math
import os
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from bertgpt.studies.plots import BLUE, panels, png, style
from bertgpt.studies.results import RunRecord, by_split, flatten, metric_directions
from bertgpt.types import JsonObject


class Arm(NamedTuple):
    """One setting, run with one or several seeds."""

    name: str
    seeds: list[int]
    metrics: dict[str, list[float]]
    """“split metric” → its value for each seed; metrics that every seed has"""
    settings: JsonObject = {}
    """leaves of the experiment that are the same for all seeds, without its name; never modified"""
    directions: dict[str, bool | None] = {}
    """“split metric” → whether higher is better, see `results.metric_directions`; never modified"""

    def mean(self, metric: str) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.metrics[metric])

    def deviation(self, metric: str) -> float:
        """Sample standard deviation over the seeds (n − 1 in the denominator); NaN for a single seed."""
        values = self.metrics[metric]
        return statistics.stdev(values) if len(values) > 1 else math.nan

    def cell(self, metric: str) -> str:
        """“mean ± standard deviation” for a table; the mean alone for a single seed, “–” without the metric."""
        if metric not in self.metrics:
            return "–"
        spread = f" ± {self.deviation(metric):.4f}" if len(self.metrics[metric]) > 1 else ""
        return f"{self.mean(metric):.4f}{spread}"


def collect(runs: Sequence[RunRecord]) -> list[Arm]:
    """The arms among finished runs that were run with at least two seeds, in the order of the runs."""
    groups: dict[str, list[RunRecord]] = {}
    for run in runs:
        if run.results:
            groups.setdefault(json.dumps(settings_of(run.experiment)), []).append(run)
    arms = []
    for members in groups.values():
        seeds = [run.experiment["seed"] for run in members]
        if len(set(seeds)) < 2 or len(set(seeds)) < len(seeds):
            continue
        name = os.path.commonprefix([run.name for run in members]).rstrip("._-s")
        arms.append(make_arm(name, [run.experiment for run in members], [run.results for run in members]))
    return arms


def make_arm(name: str, experiments: Sequence[JsonObject], results: Sequence[JsonObject]) -> Arm:
    """An arm from experiment.json and results.json of its seeds."""
    values = [by_split(one["evals"]) for one in results]
    shared = [metric for metric in values[0] if all(metric in one for one in values)]
    return Arm(
        name,
        seeds=[experiment["seed"] for experiment in experiments],
        metrics={metric: [one[metric] for one in values] for metric in shared},
        settings=settings_of(experiments[0]),
        directions=metric_directions(results[0], experiments[0]),
    )


def settings_of(experiment: JsonObject) -> JsonObject:
    """Leaves of an experiment that are the same for all seeds of an arm; which examples are sampled is not."""
    leaves = flatten(experiment)
    same = {path: value for path, value in leaves.items() if path not in ("name", "seed", "init_from", "data.subset")}
    start = experiment["init_from"]
    # An arm that starts from another arm starts, for each seed, from that arm's run of the same seed.
    return same | {"init_from": None if start is None else start.rstrip("0123456789")}


def compared_metrics(arms: Sequence[Arm]) -> list[str]:
    """Metrics worth comparing: at least two arms have them, and not all values are the same."""
    names = dict.fromkeys(metric for arm in arms for metric in arm.metrics)
    common = [name for name in names if sum(name in arm.metrics for arm in arms) > 1]
    return [name for name in common if len({tuple(arm.metrics[name]) for arm in arms if name in arm.metrics}) > 1]


def arm_table(arms: Sequence[Arm], metrics: Sequence[str] | None = None) -> tuple[list[str], list[list[str]]]:
    """(columns, rows) of a table: mean ± standard deviation of these metrics, or of those worth comparing."""
    metrics = compared_metrics(arms) if metrics is None else metrics
    body = [[arm.name, str(len(arm.seeds)), *map(arm.cell, metrics)] for arm in arms]
    return ["", "seeds", *metrics], body


def draw_arms(arms: Sequence[Arm]) -> bytes:
    """A PNG with a panel per metric: a small dot for each seed, a large one for the mean ± one standard deviation."""
    metrics = compared_metrics(arms)
    figure, axes = panels(len(metrics), columns=3, width=4.7, height=0.9 + 0.32 * len(arms))
    for axis, metric in zip(axes, metrics, strict=True):
        members = [arm for arm in arms if metric in arm.metrics]
        for row, arm in enumerate(members):
            axis.plot(arm.metrics[metric], [row] * len(arm.seeds), ".", color="#b0b8d8", ms=5)
            axis.errorbar(arm.mean(metric), row, xerr=arm.deviation(metric), fmt="o", color=BLUE, capsize=3, ms=5)
        style(axis, metric.replace("_", " "), grid="x")
        axis.set_yticks(range(len(members)), [arm.name for arm in members], fontsize=8)
        axis.set_ylim(len(members) - 0.5, -0.5)
    return png(figure)


class Series(NamedTuple):
    """Arms along one numeric field, such as the number of training examples: a line for each value of the others."""

    field: str
    """dotted path of the numeric field"""
    lines: dict[str, list[tuple[float, Arm]]]
    """name → (value of the field, arm), in increasing order"""


def find_series(arms: Sequence[Arm]) -> Series | None:
    """The numeric field along which the arms form lines of at least three points each; None if there is none.

    Other numeric fields may change with it one to one, such as steps with examples.
    """
    paths = dict.fromkeys(path for arm in arms for path in arm.settings)
    numbers = [path for path in paths if all(is_number(arm.settings.get(path)) for arm in arms)]
    for path in numbers:
        pairs = {other: len({(arm.settings[path], arm.settings[other]) for arm in arms}) for other in numbers}
        follow = [other for other in numbers if pairs[other] == pairs[path]]  # one value for each value of `path`
        groups: dict[str, list[Arm]] = {}
        for arm in arms:
            rest = {name: value for name, value in arm.settings.items() if name not in follow}
            groups.setdefault(json.dumps(rest), []).append(arm)
        points = [{arm.settings[path] for arm in members} for members in groups.values()]
        if min(map(len, points), default=0) >= 3:
            lines = {}
            for members in groups.values():
                ordered = sorted(members, key=lambda arm: arm.settings[path])
                name = os.path.commonprefix([arm.name for arm in members]).rstrip("._-")
                lines[name] = [(arm.settings[path], arm) for arm in ordered]
            return Series(path, lines)
    return None


def is_number(value: object) -> bool:
    """Whether it is an int or a float; bool is neither."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def draw_series(series: Series) -> bytes:
    """A PNG with a panel per metric: mean over the seeds against the numeric field, ± one standard deviation."""
    metrics = compared_metrics([arm for line in series.lines.values() for _, arm in line])
    figure, axes = panels(len(metrics), columns=3, width=4.7, height=3.4)
    for axis, metric in zip(axes, metrics, strict=True):
        for name, line in series.lines.items():
            points = [(x, arm.mean(metric), arm.deviation(metric)) for x, arm in line if metric in arm.metrics]
            x, mean, deviation = zip(*points, strict=True)
            axis.errorbar(x, mean, yerr=deviation, fmt="o-", capsize=3, ms=4.5, lw=1.3, label=name)
        style(axis, metric.replace("_", " "))
        if min(x) > 0 and max(x) >= 10 * min(x):
            axis.set_xscale("log")
        axis.set_xticks(x, [f"{value:g}" for value in x], minor=False)
        axis.minorticks_off()
        axis.set_xlabel(series.field, fontsize=8)
    axes[0].legend(fontsize=7, frameon=False)
    return png(figure)
