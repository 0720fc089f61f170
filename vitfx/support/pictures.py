"""Pictures by matplotlib, which not every user has."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vitfx.support.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The user's own matplotlibrc must not change the picture; "$" and "_" in a class's name are themselves.
_STYLE: list[Any] = ["default", {"text.parse_math": False, "svg.hashsalt": "vitfx", "font.size": 9, "grid.alpha": 0.3}]


def has_matplotlib() -> bool:
    try:
        import matplotlib
    except ImportError:
        return False
    return bool(matplotlib)


def png_bytes(draw: Callable[[], Figure]) -> bytes:
    """See `figure_bytes`."""
    return figure_bytes(draw, ".png", dpi=120, grid=True)


def figure_bytes(draw: Callable[[], Figure], suffix: str, *, dpi: int, grid: bool) -> bytes:
    """The figure that `draw` makes, as a file; the same figure gives the same bytes.

    suffix: ".png" or ".svg".
    grid: whether axes have one.
    Raises UserError where matplotlib is missing.
    """
    if not has_matplotlib():
        raise UserError("pictures need matplotlib: pip install 'vitfx[plot]'")
    from matplotlib import style

    metadata: dict[str, Any] = {"Date": None} if suffix == ".svg" else {}
    buffer = io.BytesIO()
    with style.context([*_STYLE, {"axes.grid": grid}]):
        draw().savefig(buffer, format=suffix[1:], dpi=dpi, metadata=metadata)
    return buffer.getvalue()
