"""What all reports need: matplotlib without a screen, PNG bytes, and files written whole or not at all."""

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bertgpt.types import UserError


def figure_type() -> Any:
    """matplotlib's Figure.

    Raises:
      UserError: matplotlib is missing.
    """
    try:
        import matplotlib
    except ImportError:
        raise UserError("pictures need matplotlib: pip install 'bertgpt[plot]'") from None
    matplotlib.use("agg")
    from matplotlib.figure import Figure

    return Figure


def png(figure: Any) -> bytes:
    """A figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def write_files(out: Path, contents: Mapping[str, bytes]) -> list[Path]:
    """Writes name → content into a folder, which is made if missing; each file is the old one or the whole new one.

    Returns:
      Their paths, in order.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        partial = out / f".{name}.partial"
        partial.write_bytes(content)
        os.replace(partial, out / name)
    return [out / name for name in contents]
