"""Runs that differ in their seed alone are one arm of a comparison, with a mean and a standard deviation."""

import json
import math
import os
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from bertgpt.studies.plots import figure_type, png


class Arm(NamedTuple):
    """One setting, run with several seeds."""

    name: str
    seeds: list[int]
    metrics: dict[str, list[float]]
    """“split metric” → the value of each seed, of the metrics that every seed has"""
    settings: dict[str, Any] = {}
    """leaves of the experiment, but for its name and what differs between seeds; never changed"""

    def mean(self, metric: str) -> float:
        return statistics.fmean(self.metrics[metric])

    def deviation(self, metric: str) -> float:
        """Sample standard deviation over the seeds, n − 1 in the denominator; NaN of a single seed."""
        values = self.metrics[metric]
        return statistics.stdev(values) if len(values) > 1 else math.nan

    def cell(self, metric: str) -> str:
        """“mean ± standard deviation”, as far as there are any."""
        if metric not in self.metrics:
            return "–"
        spread = f" ± {self.deviation(metric):.4f}" if len(self.metrics[metric]) > 1 else ""
        return f"{self.mean(metric):.4f}{spread}"


def collect(runs: Sequence[Any]) -> list[Arm]:
    """The arms among finished runs (`report.RunRecord`) that were run with two seeds or more, in the runs' order."""
    groups: dict[str, list[Any]] = {}
    for run in runs:
        if run.results:
            groups.setdefault(json.dumps(settings_of(run.experiment)), []).append(run)
    arms = []
    for members in groups.values():
        seeds = [run.experiment["seed"] for run in members]
        if len(set(seeds)) < 2 or len(set(seeds)) < len(seeds):
            continue
        name = os.path.commonprefix([run.name for run in members]).rstrip("._-s")
        arm = arm_of(name, seeds, [run.results for run in members])
        arms.append(arm._replace(settings=settings_of(members[0].experiment)))
    return arms


def settings_of(experiment: dict[str, Any]) -> dict[str, Any]:
    """Leaves of an experiment that are the same for all seeds of an arm: not which examples are drawn, for one."""
    leaves = flatten(experiment)
    same = {path: value for path, value in leaves.items() if path not in ("name", "seed", "init_from", "data.subset")}
    return same | {"init_from": stem(experiment["init_from"])}


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested JSON as dotted path → leaf."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        items = ((str(i), item) for i, item in enumerate(value))
    else:
        return {prefix[:-1]: value}
    return {path: leaf for name, item in items for path, leaf in flatten(item, f"{prefix}{name}.").items()}


def arm_of(name: str, seeds: Sequence[int], results: Sequence[dict[str, Any]]) -> Arm:
    """An arm from the results.json of its seeds."""
    flat = [
        {f"{split} {metric}": value for split, values in one["evals"].items() for metric, value in values.items()}
        for one in results
    ]
    shared = [metric for metric in flat[0] if all(metric in values for values in flat)]
    return Arm(name, list(seeds), {metric: [values[metric] for values in flat] for metric in shared})


def stem(name: str | None) -> str | None:
    """A run's name without the seed at its end: arms of seeds start from runs of the same seeds."""
    return None if name is None else name.rstrip("0123456789")


def shown(arms: Sequence[Arm]) -> list[str]:
    """The metrics worth comparing: those of two arms or more, in which they are not all the same."""
    names = dict.fromkeys(metric for arm in arms for metric in arm.metrics)
    common = [name for name in names if sum(name in arm.metrics for arm in arms) > 1]
    return [name for name in common if len({tuple(arm.metrics[name]) for arm in arms if name in arm.metrics}) > 1]


def draw(arms: Sequence[Arm]) -> bytes:
    """A PNG with a panel for each metric: every seed a small dot, the mean a large one, ± one standard deviation."""
    metrics = shown(arms)
    columns = min(3, len(metrics))
    rows = -(-len(metrics) // columns)
    figure = figure_type()(figsize=(4.7 * columns, rows * (0.9 + 0.32 * len(arms))), layout="constrained", dpi=130)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, metric in zip(axes, metrics, strict=False):
        members = [arm for arm in arms if metric in arm.metrics]
        for place, arm in enumerate(members):
            axis.plot(arm.metrics[metric], [place] * len(arm.seeds), ".", color="#b0b8d8", ms=5)
            axis.errorbar(
                arm.mean(metric), place, xerr=arm.deviation(metric), fmt="o", color="#4063d8", capsize=3, ms=5
            )
        axis.set_yticks(range(len(members)), [arm.name for arm in members], fontsize=8)
        axis.set_ylim(len(members) - 0.5, -0.5)
        axis.set_title(metric.replace("_", " "), fontsize=9)
        axis.tick_params(axis="x", labelsize=7)
        axis.grid(axis="x", alpha=0.25, lw=0.5)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(metrics) :]:
        axis.axis("off")
    return png(figure)


class Curve(NamedTuple):
    """Arms that differ in one number, such as how many examples they have, along lines that differ in more."""

    leaf: str
    """the number's dotted path"""
    lines: dict[str, list[tuple[float, Arm]]]
    """name → (number, arm), by number"""


def curve_of(arms: Sequence[Arm]) -> Curve | None:
    """The number that tells arms alike in all else apart, if every arm lies so on a line of three points or more.

    Other numbers may go with it, such as more updates for more examples.
    """
    paths = dict.fromkeys(path for arm in arms for path in arm.settings)
    numbers = [path for path in paths if all(is_number(arm.settings.get(path)) for arm in arms)]
    for path in numbers:
        given = {other: len({(arm.settings[path], arm.settings[other]) for arm in arms}) for other in numbers}
        follow = [other for other in numbers if given[other] == given[path]]  # one value for each of this number
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
            return Curve(path, lines)
    return None


def is_number(value: Any) -> bool:
    """Whether it is one, and not a truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def draw_curve(curve: Curve) -> bytes:
    """A PNG with a panel for each metric: the mean over the seeds against the number, ± one standard deviation."""
    arms = [arm for line in curve.lines.values() for _, arm in line]
    metrics = shown(arms)
    columns = min(3, len(metrics))
    rows = -(-len(metrics) // columns)
    figure = figure_type()(figsize=(4.7 * columns, 3.4 * rows), layout="constrained", dpi=130)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, metric in zip(axes, metrics, strict=False):
        for name, line in curve.lines.items():
            points = [(x, arm.mean(metric), arm.deviation(metric)) for x, arm in line if metric in arm.metrics]
            x, mean, deviation = zip(*points, strict=True)
            axis.errorbar(x, mean, yerr=deviation, fmt="o-", capsize=3, ms=4.5, lw=1.3, label=name)
        if min(x) > 0 and max(x) >= 10 * min(x):
            axis.set_xscale("log")
        axis.set_xticks(x, [f"{value:g}" for value in x], minor=False)
        axis.minorticks_off()
        axis.set_title(metric.replace("_", " "), fontsize=9)
        axis.set_xlabel(curve.leaf, fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.25, lw=0.5)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=7, frameon=False)
    for axis in axes[len(metrics) :]:
        axis.axis("off")
    return png(figure)


def rows(arms: Sequence[Arm], metrics: Sequence[str] | None = None) -> tuple[list[str], list[list[str]]]:
    """(column titles, rows) of a table: mean ± standard deviation of these metrics, or of those worth comparing."""
    metrics = shown(arms) if metrics is None else metrics
    body = [[arm.name, str(len(arm.seeds)), *map(arm.cell, metrics)] for arm in arms]
    return ["", "seeds", *metrics], body
