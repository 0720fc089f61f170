"""How every report in Markdown ends: with what it depends on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


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
