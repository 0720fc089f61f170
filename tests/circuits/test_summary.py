"""The summary's numbers, by hand, and that what a method says of itself is printed."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import pytest
from rich.console import Console

from tests.support.circuits import made_up, of_edges
from vitfx.circuits.circuit import ATTRIBUTED, Circuit
from vitfx.circuits.summary import LayerRow, layer_rows, summary

HEADS = of_edges(
    ("m1.p0", "stream", False, 0.25),
    ("a1.h0", "stream", True, 1.0),
    ("a1.h1", "stream", False, 0.125),
    ("m0.p0", "stream", True, 2.0),
    ("a0.h0", "stream", True, 1.0),
    ("embed", "stream", True, 4.0),
)


def printed(circuit: Circuit, top: int = 3) -> str:
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(summary(circuit, top))
    return console.export_text()


def test_rows() -> None:
    assert layer_rows(HEADS) == [
        LayerRow("embed", (0, 0), (0, 0), (1, 1), 0.5, 0.0),
        LayerRow(0, (1, 1), (1, 1), (2, 2), 0.375, 0.0),
        LayerRow(1, (1, 2), (0, 1), (1, 3), 0.125, 0.375),
        LayerRow("total", (2, 3), (1, 2), (4, 6), 1.0, 0.375),
    ]


def test_attributions_are_not_added_up_as_divergence() -> None:
    decisions = tuple(dataclasses.replace(one, basis=ATTRIBUTED) for one in HEADS.decisions)
    circuit = dataclasses.replace(HEADS, decisions=decisions)
    assert {row.spent for row in layer_rows(circuit)} == {None}
    assert "KL spent" in printed(HEADS) and "KL spent" not in printed(circuit)
    assert "score: attribution" in printed(circuit)


def test_the_strongest_edges_are_listed() -> None:
    said = printed(HEADS, top=2)
    assert "the strongest 2 of 4 live kept edges" in said
    assert "embed→stream" in said and "m0.p0→stream" in said and "a0.h0→stream" not in said
    assert "strongest" not in printed(HEADS, top=0)


@pytest.mark.parametrize("granularity", ["block", "head", "edge", "qkv"])
def test_totals_are_the_circuits(granularity: str) -> None:
    circuit = made_up(granularity)
    *layers, total = layer_rows(circuit)
    assert total.edges == (len(circuit.kept), len(circuit.decisions))
    assert sum(row.edges[0] for row in layers) == total.edges[0]
    assert sum(row.heads[0] for row in layers) == total.heads[0]
    assert sum(row.share for row in layers) == pytest.approx(1)
    assert ("attention" in printed(circuit)) == (granularity == "block")


def test_a_circuit_that_keeps_nothing() -> None:
    circuit = of_edges(("embed", "stream", False, 4.0), ("a0.h0", "stream", False, 1.0))
    assert layer_rows(circuit)[-1] == LayerRow("total", (0, 1), (0, 0), (0, 2), 0.0, 5.0)
    assert "the strongest 0 of 0" in printed(circuit)


def test_details_are_printed_as_they_come() -> None:
    details: dict[str, Any] = {
        "calibration": {"heads": {"spearman": 0.875}, "rows": [{"sampled": 64}]},
        "stability": {f"a{index}.h0": 0.5 for index in range(40)},
        "other": {"secret": 1},
    }
    said = printed(dataclasses.replace(HEADS, details=details))
    assert "heads spearman" in said and "0.875" in said and "rows 0 sampled" in said
    assert "… and 16 more in the file" in said
    assert "secret" not in said and "calibration" not in printed(HEADS)
