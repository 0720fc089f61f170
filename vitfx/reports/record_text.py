"""Any JSON record that vitfx wrote, as text: what it is of, what it was made with, and what it says."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

_WIDE = 200
"""Characters of a value; longer ones are cut."""
_DEEP = 3
"""Levels that are printed line by line; what lies deeper is JSON in a line."""
_FIRST = ("settings", "asked", "environment")
"""How a record was made comes before what it says."""


def record_text(format: str, record: Mapping[str, Any], *, sealed: bool) -> str:
    """sealed: it has a digest, which is right."""
    proof = "exactly as it was written, by its digest" if sealed else "without a digest, as vitfx 0.5 wrote them"
    ordered = {name: record[name] for name in (*_FIRST, *record) if name in record}
    return "\n".join([f"{format}, {proof}", *_lines(ordered, 0)])


def _lines(values: Mapping[str, Any], depth: int) -> Iterator[str]:
    for name, value in values.items():
        start = f"{'  ' * depth}{name}:"
        if isinstance(value, Mapping) and value and depth + 1 < _DEEP:
            yield start
            yield from _lines(value, depth + 1)
        elif isinstance(value, list) and value and all(isinstance(each, str) for each in value) and depth + 1 < _DEEP:
            yield start
            yield from (f"{'  ' * (depth + 1)}- {_short(each)}" for each in value)
        else:
            yield f"{start} {_short(value)}"


def _short(value: Any) -> str:
    if isinstance(value, list) and len(value) > 1 and isinstance(value[0], (list, dict)):
        return f"{len(value)} entries"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _WIDE else f"{text[:_WIDE]}… ({len(text):,} characters)"
