"""The report's numbers as a person sees them."""

from __future__ import annotations

import copy
import io
import json
from typing import Any

import pytest
from rich.console import Console

from passes.cost import Cost
from passes.plan import DeletionPlan
from vitfx.circuits.circuit import Circuit, Decision, Edge, Writer
from vitfx.deploy.evaluate import Scores
from vitfx.graph.verify import Verification
from vitfx.images.image_set import Images
from vitfx.pruning.compensation import Compensated, RefitReport
from vitfx.pruning.prune_by_circuit import Pruned
from vitfx.reports.prune_text import to_markdown, to_table
from vitfx.reports.records import PruneReport
from vitfx.runs.prune_files import Measured
from vitfx.runs.prune_record import make_report
from vitfx.support.timing import Timing, ratio

OLD = Cost(parameters=2000, flops=10_000, heads=4, neurons=32, sublayers=4)
NEW = Cost(parameters=1500, flops=6_000, heads=3, neurons=0, sublayers=2)
SETTINGS = {
    "model": "runs[1]/vit.pt",
    "tau": 0.05,
    "remove": None,
    "method": "acdc",
    "granularity": "head",
    "ablation": "mean",
    "corruption": "swap",
    "seed": 0,
}


def scores(labelled: bool) -> dict[str, Scores]:
    return {
        "baseline": Scores(90, 3, 1.0 if labelled else None, 0.75 if labelled else None, 0.0, 1.0, 2.0),
        "pruned": Scores(90, 3, 1.5 if labelled else None, 0.7 if labelled else None, 0.25, 0.9, 1.0),
    }


def made(*, labelled: bool = True, notes: tuple[str, ...] = (), kind: str = "ridge", **changes: Any) -> PruneReport:
    """A report that needs no run: pruned takes half the time at batch 1 and a tenth more at batch 64."""
    timings = {
        1: {"baseline": Timing((2.0, 2.2, 2.4)), "pruned": Timing((1.0, 1.1, 1.2))},
        64: {"baseline": Timing((10.0,)), "pruned": Timing((11.0,))},
    }
    ratios = {batch: ratio(found["baseline"], found["pruned"]) for batch, found in timings.items()}
    measured = Measured("CPUExecutionProvider", scores(labelled), timings, ratios, 2e-7, 0.0)
    decisions = (
        Decision(Edge(Writer("m0", 0, (1,))), False, 0.1, 0.1),
        Decision(Edge(Writer("a0", 0, (0,))), True, 2.0, 2.1),
    )
    circuit = Circuit(decisions, 0.1, SETTINGS, details={"fidelity": {"kl": 0.1}, "evaluation": {"kl": 0.2}})
    verification = Verification(1e-6, 3e-7, 4e-16, 64, OLD, NEW, NEW)
    compensation = Compensated(DeletionPlan(), kind, (RefitReport("m1", 0.1, 2.0, 1.0),), 448, 64, 0.05, 0.15)
    pruned = Pruned(None, None, circuit, None, verification, notes, compensation, 0.04)  # type: ignore[arg-type]
    images = Images(None, None, ("a", "b"), skipped=1)  # type: ignore[arg-type]
    return make_report(pruned, measured, images, SETTINGS | changes, {"vitfx": "0", "cpu": "slow"})


def test_the_record() -> None:
    found = made()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["pruned"]["params"] == 1500
    assert found["pruned"]["mlp_neurons"] == 0
    assert found["baseline"]["latency_ms"] == {"1": 2.2, "64": 10.0}
    assert found["baseline"]["latency_spread_ms"]["64"] == [10.0, 10.0]
    assert found["speedup"] == pytest.approx(10 / 11)
    assert found["speedup_by_batch"]["1"] == pytest.approx(2)
    assert found["images"] == {"calibration": 2, "evaluation": 90, "skipped": 4}
    circuit = found["circuit"]
    assert circuit | {"removed": 1, "edges": 2, "kl": 0.1, "artifact_kl": 0.04, "source": None} == circuit
    assert (circuit["method"], circuit["granularity"], circuit["fidelity"]) == ("acdc", "head", {"kl": 0.1})
    assert circuit["calibration"] is None
    assert found["verify"]["passed"] is True
    assert found["verify"]["onnx"] == 2e-7


