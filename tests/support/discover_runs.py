"""The discover command in process, on the small model of `tests.support.prune_runs`."""

from __future__ import annotations

from pathlib import Path

from vitfx.circuits.circuit import Circuit
from vitfx.discover import main

QKV = ("--granularity", "qkv", "--tau", "0.003")


def run(model: Path | str, out: Path, *options: str) -> int:
    """The command's exit code."""
    small = ["--samples", "16", "--device", "cpu", "--eval-samples", "40", "--out", str(out)]
    small += [] if "block" in options else ["--paths", "4"]
    return main([str(model), *small, *options])


def read(path: Path) -> Circuit:
    return Circuit.from_json(path.read_text())


def qkv_circuit(model: Path) -> Path:
    """The file, beside the model, of a circuit of the qkv graph."""
    out = model.parent / "qkv.json"
    assert run(model, out, *QKV) == 0
    return out
