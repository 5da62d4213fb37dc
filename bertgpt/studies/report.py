"""Runs side by side: tables of held-out results with their baselines, and curves, as PNG, Markdown and HTML."""

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bertgpt.studies import ablation
from bertgpt.studies.ablation import flatten
from bertgpt.studies.plots import figure_type, png, write_files
from bertgpt.training.log import read_metrics
from bertgpt.types import Table, UserError

NOT_A_METRIC = {"kind", "step", "time", "name", "grad_norm", "tokens", "matmul_utilisation", "data_wait"}
COLORS = ("#4063d8", "#d1495b", "#389826", "#9558b2", "#e8a33d", "#3a9ea5", "#7f7f7f", "#1b1b1b")


class RunRecord(NamedTuple):
    """What a run directory says of itself, as plain data."""

    name: str
    experiment: dict[str, Any]
    lines: list[dict[str, Any]]
    results: dict[str, Any] | None
    """None while the run is unfinished"""


def read_run(path: Path) -> RunRecord:
    """Reads a run directory.

    Raises:
      UserError: it is no run, has logged nothing yet, or a file is broken.
    """
    if not (path / "experiment.json").exists():
        raise UserError(f"{path}: no run here (no experiment.json)")
    if not (path / "metrics.jsonl").exists():
        raise UserError(f"{path}: has logged nothing yet (no metrics.jsonl)")
    try:
        experiment = json.loads((path / "experiment.json").read_text(encoding="utf-8"))
        done = path / "results.json"
        results = json.loads(done.read_text(encoding="utf-8")) if done.exists() else None
    except ValueError as error:
        raise UserError(f"{path}: experiment.json or results.json is not valid JSON: {error}") from None
    return RunRecord(experiment["name"], experiment, read_metrics(path / "metrics.jsonl"), results)


def source(data: dict[str, Any]) -> str:
    """The path that a data part reads; of a curriculum its last stage's, of a mixture those of its parts."""
    if "long" in data:
        return source(data["long"])
    if "parts" in data:
        return " + ".join(source(part["data"]) for part in data["parts"])
    return data.get("path", "")


def group(runs: Sequence[RunRecord]) -> list[list[RunRecord]]:
    """Runs that can be compared: the same kind of objective on the same data."""
    groups: dict[tuple, list[RunRecord]] = {}
    for run in runs:
        key = (run.experiment["objective"]["type"], source(run.experiment["data"]))
        groups.setdefault(key, []).append(run)
    return list(groups.values())


def comparison(runs: Sequence[RunRecord]) -> list[Table]:
    """One table for each group of finished runs: held-out metrics, baselines above the models."""
    tables = []
    for members in group([run for run in runs if run.results]):
        rows: dict[tuple[str, str], dict[str, float]] = {}
        for run in members:
            for name, splits in run.results["baselines"].items():
                flat = {
                    f"{split} {metric}": value for split, values in splits.items() for metric, value in values.items()
                }
                rows.setdefault((name, json.dumps(flat)), flat)
        for run in members:
            evals = run.results["evals"]
            flat = {f"{split} {metric}": value for split, values in evals.items() for metric, value in values.items()}
            rows[run.name, "run"] = flat
        metrics = list(dict.fromkeys(metric for flat in rows.values() for metric in flat))
        # A total beside its parts says nothing new.
        metrics = [
            m
            for m in metrics
            if not (m.endswith(" loss") and any(o.startswith(m[:-4]) and o.endswith("_loss") for o in metrics))
        ]
        metrics.sort(key=lambda m: not m.endswith("accuracy"))
        body = [[name, *(f"{flat[m]:.4f}" if m in flat else "–" for m in metrics)] for (name, _), flat in rows.items()]
        kind = members[0].experiment["objective"]["type"].rpartition(":")[2]
        tables.append(Table(f"{kind}: held-out results", ["", *metrics], body))
    return tables


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
    """Whether `other` is `run` in everything but its start, which was from scratch."""
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
    return Table("Runs", ["", "updates", "parameters", "tokens", "tokens/s", "seconds"], rows)


def differences(runs: Sequence[RunRecord]) -> list[Table]:
    """Leaves in which the experiments of a group differ."""
    tables = []
    for members in group(runs):
        flat = [flatten(run.experiment) for run in members]
        paths = list(dict.fromkeys(path for leaves in flat for path in leaves))
        differ = [p for p in paths if p != "name" and len({json.dumps(leaves.get(p)) for leaves in flat}) > 1]
        if differ:
            rows = [[path, *(str(leaves.get(path, "–")) for leaves in flat)] for path in differ]
            tables.append(Table("What differs", ["", *(run.name for run in members)], rows))
    return tables


