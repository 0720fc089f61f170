"""What the tests share: where the real models and images are, and quiet, repeatable torch."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.onnx._internal.exporter._registration import ONNXRegistry

from tests.support.exports import EXPORTERS, export_once, operators_once, program_once
from tests.support.traces import aten_graph_once

if TYPE_CHECKING:
    from xdist.scheduler.loadfile import LoadFileScheduling

TIMED = (
    "pruning.latency_table",
    "pruning.target_bench",
    "runs.optimize_bench",
    "runs.prune_files",
    "runs.recover_measure",
)
"""The modules of vitfx that time what they made, for seconds each."""
TOGETHER = (
    (
        "tests/deploy/test_lowering.py",
        "tests/discovery/engines/test_reader_engine.py",
        "tests/graph/test_families.py",
        "tests/models/test_graph_json.py",
        "tests/passes/test_canonicalize.py",
        "tests/passes/test_compensate.py",
        "tests/passes/test_fold_norms.py",
        "tests/passes/test_fold_patches.py",
        "tests/passes/test_merge_tokens.py",
        "tests/passes/test_narrow_to_cls.py",
        "tests/passes/test_pooling.py",
        "tests/pruning/test_deletion.py",
    ),
    (
        "tests/discovery/methods/test_kinds.py",
        "tests/graph/test_answers.py",
        "tests/pruning/test_kinds.py",
        "tests/recovery/test_answers.py",
    ),
)
"""Files whose tests are of the same models, every family or every kind of answers: one worker traces each once."""


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real models and images beside the project; tests that need it are skipped without it."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"real models and images are not at {folder}")
    return folder


def pytest_configure() -> None:
    # The models are small: more threads only wait for each other, above all beside other workers.
    torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    # The half million objects of torch and its like stay to the end: no garbage is among them.
    gc.collect()
    gc.freeze()
    gc.set_threshold(5000, 20, 20)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    """As `--dist loadfile`, but for the files in `TOGETHER`."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler.loadfile import LoadFileScheduling

    first = {path: paths[0] for paths in TOGETHER for path in paths}

    class ByModels(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path: str = super()._split_scope(nodeid)
            return first.get(path, path)

    return ByModels(config, log)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _each_trace_and_export_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitfx.graph.trace.aten_graph", aten_graph_once)
        for name in EXPORTERS:
            patch.setattr(importlib.import_module(f"vitfx.{name}"), "to_onnx", export_once)
        patch.setattr("vitfx.deploy.program_file.to_program", program_once)
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(operators_once))
        yield


@pytest.fixture(scope="session", autouse=True)
def _short_timings() -> Iterator[None]:
    """Two rounds: no test believes what was measured."""
    with pytest.MonkeyPatch.context() as patch:
        for name in TIMED:
            patch.setattr(f"vitfx.{name}._ROUNDS", 2)
            patch.setattr(f"vitfx.{name}._SECONDS", 0.0)
        patch.setattr("vitfx.runs.optimize_bench._CHOOSING_ROUNDS", 2)
        yield
