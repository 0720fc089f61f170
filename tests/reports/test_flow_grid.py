"""Gradient flow on the page."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.support.pages import Page
from vitfx.reports.flow_grid import flow_grid


def flow(layers: int = 3) -> dict[str, Any]:
    """Two steps; the layers' gradients are 1, 0.1, 0.01 …, the second time a hundredth of that."""
    means = [10.0**-layer for layer in range(layers)]
    steps = [
        {"images": images, "mean": [by * one for one in means], "max": means} for images, by in ((0, 1), (640, 0.01))
    ]
    return {"layers": [f"<a{layer}>" for layer in range(layers)], "steps": steps}


def shades(drawn: str) -> list[float]:
    return [float(one) for one in re.findall(r'fill-opacity="([\d.]+)"', drawn)]


def test_layers_run_upwards_and_shades_are_logarithmic() -> None:
    drawn = flow_grid(flow(), "Pruned")
    assert shades(drawn) == pytest.approx([0.53, 0.765, 1, 0.06, 0.295, 0.53], abs=1e-3)
    assert re.findall(r">([^<>]+)</text>", drawn) == [
        "&lt;a2&gt;",
        "&lt;a1&gt;",
        "&lt;a0&gt;",
        "0",
        "images seen",
        "640",
    ]
    assert "<title>&lt;a0&gt;, 640 images: 0.01</title>" in drawn
    assert Page(drawn).labels == [
        "Pruned: mean absolute gradient by layer over the images seen, from 0.0001 (<a2>, 640 images) to 1 (<a0>, 0 "
        "images)."
    ]


def test_of_many_layers_some_are_named() -> None:
    drawn = flow_grid(flow(100), "Pruned")
    assert drawn.count('class="soft"') == 3 + 34
    assert len(shades(drawn)) == 200
    (height,) = re.findall(r'viewBox="0 0 420 ([\d.]+)"', drawn)
    assert float(height) < 500


def test_no_gradient_no_picture() -> None:
    found = flow()
    found["steps"][0]["mean"][1] = 0.0
    assert shades(flow_grid(found, "Pruned"))[1] == 0, "none at all is left empty"
    found["steps"] = [{"images": 0, "mean": [0.0] * 3, "max": [0.0] * 3}]
    assert flow_grid(found, "Pruned") == ""
    found["steps"] = []
    assert flow_grid(found, "Pruned") == ""
    found["steps"] = [{"images": 0, "mean": [0.5] * 3, "max": [0.5] * 3}]
    assert shades(flow_grid(found, "Pruned")) == [1, 1, 1]
