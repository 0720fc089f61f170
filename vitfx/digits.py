"""A measured number as tables show it."""

from __future__ import annotations


def digits(value: float) -> str:
    """Three significant digits, and all that a large number has before its point: 0.123, 12.3, 1234."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
