"""docs/benchmarks.md and docs/on-a-gpu.md: every figure is in a record that its section, or the page, links to."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
SECTIONS = dict(
    re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", (DOCS / "benchmarks.md").read_text(), re.DOTALL | re.MULTILINE)
)
SECTIONS["On a GPU"] = (DOCS / "on-a-gpu.md").read_text()
_CODE = re.compile(
    r"^    .*$|`[^`]*`|\]\([^)]*\)|\d{4}\.\d{5}|version \d+\.\d+(\.\d+)?|\bvitfx \d+\.\d+\.\d+", re.MULTILINE
)
_FIGURE = re.compile(
    r"(?<![\w.-])−?(\d{1,3}(?:,\d{3})+|\d*\.\d+|\d+)(?:e-\d+)?(?= ?(%|×|s\b|min\b|h\b|ms\b|GiB|points?\b)?)"
)
"""A decimal, or a whole number with a unit."""


def figures(text: str) -> Iterator[str]:
    """The measured numbers of a section: decimals, and whole numbers with a unit."""
    for match in _FIGURE.finditer(_CODE.sub(" ", text)):
        if "." in match.group(0) or match.group(2):
            yield match.group(0).replace(",", "").replace("−", "")


def leaves(value: Any) -> Iterator[float]:
    """All numbers of a record, those in its sentences too, and what a comparison of runtimes implies."""
    if isinstance(value, dict):
        if value.get("format") == "vitfx-runtimes/1":
            yield from speedups(value["latency"])
        if value.get("format") == "vitfx-prune-report/1":
            yield from (value["pruned"][name] / value["baseline"][name] for name in ("flops", "params"))
        for part in value.values():
            yield from leaves(part)
    elif isinstance(value, list):
        for part in value:
            yield from leaves(part)
    elif isinstance(value, str):
        yield from (float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*(?:\.\d+)?", value))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)


def speedups(rows: list[dict[str, Any]]) -> Iterator[float]:
    """How many times faster than the first model on ONNX Runtime each is, by batch."""
    plain = {
        row["batch"]: row["median_ms"]
        for row in rows
        if row["runtime"].startswith("onnxruntime") and row["model"] == rows[0]["model"]
    }
    yield from (plain[row["batch"]] / row["median_ms"] for row in rows if "median_ms" in row and row["batch"] in plain)


def forms(value: float) -> tuple[float, ...]:
    """How a record's number may be printed: as it is, in percent, as what is gone, or inverted; in other units."""
    value = abs(value)
    inverse = (1 / value,) if value else ()
    return (
        value,
        100 * value,
        100 * (1 - value),
        1 - value,
        1000 * value,
        value / 60,
        value / 3600,
        value / 1e6,
        value / 1e9,
        value / 2**30,
        *inverse,
    )


def known(figure: str, numbers: list[float]) -> bool:
    """Whether some number is this figure, to the digits that are printed."""
    digits = len(figure.partition("e")[0].partition(".")[2])
    step = 10.0**-digits * (float("1e" + figure.partition("e")[2]) if "e" in figure else 1)
    return any(abs(form - float(figure)) <= 0.501 * step for number in numbers for form in forms(number))


@pytest.mark.parametrize("title", SECTIONS)
def test_every_figure_is_in_a_record(title: str) -> None:
    text = SECTIONS[title]
    links = set(re.findall(r"\]\(([\w/.-]+\.json)\)", text))
    numbers = [number for link in links for number in leaves(json.loads((DOCS / link).read_text()))]
    missing = [figure for figure in figures(text) if not known(figure, numbers)]
    assert not missing, f"no record of {title!r} has {', '.join(missing)}"
