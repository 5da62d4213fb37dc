"""What all pictures need: matplotlib without a screen, and PNG bytes."""

import io
from typing import Any

from bertgpt.config import UserError


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
