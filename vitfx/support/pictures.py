"""Pictures by matplotlib, which not every user has."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vitfx.support.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 120
# The user's own matplotlibrc must not change the picture; "$" and "_" in a class's name are themselves.
_STYLE: list[Any] = ["default", {"text.parse_math": False, "font.size": 9, "axes.grid": True, "grid.alpha": 0.3}]


def has_matplotlib() -> bool:
    try:
        import matplotlib
    except ImportError:
        return False
    return bool(matplotlib)


def png_bytes(draw: Callable[[], Figure]) -> bytes:
    """The figure that `draw` makes, as a PNG file. Raises UserError where matplotlib is missing."""
    if not has_matplotlib():
        raise UserError("pictures need matplotlib: pip install 'vitfx[plot]'")
    from matplotlib import style

    buffer = io.BytesIO()
    with style.context(_STYLE):
        draw().savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()
