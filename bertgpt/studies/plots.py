"""Shared by all reports: matplotlib without a display, a common look, PNG bytes, and atomic writes of several files."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bertgpt.io.directories import make_directory
from bertgpt.io.files import write_atomic
from bertgpt.types import UserError

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure


BLUE, RED, GREY = "#4063d8", "#d1495b", "#b0b8c8"


def figure_type() -> type["matplotlib.figure.Figure"]:
    """matplotlib's Figure, without pyplot and its global state.

    Raises:
      UserError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise UserError("pictures need matplotlib: pip install 'bertgpt[plot]'") from None
    matplotlib.use("agg")
    from matplotlib.figure import Figure

    return Figure


def panels(
    count: int, columns: int, width: float, height: float
) -> tuple["matplotlib.figure.Figure", list["matplotlib.axes.Axes"]]:
    """A figure with a grid of `count` panels of this size in inches; unused places of the grid are left blank.

    Returns:
      (figure, axes of the panels).
    """
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = figure_type()(figsize=(width * columns, height * rows), layout="constrained", dpi=130)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[count:]:
        axis.axis("off")
    return figure, axes[:count]


def style(axis: "matplotlib.axes.Axes", title: str = "", grid: str = "both") -> None:
    """Small labels, a faint grid, no frame at the top and right."""
    axis.set_title(title, fontsize=9)
    axis.tick_params(labelsize=7)
    axis.grid(axis=grid, alpha=0.25, lw=0.5)
    axis.spines[["top", "right"]].set_visible(False)


def png(figure: "matplotlib.figure.Figure") -> bytes:
    """A figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def write_files(out: Path, contents: Mapping[str, bytes]) -> list[Path]:
    """Writes name → content into a folder, which is created if missing. Each file is replaced atomically.

    Returns:
      Their paths, in order.
    """
    make_directory(out)
    for name, content in contents.items():
        write_atomic(out / name, content)
    return [out / name for name in contents]
