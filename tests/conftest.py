"""What the tests share: where the real models and images are, and quiet, repeatable torch."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.support.exports import EXPORTERS, export_once, program_once
from tests.support.traces import aten_graph_once


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
        yield
