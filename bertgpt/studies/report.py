"""Compares runs: tables of held-out results and baselines, and training curves, as PNG, Markdown and HTML."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bertgpt.io.paths import local_path
from bertgpt.runs.mirror import publish_files
from bertgpt.studies import ablation
from bertgpt.studies.pages import to_html, to_markdown
from bertgpt.studies.plots import figure_type, png, write_files
from bertgpt.studies.results import RunRecord, by_split, flatten, is_label_share, read_run
from bertgpt.studies.verdicts import group, kind_of, source, verdicts
from bertgpt.types import Table

NOT_A_METRIC = {
    "kind",
    "step",
    "time",
    "name",
    "grad_norm",
    "param_norm",
    "tokens",
    "matmul_utilisation",
    "data_wait",
    "save_wait",
    "nonfinite_steps",
    "skipped_batches",
}
SHOWN_AS = {"validation": "●", "test": "■"}
TITLES = {"lr": "learning rate", "mlm_loss": "masked LM loss", "mlm_accuracy": "masked LM accuracy"}
COLORS = ("#4063d8", "#d1495b", "#389826", "#9558b2", "#e8a33d", "#3a9ea5", "#7f7f7f", "#1b1b1b")


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
      runs: run directories, or their URLs.
      out: folder to write to, created if missing, or its URL.

    Returns:
      The paths of the files.

    Raises:
      UserError: a directory is not a run, or matplotlib is not installed.
    """
    records = [read_run(path) for path in runs]
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
    written = write_files(local_path(out), contents)
    publish_files(written)
    return written


def draw(runs: Sequence[RunRecord]) -> bytes:
    """Curves as a PNG: a block of panels per group of comparable runs, a colour per run."""
    blocks = [(members, panels(members)) for members in group(runs)]
    grids = [grid(len(metrics)) for _, metrics in blocks]
    figure = figure_type()(figsize=(14, 3.6 * sum(rows for rows, _ in grids)), layout="constrained", dpi=130)
    parts = figure.subfigures(len(blocks), 1, height_ratios=[rows for rows, _ in grids], squeeze=False)[:, 0]
    for block, (members, metrics), (rows, columns) in zip(parts, blocks, grids, strict=True):
        kind, dots = kind_of(members[0]), ", ".join(f"{marker} {name}" for name, marker in SHOWN_AS.items())
        block.suptitle(
            f"{kind[0].upper()}{kind[1:]} on {source(members[0].experiment['data'])}\n"
            f"lines: training   {dots}   dashed: baselines",
            fontsize=11,
            x=0.01,
            ha="left",
        )
        axes = list(block.subplots(rows, columns, squeeze=False).flat)
        for axis, metric in zip(axes, metrics, strict=False):
            plot_metric(axis, members, metric)
        for axis in axes[len(metrics) :]:
            axis.axis("off")
        axes[0].legend(fontsize=9, frameon=False)
    return png(figure)


def grid(count: int) -> tuple[int, int]:
    """(rows, columns) of a grid of panels: three or four columns, whichever leaves fewer places empty."""
    columns = min((3, 4), key=lambda columns: -count % columns)
    return -(-count // columns), columns


def panels(runs: Sequence[RunRecord]) -> list[str]:
    """The metrics worth a panel, in the order: losses, accuracies, learning rate, speed.

    The distribution of labels is left out: it belongs to the data and is the same for all runs. So is a metric that no
    run has at two steps: it is in the table.
    """
    logged: dict[str, None] = {}
    for run in runs:
        first: dict[str, int] = {}
        for line in run.lines:
            for key in (key for key in line if key not in NOT_A_METRIC):
                if first.setdefault(key, line["step"]) != line["step"]:
                    logged[key] = None
    order = dict.fromkeys(key for run in runs for line in run.lines for key in line)
    logged = [m for m in order if m in logged and not is_label_share(m)]
    losses = [m for m in logged if m.endswith("_loss")] or [m for m in logged if m == "loss"]
    rest = [m for m in logged if m not in losses and m not in ("loss", "lr", "tokens_per_second")]
    return [*losses, *rest, "lr", "tokens_per_second"]


def plot_metric(axis: Any, runs: Sequence[RunRecord], metric: str) -> None:
    """Training as a line, held-out evaluations as dots, baselines as dashed lines."""
    drawn: dict[str, list[float]] = {}
    for run, color in zip(runs, [COLORS[i % len(COLORS)] for i in range(len(runs))], strict=True):
        points = [
            (line["kind"], line.get("name"), line["step"], line[metric])
            for line in run.lines
            if line.get(metric) is not None
        ]
        train = [(step, value) for kind, _, step, value in points if kind == "train"]
        if train:
            axis.plot(*zip(*train, strict=True), color=color, lw=1.5, alpha=0.8, label=run.name)
        for name, marker in SHOWN_AS.items():
            dots = [(step, value) for kind, split, step, value in points if kind == "eval" and split == name]
            if dots:
                shape = {"●": "o", "■": "s"}[marker]
                axis.plot(*zip(*dots, strict=True), shape, ls=":", color=color, ms=6.5, mec="white", mew=0.8, zorder=3)
        for name, splits in (run.results or {"baselines": {}})["baselines"].items():
            split = next((split for split in ("test", "validation") if metric in splits.get(split, {})), None)
            if split is not None and splits[split][metric] not in drawn.setdefault(name, []):
                drawn[name].append(splits[split][metric])
                axis.axhline(splits[split][metric], color="#555555", lw=1.0, ls="--", zorder=1)
                axis.annotate(
                    name,
                    (0.99, splits[split][metric]),
                    xycoords=("axes fraction", "data"),
                    xytext=(0, 2),
                    textcoords="offset points",
                    ha="right",
                    va="bottom",
                    fontsize=9,
                    color="#333333",
                    bbox={"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.5},
                )
    axis.set_title(TITLES.get(metric, metric.replace("_", " ")), fontsize=11)
    axis.set_xlabel("step", fontsize=10)
    axis.tick_params(labelsize=9)
    axis.grid(alpha=0.25, lw=0.5)
    axis.spines[["top", "right"]].set_visible(False)
    if metric == "tokens_per_second":
        axis.set_ylim(bottom=0)
    if metric == "lr":
        axis.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
