"""Which of a test's parameters run every time; the others run by hand, with `-m slow`."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest

REPRESENTATIVE = (
    "vitfx",
    "torchvision",
    "timm-layerscale-average-registers",
    "timm-eva02",
    "timm-grouped-queries",
    "timm-parallel-fused",
    "hf-dinov3",
)
"""Families of `tests.support.families` that between them have each kind of norm, core, position, pool and MLP."""


def slow_but(fast: Collection[Any], names: Iterable[Any]) -> list[Any]:
    """All names as parameters, those not in `fast` marked slow."""
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in names]
