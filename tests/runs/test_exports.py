"""An ONNX file that is not what it was exported from: exit code 1, and none of it is left, by every command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vitfx.deploy.export
import vitfx.optimize
import vitfx.recover
from tests.support.discover_runs import run as discover
from tests.support.prune_runs import artifact, checkpoint, run, run_circuit
from tests.support.recover_runs import npz, pruned_file
from vitfx.deploy.export import ExportMismatch
from vitfx.pruning import target_bench
from vitfx.pruning.latency_table import LatencyTable

ROUNDS = ("--target-flops", "0.7", "--rounds", "1", "--recover-minutes", "0.01")


def by_circuit(folder: Path) -> int:
    model = artifact(folder / "m.pt")
    assert discover(model, folder / "c.json", "--tau", "0.01") == 0
    return run_circuit(model, folder / "out", "--circuit", str(folder / "c.json"))


def recover(folder: Path) -> int:
    command = [str(pruned_file(folder / "p.pt")), "--teacher", str(checkpoint(folder / "m.pt")), "--epochs", "1"]
    command += ["--data", str(npz(folder, 64)), "--device", "cpu", "--precision", "fp32", "--cache", str(folder)]
    return vitfx.recover.main([*command, "--batch", "16", "--out", str(folder / "out")])


def optimize(folder: Path) -> int:
    return vitfx.optimize.main(
        [str(checkpoint(folder / "m.pt")), "--out", str(folder / "out"), "--batch", "1", "--quick"]
    )


COMMANDS: dict[str, tuple[Callable[[Path], int], tuple[str, ...]]] = {
    "prune": (
        lambda folder: run(artifact(folder / "m.pt"), folder / "out", "--tau", "0.01"),
        ("baseline.onnx", "pruned.onnx"),
    ),
    "prune --circuit": (by_circuit, ("pruned.onnx",)),
    "prune for a goal": (
        lambda folder: run_circuit(artifact(folder / "m.pt"), folder / "out", *ROUNDS[:2], "--samples", "24"),
        ("pruned.onnx",),
    ),
    "prune --sweep": (
        lambda folder: run_circuit(
            artifact(folder / "m.pt"), folder / "out", "--sweep", "1.3:1.6:2", "--samples", "24"
        ),
        ("pruned.onnx",),
    ),
    "prune --rounds": (
        lambda folder: run_circuit(artifact(folder / "m.pt"), folder / "out", *ROUNDS, "--samples", "24"),
        ("pruned.onnx",),
    ),
    "recover": (recover, ("baseline.onnx", "pruned.onnx", ".before.onnx")),
    "optimize": (optimize, ("baseline.onnx", "optimized.onnx")),
}


@pytest.mark.parametrize(
    ("command", "name"), [(command, name) for command, (_, names) in COMMANDS.items() for name in names]
)
def test_it_is_removed(
    command: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compare = vitfx.deploy.export.compare_onnx

    def differs(path: Path, *arguments: Any) -> float:
        if path.name == name:
            assert path.exists()
            raise ExportMismatch(f"{path} differs from torch")
        return compare(path, *arguments)

    monkeypatch.setattr(vitfx.deploy.export, "compare_onnx", differs)
    monkeypatch.setattr(target_bench, "measure_table", lambda *_: LatencyTable(3.0, 2.5, times()))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert COMMANDS[command][0](tmp_path) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: the exported file failed its check and was removed: ") and error.count("\n") == 1
    assert not list(tmp_path.rglob(name))


def times() -> dict[str, tuple[tuple[int, float], ...]]:
    """Of the sublayers of the small model."""
    return {
        f"{kind}{layer}": tuple((count, 0.5 * count / units) for count in range(1, units + 1))
        for kind, units in (("a", 2), ("m", 16))
        for layer in range(2)
    }
