"""Runs that differ in their seed alone are one arm of a comparison, with a mean and a standard deviation."""

import json
import os
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from bertgpt.pictures import figure_type, png


class Arm(NamedTuple):
    """One setting, run with several seeds."""

    name: str
    seeds: list[int]
    metrics: dict[str, list[float]]
    """“split metric” → the value of each seed, of the metrics that every seed has"""

    def mean(self, metric: str) -> float:
        return statistics.fmean(self.metrics[metric])

    def deviation(self, metric: str) -> float:
        """Sample standard deviation over the seeds, n − 1 in the denominator."""
        return statistics.stdev(self.metrics[metric])


def collect(runs: Sequence[Any]) -> list[Arm]:
    """The arms among finished runs (`report.RunRecord`) that were run with two seeds or more, in the runs' order."""
    groups: dict[str, list[Any]] = {}
    for run in runs:
        if run.results:
            same = {k: v for k, v in run.experiment.items() if k not in ("name", "seed", "init_from")}
            groups.setdefault(json.dumps(same | {"from": stem(run.experiment["init_from"])}), []).append(run)
    arms = []
    for members in groups.values():
        seeds = [run.experiment["seed"] for run in members]
        if len(set(seeds)) < 2 or len(set(seeds)) < len(seeds):
            continue
        flat = [
            {
                f"{split} {metric}": value
                for split, values in run.results["evals"].items()
                for metric, value in values.items()
            }
            for run in members
        ]
        shared = [metric for metric in flat[0] if all(metric in values for values in flat)]
        name = os.path.commonprefix([run.name for run in members]).rstrip("._-s")
        arms.append(Arm(name, seeds, {metric: [values[metric] for values in flat] for metric in shared}))
    return arms


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


def rows(arms: Sequence[Arm]) -> tuple[list[str], list[list[str]]]:
    """(column titles, rows) of a table: mean ± standard deviation."""
    metrics = shown(arms)
    body = [
        [
            arm.name,
            str(len(arm.seeds)),
            *(f"{arm.mean(m):.4f} ± {arm.deviation(m):.4f}" if m in arm.metrics else "–" for m in metrics),
        ]
        for arm in arms
    ]
    return ["", "seeds", *metrics], body
