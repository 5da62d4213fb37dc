"""Comparable runs and their baselines: one table of all of them, and a verdict in words for each group."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from bertgpt.studies.results import RunRecord
from bertgpt.types import Table

TOKEN_LOSSES = ("mlm_loss", "lm_loss", "prefix_loss", "span_loss", "target_loss")
MAX_LISTED = 4  # other runs of a group that a verdict lists one by one


def source(data: dict[str, Any]) -> str:
    """The path that a data config reads; of a curriculum that of the last stage, of a mixture those of its parts."""
    if "long" in data:
        return source(data["long"])
    if "parts" in data:
        return " + ".join(source(part["data"]) for part in data["parts"])
    return data.get("path", "")


def group(runs: Sequence[RunRecord]) -> list[list[RunRecord]]:
    """Comparable runs: the same kind of objective on the same data."""
    groups: dict[tuple, list[RunRecord]] = {}
    for run in runs:
        key = (run.experiment["objective"]["type"], source(run.experiment["data"]))
        groups.setdefault(key, []).append(run)
    return list(groups.values())


class Scores(NamedTuple):
    """Held-out metrics of comparable runs and their baselines on one split."""

    split: str
    """test if all runs were evaluated on it, else the first split on which all were"""
    metrics: list[str]
    """losses, accuracies and what the baselines report; the runs are ranked by the first"""
    directions: dict[str, bool | None]
    """metric → whether higher is better; None or absent: unknown"""
    baselines: list[tuple[str, dict[str, float]]]
    """(name, metrics); equal ones of several runs are listed once"""
    runs: list[tuple[str, dict[str, float]]]
    """(name, metrics)"""


def compare(members: Sequence[RunRecord]) -> Scores | None:
    """The metrics by which a group of finished runs is compared; None if the runs have no split in common."""
    first = members[0].results["evals"]
    splits = [split for split in first if all(split in run.results["evals"] for run in members)]
    if not splits:
        return None
    split = "test" if "test" in splits else splits[0]
    runs = [(run.name, run.results["evals"][split]) for run in members]
    baselines: list[tuple[str, dict[str, float]]] = []
    directions: dict[str, bool | None] = {}
    for run in members:
        found = [(name, values[split]) for name, values in run.results["baselines"].items() if values.get(split)]
        baselines += [item for item in found if item not in baselines]
        named = [(*name.partition(" "), value) for name, value in run.directions.items()]
        directions |= {metric: value for where, _, metric, value in named if where == split}
    reported = {metric for _, values in baselines for metric in values}
    common = [m for m in first[split] if all(m in values for _, values in runs)]
    metrics = [m for m in common if not reported or m in reported or m.endswith(("loss", "accuracy"))]
    if "loss" in metrics and any(m.endswith("_loss") for m in metrics):  # a total of terms that are shown too
        metrics.remove("loss")
    # Ranked by what the baselines report too: a task's usual metric if it has one, else what should fall, a loss.
    metrics.sort(
        key=lambda m: (
            directions.get(m) is None,
            m not in reported,
            m != "accuracy",
            m != "f1",
            directions.get(m) is not False,
        )
    )
    return Scores(split, metrics, directions, baselines, runs) if metrics else None


def summary(runs: Sequence[RunRecord]) -> Table:
    """All finished runs below their baselines, in one table of the metrics by which they are compared."""
    body: list[tuple[str, dict[str, float]]] = []
    higher: set[str] = set()
    for members in group([run for run in runs if run.results]):
        found = compare(members)
        if found is None:
            continue
        brief = [short(metric) for metric in found.metrics]
        labels = {
            m: b if brief.count(b) == 1 else m.replace("_", " ") for m, b in zip(found.metrics, brief, strict=True)
        }
        higher |= {label for metric, label in labels.items() if found.directions.get(metric)}
        body.append((f"{kind_of(members[0])}, {found.split} split", {}))
        for name, values in (*found.baselines, *found.runs):
            shown = {label: values[metric] for metric, label in labels.items() if metric in values}
            body.append((f"  {name}", shown))
    columns = list(dict.fromkeys(label for _, values in body for label in values))
    columns.sort(key=lambda label: label not in higher)
    rows = []
    for name, values in body:
        missing = "–" if values else ""  # the row of a heading is empty
        rows.append([name, *(f"{values[label]:.3f}" if label in values else missing for label in columns)])
    return Table("Held-out results", ["", *columns], rows)


def short(metric: str) -> str:
    """A metric without the name of its objective: “loss” for mlm_loss."""
    end = metric.rpartition("_")[2]
    return end if end in ("loss", "accuracy") else metric.replace("_", " ")


def kind_of(run: RunRecord) -> str:
    """The objective in words: “masked LM” for MaskedLM."""
    kind = run.experiment["objective"]["type"].rpartition(":")[2]
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z]+|[^A-Z]+", kind)
    return " ".join(word if word.isupper() else word.lower() for word in words)


def verdicts(runs: Sequence[RunRecord]) -> list[str]:
    """A statement for each group of comparable finished runs: the best run, its baselines and the other runs.

    A group is skipped if it is unknown whether higher is better for every one of its metrics.
    """
    groups = [(members, compare(members)) for members in group([run for run in runs if run.results])]
    return [verdict(members, found) for members, found in groups if found and rankable(found)]


def rankable(found: Scores) -> bool:
    """Whether the direction of the first metric is known."""
    return found.directions.get(found.metrics[0]) is not None


def verdict(members: Sequence[RunRecord], found: Scores) -> str:
    """The best run of a group in words, then its baselines and the other runs, best first."""
    metric = found.metrics[0]
    higher = bool(found.directions[metric])
    ranked = sorted(members, key=lambda run: run.results["evals"][found.split][metric], reverse=higher)
    best, others = ranked[0], ranked[1:]
    scores = {run.name: run.results["evals"][found.split][metric] for run in ranked}
    own = {name: values.get(found.split, {}) for name, values in best.results["baselines"].items()}
    baselines = {name: values[metric] for name, values in own.items() if metric in values}
    rivals = dict(baselines)
    for run in others:
        if best.experiment["init_from"] is not None and is_from_scratch(run, best):
            rivals[f"the same network from scratch ({run.name})"] = scores[run.name]
        elif len(others) <= MAX_LISTED:
            rivals[run.name] = scores[run.name]

    def show(value: float) -> str:
        return f"{100 * value:.1f} %" if metric == "accuracy" else f"{value:.3f}" if higher else f"{value:.2f}"

    kind, value = kind_of(best), show(scores[best.name])
    if metric == "accuracy" and kind.startswith("classify"):
        text = f"{best.name} classifies {value} of the {found.split} examples correctly"
    else:
        unit = " nats per token" if metric in TOKEN_LOSSES else ""
        text = f"{best.name} ({kind}) reaches a {found.split} {short(metric)} of {value}{unit}"
    if rivals:
        order = sorted(rivals, key=lambda name: rivals[name], reverse=higher)
        text += "; " + ", ".join(f"{name} {show(rivals[name])}" for name in order)
    if len(others) > MAX_LISTED:
        text += f"; the other {len(others)} runs {show(scores[others[0].name])} to {show(scores[others[-1].name])}"
    mine = scores[best.name]
    ahead = [name for name, value in baselines.items() if (value >= mine if higher else value <= mine)]
    return f"{text}." + (f" It does not beat {' or '.join(ahead)}." if ahead else "")


def is_from_scratch(other: RunRecord, run: RunRecord) -> bool:
    """Whether `other` equals `run` except that it was trained from scratch."""
    mine, theirs = ({k: v for k, v in r.experiment.items() if k not in ("name", "init_from")} for r in (run, other))
    return mine == theirs and other.experiment["init_from"] is None
