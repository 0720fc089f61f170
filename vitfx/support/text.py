"""Numbers as tables show them, and how a report in Markdown ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def digits(value: float) -> str:
    """Three significant digits, and all that a large number has before its point: 0.123, 12.3, 1234."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def large(count: int) -> str:
    """Three significant digits of a count from a million on, and all of a smaller one: 21.6 M, 2.87 G, 13,584."""
    for name, unit in (("G", 10**9), ("M", 10**6)):
        if count >= unit:
            return f"{digits(count / unit)} {name}"
    return f"{count:,}"


def provenance_lines(settings: Mapping[str, Any], environment: Mapping[str, Any]) -> list[str]:
    """Lines of two sections, a list each."""
    return [
        "",
        "## Settings",
        "",
        *(f"- {key}: {value}" for key, value in settings.items()),
        "",
        "## Environment",
        "",
        *(f"- {key}: {value}" for key, value in environment.items()),
        "",
    ]
