"""Writes the results of `bertgpt evaluate`: metrics and tables as Markdown, confusion matrices and curves as PNG."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bertgpt.studies.contact_sheet import draw_sheet
from bertgpt.studies.pages import markdown_table
from bertgpt.studies.plots import BLUE, figure_type, png, write_files
from bertgpt.types import Confusion, Curve, EvalResult, Sheet, Table

MOST_NUMBERED = 25  # with more classes, the cells of a confusion matrix are too small for counts


def write_evaluations(results: Mapping[str, EvalResult], out: Path) -> list[Path]:
    """Writes evaluation.md, and NAME.confusion.png and NAME.FIGURE.png for other figures.

    Args:
      results: name of an evaluation → its result.
      out: folder to write to, created if missing.

    Returns:
      The paths of the files.
    """
    parts, contents = ["# Evaluation"], {}
    for name, found in results.items():
        numbers = [[metric, f"{value:.4f}"] for metric, value in found.values.items()]
        tables = [
            Table(name, ["", "value"], numbers),
            *(table._replace(title=f"{name}: {table.title}") for table in found.tables),
        ]
        parts += map(markdown_table, tables)
        if found.warnings:
            parts.append("\n".join(f"- {name}: {warning.text}" for warning in found.warnings))
        start = re.sub(r"[^\w.-]", "_", name)  # a name may be a glob pattern
        for figure in found.figures:
            if isinstance(figure, Confusion):
                contents[f"{start}.confusion.png"] = draw_confusion(figure)
                parts.append(f"![confusion matrix]({start}.confusion.png)")
            elif isinstance(figure, Sheet):
                contents[f"{start}.{figure.name}.png"] = draw_sheet(figure)
                parts.append(f"![pictures with predictions]({start}.{figure.name}.png)")
            else:
                contents[f"{start}.{figure.name}.png"] = draw_curve(figure)
                parts.append(f"![{figure.y_label} by {figure.x_label}]({start}.{figure.name}.png)")
    contents = {"evaluation.md": ("\n\n".join(parts) + "\n").encode()} | contents
    return write_files(out, contents)


def draw_confusion(confusion: Confusion) -> bytes:
    """A confusion matrix as a PNG: colour is the fraction of the true class; counts are printed where there is room."""
    names, counts = confusion.names, confusion.counts
    size = min(16.0, max(4.0, 1.5 + 0.45 * len(names)))
    figure = figure_type()(figsize=(size, size), layout="constrained", dpi=110)
    axis = figure.subplots()
    shares = counts / counts.sum(axis=1, keepdims=True).clip(1)
    axis.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    axis.set(xlabel="predicted", ylabel="true", xticks=range(len(names)), yticks=range(len(names)))
    fontsize = 8 if len(names) <= 40 else 5
    axis.set_xticklabels(names, rotation=90, fontsize=fontsize)
    axis.set_yticklabels(names, fontsize=fontsize)
    for (i, j), count in np.ndenumerate(counts):
        if count and len(names) <= MOST_NUMBERED:
            color = "white" if shares[i, j] > 0.5 else "black"
            axis.text(j, i, f"{count:,}", ha="center", va="center", fontsize=8, color=color)
    return png(figure)


def draw_curve(curve: Curve) -> bytes:
    """A line or a scatter plot as a PNG."""
    figure = figure_type()(figsize=(5.0, 4.0), layout="constrained", dpi=110)
    axis = figure.subplots()
    if curve.scattered:
        axis.scatter(curve.x, curve.y, s=8, alpha=0.4, linewidths=0, color=BLUE)
    else:
        axis.plot(curve.x, curve.y, color=BLUE)
    axis.set(xlabel=curve.x_label, ylabel=curve.y_label)
    axis.grid(alpha=0.3)
    return png(figure)