def notes(runs: Sequence[RunRecord]) -> list[Table]:
    """What there is to say of the data, such as how many texts were cut; no table if nothing."""
    rows = [
        [run.name, split, note]
        for run in runs
        for split, found in (run.results or {}).get("notes", {}).items()
        for note in found
    ]
    return [Table("Notes on the data", ["", "split", "note"], rows)] if rows else []


def report(runs: Sequence[str | Path], out: str | Path) -> list[Path]:
    """Writes report.png, report.md and report.html for these run directories and returns their paths.

    Raises:
      UserError: a directory is no run, or matplotlib is missing.
    """
    records = [read_run(Path(path)) for path in runs]
    tables = [*comparison(records), overview(records), *differences(records), *notes(records)]
    judged = verdicts(records)
    arms = ablation.collect(records)
    if len(arms) > 1:
        tables.insert(0, Table("Means over seeds ± standard deviation", *ablation.rows(arms)))
    picture = draw(records)
    contents = {
        "report.png": picture,
        "report.md": to_markdown(tables, judged).encode(),
        "report.html": to_html(tables, judged, picture).encode(),
    }
    if ablation.shown(arms):
        contents = {"ablation.png": ablation.draw(arms)} | contents
        curve = ablation.curve_of(arms)
        contents = ({} if curve is None else {"curve.png": ablation.draw_curve(curve)}) | contents
    return write_files(Path(out), contents)


def draw(runs: Sequence[RunRecord]) -> bytes:
    """Curves as a PNG: a block of panels for each group of comparable runs, one colour for each run."""
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
    """(rows, columns) for so many panels: three or four in a row, whichever leaves fewer places empty."""
    columns = min((3, 4), key=lambda columns: -count % columns)
    return -(-count // columns), columns


def panels(runs: Sequence[RunRecord]) -> list[str]:
    """The metrics worth a panel, in the order: losses, accuracies, learning rate, speed.

    The shares of a pair's labels stand beside its accuracy in the table; they belong to the data and no run moves them.
    """
    logged = dict.fromkeys(key for run in runs for line in run.lines for key in line if key not in NOT_A_METRIC)
    logged = [m for m in logged if not m.endswith(("_labels_max", "_labels_min", "_labels_entropy"))]
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
    axis.set_xlabel("updates", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.25, lw=0.5)
    axis.spines[["top", "right"]].set_visible(False)
    if metric == "tokens_per_second":
        axis.set_ylim(bottom=0)


def markdown_table(table: Table) -> str:
    """A table under its title."""
    head = "| " + " | ".join(table.columns) + " |"
    rule = "|" + "---|" + "---:|" * (len(table.columns) - 1)
    body = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table.rows]
    return "\n".join([f"## {table.title}\n", head, rule, *body])


def to_markdown(tables: Sequence[Table], judged: Sequence[str]) -> str:
    """The page as Markdown; its picture is report.png beside it."""
    parts = ["# bertgpt report", "![curves](report.png)", *map(markdown_table, tables)]
    if judged:
        parts += ["## Against the baselines", "\n".join(f"- {line}" for line in judged)]
    return "\n\n".join(parts) + "\n"


STYLE = """body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:75em;padding:0 1em;color:#222}
h1{font-size:1.5em}h2{font-size:1.1em;margin-top:2em}img{max-width:100%}table{border-collapse:collapse}
th,td{padding:.25em .8em;border-bottom:1px solid #ddd;text-align:right;font-variant-numeric:tabular-nums}
th:first-child,td:first-child{text-align:left}"""


def to_html(tables: Sequence[Table], judged: Sequence[str], picture: bytes) -> str:
    """The page as one self-contained HTML file."""
    parts = []
    for table in tables:
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in table.columns)
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>\n" for row in table.rows
        )
        parts.append(f"<h2>{html.escape(table.title)}</h2>\n<table><tr>{head}</tr>\n{rows}</table>")
    if judged:
        items = "".join(f"<li>{html.escape(line)}</li>" for line in judged)
        parts.append(f"<h2>Against the baselines</h2>\n<ul>{items}</ul>")
    image = f'<img alt="curves" src="data:image/png;base64,{base64.b64encode(picture).decode()}">'
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8">\n<title>bertgpt report</title>\n'
        f"<style>{STYLE}</style>\n"
        f"<h1>bertgpt report</h1>\n{image}\n" + "\n".join(parts) + "\n</html>\n"
    )
