"""Compares runs: tables of held-out results and baselines, and training curves, as PNG, Markdown and HTML."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bertgpt.studies import ablation
from bertgpt.studies.pages import to_html, to_markdown
from bertgpt.studies.plots import figure_type, png, write_files
from bertgpt.studies.results import RunRecord, by_split, flatten, is_label_share, read_run
from bertgpt.types import Table

NOT_A_METRIC = {"kind", "step", "time", "name", "grad_norm", "tokens", "matmul_utilisation", "data_wait"}
COLORS = ("#4063d8", "#d1495b", "#389826", "#9558b2", "#e8a33d", "#3a9ea5", "#7f7f7f", "#1b1b1b")


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


def comparison(runs: Sequence[RunRecord]) -> list[Table]:
    """A table for each group of finished runs: held-out metrics of the baselines, then of the models."""
    tables = []
    for members in group([run for run in runs if run.results]):
        rows: dict[tuple[str, str], dict[str, float]] = {}
        directions: dict[str, bool | None] = {}
        for run in members:
            directions |= run.directions
            for name, splits in run.results["baselines"].items():
                values = by_split(splits)
                rows.setdefault((name, json.dumps(values)), values)  # the same for all runs on the same data
        for run in members:
            rows[run.name, "run"] = by_split(run.results["evals"])
        metrics = list(dict.fromkeys(metric for values in rows.values() for metric in values))
        metrics = [metric for metric in metrics if not is_total(metric, metrics)]
        metrics.sort(key=lambda metric: not directions.get(metric))  # those of which higher is better first
        body = [
            [name, *(f"{values[m]:.4f}" if m in values else "–" for m in metrics)] for (name, _), values in rows.items()
        ]
        kind = members[0].experiment["objective"]["type"].rpartition(":")[2]
        tables.append(Table(f"{kind}: held-out results", ["", *metrics], body))
    return tables


def is_total(metric: str, metrics: Sequence[str]) -> bool:
    """Whether it is the total “split loss” of terms “split …_loss” that are shown too, and so adds nothing."""
    split, _, name = metric.rpartition(" ")
    return name == "loss" and any(other.startswith(f"{split} ") and other.endswith("_loss") for other in metrics)


def verdicts(runs: Sequence[RunRecord]) -> list[str]:
    """In words, whether each finished run beats its baselines, and itself from scratch if it started from `init_from`.

    By accuracy or F1 for tasks, else by loss; on every split that was scored.
    """
    done = [run for run in runs if run.results]
    lines = []
    for run in done:
        rivals = dict(run.results["baselines"])
        if run.experiment["init_from"] is not None:
            rivals |= {other.name: other.results["evals"] for other in done if is_from_scratch(other, run)}
        for name, splits in rivals.items():
            for split, values in splits.items():
                mine = run.results["evals"][split]
                common = [m for m in values if m in mine]  # not every evaluation generates texts to judge
                if not common:
                    continue
                # A task's own measure, of which more is better; else a loss.
                metric = min(common, key=lambda m: (m != "accuracy", m != "f1", not m.endswith("loss")))
                better = mine[metric] < values[metric] if metric.endswith("loss") else mine[metric] > values[metric]
                verb = "beats" if better else "DOES NOT BEAT"
                lines.append(
                    f"{run.name} {verb} {name} on {split}: {metric} {mine[metric]:.4f} against {values[metric]:.4f}"
                )
    return lines


def is_from_scratch(other: RunRecord, run: RunRecord) -> bool:
    """Whether `other` equals `run` except that it was trained from scratch."""
    mine, theirs = ({k: v for k, v in r.experiment.items() if k not in ("name", "init_from")} for r in (run, other))
    return mine == theirs and other.experiment["init_from"] is None


def overview(runs: Sequence[RunRecord]) -> Table:
    """Size and speed of every run."""
    rows = []
    for run in runs:
        done = run.results
        if done is None:
            last = max((line["step"] for line in run.lines), default=0)
            rows.append([run.name, f"{last:,} (unfinished)", "–", "–", "–", "–"])
        else:
            numbers = (done["step"], done["parameters"], done["tokens"], done["tokens_per_second"], done["seconds"])
            rows.append([run.name, *(f"{value:,.0f}" for value in numbers)])
    return Table("Runs", ["", "steps", "parameters", "tokens", "tokens/s", "seconds"], rows)


def differences(runs: Sequence[RunRecord]) -> list[Table]:
    """A table for each group of runs: the fields in which their experiments differ."""
    tables = []
    for members in group(runs):
        flat = [flatten(run.experiment) for run in members]
        paths = list(dict.fromkeys(path for leaves in flat for path in leaves))
        differ = [p for p in paths if p != "name" and len({json.dumps(leaves.get(p)) for leaves in flat}) > 1]
        if differ:
            rows = [[path, *(str(leaves.get(path, "–")) for leaves in flat)] for path in differ]
            tables.append(Table("Differences", ["", *(run.name for run in members)], rows))
    return tables


def data_warnings(runs: Sequence[RunRecord]) -> list[Table]:
    """A table of warnings about the data, such as the number of truncated texts; [] if there are none."""
    rows = [
        [run.name, split, warning]
        for run in runs
        for split, found in (run.results or {}).get("notes", {}).items()
        for warning in found
    ]
    return [Table("Warnings about the data", ["", "split", "warning"], rows)] if rows else []


def report(runs: Sequence[str | Path], out: str | Path) -> list[Path]:
    """Writes report.png, report.md and report.html for these run directories.

    Where runs differ only in their seed, also ablation.png and, if the arms lie along a numeric field, curve.png.

    Args:
      runs: run directories.
      out: folder to write to, created if missing.

    Returns:
      The paths of the files.

    Raises:
      UserError: a directory is not a run, or matplotlib is not installed.
    """
    records = [read_run(Path(path)) for path in runs]
    tables = [*comparison(records), overview(records), *differences(records), *data_warnings(records)]
    statements = verdicts(records)
    arms = ablation.collect(records)
    if len(arms) > 1:
        tables.insert(0, Table("Means over seeds ± standard deviation", *ablation.arm_table(arms)))
    picture = draw(records)
    contents = {
        "report.png": picture,
        "report.md": to_markdown(tables, statements).encode(),
        "report.html": to_html(tables, statements, picture).encode(),
    }
    if ablation.compared_metrics(arms):
        contents = {"ablation.png": ablation.draw_arms(arms)} | contents
        series = ablation.find_series(arms)
        contents = ({} if series is None else {"curve.png": ablation.draw_series(series)}) | contents
    return write_files(Path(out), contents)


def draw(runs: Sequence[RunRecord]) -> bytes:
    """Curves as a PNG: a block of panels per group of comparable runs, a colour per run."""
    blocks = [(members, panels(members)) for members in group(runs)]
    grids = [grid(len(metrics)) for _, metrics in blocks]
    figure = figure_type()(figsize=(14, 3.3 * sum(rows for rows, _ in grids)), layout="constrained", dpi=130)
    parts = figure.subfigures(len(blocks), 1, height_ratios=[rows for rows, _ in grids], squeeze=False)[:, 0]
    for block, (members, metrics), (rows, columns) in zip(parts, blocks, grids, strict=True):
        kind = members[0].experiment["objective"]["type"].rpartition(":")[2]
        block.suptitle(
            f"{kind} · {source(members[0].experiment['data'])}",
            fontsize=11,
            fontweight="bold",
            x=0.01,
            ha="left",
        )
        axes = list(block.subplots(rows, columns, squeeze=False).flat)
        for axis, metric in zip(axes, metrics, strict=False):
            plot_metric(axis, members, metric)
        for axis in axes[len(metrics) :]:
            axis.axis("off")
        axes[0].legend(fontsize=7, frameon=False)
    return png(figure)


def grid(count: int) -> tuple[int, int]:
    """(rows, columns) of a grid of panels: three or four columns, whichever leaves fewer places empty."""
    columns = min((3, 4), key=lambda columns: -count % columns)
    return -(-count // columns), columns


def panels(runs: Sequence[RunRecord]) -> list[str]:
    """The metrics worth a panel, in the order: losses, accuracies, learning rate, speed.

    The distribution of labels is left out: it belongs to the data and is the same for all runs.
    """
    logged = dict.fromkeys(key for run in runs for line in run.lines for key in line if key not in NOT_A_METRIC)
    logged = [m for m in logged if not is_label_share(m)]
    losses = [m for m in logged if m.endswith("_loss")] or [m for m in logged if m == "loss"]
    rest = [m for m in logged if m not in losses and m not in ("loss", "lr", "tokens_per_second")]
    return [*losses, *rest, "lr", "tokens_per_second"]


def plot_metric(axis: Any, runs: Sequence[RunRecord], metric: str) -> None:
    """Training as a line, held-out evaluations as dots, baselines as dashed lines."""
    drawn = set()
    for run, color in zip(runs, [COLORS[i % len(COLORS)] for i in range(len(runs))], strict=True):
        train = [
            (line["step"], line[metric])
            for line in run.lines
            if line["kind"] == "train" and line.get(metric) is not None
        ]
        axis.plot(*zip(*train, strict=True), color=color, lw=1.3, label=run.name) if train else None
        for name, marker in (("validation", "o"), ("test", "s")):
            dots = [
                (line["step"], line[metric])
                for line in run.lines
                if line.get("name") == name and line.get(metric) is not None
            ]
            if dots:
                axis.plot(
                    *zip(*dots, strict=True),
                    marker,
                    ls=":",
                    color=color,
                    ms=4.5,
                    mec="white",
                    mew=0.6,
                    label=f"{run.name} {name}",
                )
        for name, splits in (run.results or {"baselines": {}})["baselines"].items():
            value = splits.get("validation", {}).get(metric)
            if value is not None and (name, value) not in drawn:
                drawn.add((name, value))
                axis.axhline(value, color="#666666", lw=0.8, ls="--")
                axis.annotate(
                    name,
                    (0.99, value),
                    xycoords=("axes fraction", "data"),
                    ha="right",
                    va="bottom",
                    fontsize=7,
                    color="#444444",
                    bbox={"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.5},
                )
    axis.set_title(metric.replace("_", " "), fontsize=9)
    axis.set_xlabel("step", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.25, lw=0.5)
    axis.spines[["top", "right"]].set_visible(False)
    if metric == "tokens_per_second":
        axis.set_ylim(bottom=0)