def test_rows() -> None:
    table = {title: rest for title, *rest in to_table(made()).rows}
    assert table["test loss"] == ["1.0000", "1.5000", "+0.5000"]
    assert table["top-1"] == ["75.00%", "70.00%", "-5.00 points"]
    assert table["KL from the original"] == ["0", "0.2500", ""]
    assert table["agreement with the original"] == ["100.00%", "90.00%", ""]
    assert table["parameters"] == ["2,000", "1,500", "0.750"]
    assert table["FLOPs an image"] == ["10,000", "6,000", "0.600"]
    assert table["MLP neurons"] == ["32", "0", "0.000"]
    assert table["inference time, 90 evaluation images"] == ["2 s", "1 s", "2.00× faster"]
    assert table["ms at batch 1"] == ["2.2", "1.1", "2.00× faster"]
    assert table["ms at batch 64"] == ["10", "11", "1.10× slower"]


def test_without_labels_there_is_no_accuracy() -> None:
    titles = [title for title, *_ in to_table(made(labelled=False)).rows]
    assert "top-1" not in titles
    assert "test loss" not in titles
    assert "agreement with the original" in titles


def test_a_model_without_mlps_has_no_ratio_of_them() -> None:
    found = copy.deepcopy(made())
    found["baseline"]["mlp_neurons"] = 0
    assert ("MLP neurons", "0", "0", "") in to_table(found).rows


def test_markdown() -> None:
    text = to_markdown(made(notes=("m1_opaque is not prunable: gated",)))
    lines = text.splitlines()
    assert lines[0] == "# runs[1]/vit.pt, pruned by vitfx at τ = 0.05"
    assert {line.count("|") for line in lines if line.startswith("|")} == {5}
    assert "- m1_opaque is not prunable: gated" in lines
    assert "(4 corrupt ones skipped), with CPUExecutionProvider." in text
    assert "4.0e-16 in float64, 3.0e-07 in float32; ONNX against torch 2.0e-07" in text
    assert "- cpu: slow" in lines


def test_where_a_circuit_came_from() -> None:
    found = made(circuit="old/circuit.json", remove=0.3)
    text = to_markdown(found)
    assert found["circuit"]["source"] == "old/circuit.json"
    assert "- Circuit of old/circuit.json: 1 of 2 edges of the head graph removed by acdc (mean ablation" in text
    assert text.startswith("# runs[1]/vit.pt, pruned by vitfx at 30% to remove\n")
    assert "- Circuit: 1 of 2 edges" in to_markdown(made())


def test_the_console_shows_brackets_as_they_are() -> None:
    printed = io.StringIO()
    Console(file=printed, width=120).print(to_table(made()))
    assert "runs[1]/vit.pt at τ = 0.05, CPUExecutionProvider" in printed.getvalue()
    assert "2.00× faster" in printed.getvalue()


def test_compensation_is_told() -> None:
    found = made()
    said = (
        "urvivors refitted on 448 images: on 64 others, D_KL from the original is 0.0500, against 0.1500 with only the "
        "mean in place of deleted units"
    )
    assert found["compensation"] == {
        "kind": "ridge", "images": 448, "held_out": 64, "kl": 0.05, "kl_mean": 0.15,
        "refits": [{"name": "m1", "shrinkage": 0.1, "before": 2.0, "after": 1.0}],
        "sentence": f"s{said}",
    }  # fmt: skip
    assert json.loads(json.dumps(found)) == found
    assert f"- S{said}.\n" in to_markdown(found)
    assert f"- S{said}, so the mean stays.\n" in to_markdown(made(kind="mean"))
