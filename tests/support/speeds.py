"""Speeds that tests say were measured."""

from __future__ import annotations

from vitfx.support.timing import SpeedUp


def exactly(value: float) -> SpeedUp:
    """Measured without error."""
    return SpeedUp(value, value, value)
