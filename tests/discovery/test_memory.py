"""What a discovery says that it keeps is what it keeps."""

from __future__ import annotations

import errno
import gc
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch.fx import GraphModule

from tests.support.discover_runs import run
from tests.support.prune_runs import GREY, artifact, model
from vitfx.circuits.circuit import Decision
from vitfx.circuits.edge_graph import EdgeGraph
from vitfx.discovery.basis.journal import NoJournal
from vitfx.discovery.basis.protocol import Engine, Limits
from vitfx.discovery.basis.settings import Settings
from vitfx.discovery.engines import clean_run as streams
from vitfx.discovery.engines.clean_run import mapped
from vitfx.discovery.engines.head_engine import HeadEngine
from vitfx.discovery.engines.reader_engine import ReaderEngine
from vitfx.discovery.memory import Needed, fit, memory_needed
from vitfx.discovery.methods.acdc import acdc, reverse
from vitfx.discovery.methods.eap_acdc import eap_acdc
from vitfx.discovery.run import prepare, whole_mlps
from vitfx.graph.trace import to_canonical
from vitfx.images.splits import open_data
from vitfx.support.errors import UserError
from vitfx.support.files import WriteError
from vitfx.support.text import GIB

Captured = pytest.CaptureFixture[str]
IMAGES = 512
"""Enough for weights and batches, which count for nothing here, to be small beside them."""


@pytest.fixture(scope="module")
def graph_module() -> GraphModule:
    return to_canonical(model(), torch.zeros(2, 1, 8, 8)).graph_module


def held() -> int:
    """Bytes in all dense tensors that are alive, storages once. Sparse ones, which have none, are other tests'."""
    tensors = [entry for entry in gc.get_objects() if type(entry) is torch.Tensor and entry.layout is torch.strided]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


PAIRS = {
    ("head", "mean", "acdc"),
    ("head", "resample", "eap-acdc"),
    ("edge", "resample", "acdc"),
    ("qkv", "mean", "eap-acdc"),
}
"""Each graph, ablation and method: their shares only add up, so that the other combinations are `slow`."""
COMBINATIONS = [
    pytest.param(*graph, method, marks=() if (*graph, method) in PAIRS else pytest.mark.slow)
    for graph in (("head", "mean"), ("head", "resample"), ("edge", "resample"), ("qkv", "mean"))
    for method in ("acdc", "eap-acdc")
]


@pytest.mark.parametrize(("granularity", "ablation", "method"), COMBINATIONS)
def test_what_is_needed_is_what_is_held(
    graph_module: GraphModule, granularity: str, ablation: str, method: str
) -> None:
    images = open_data("digits", GREY).calibration.sample(IMAGES, seed=0).load()
    settings = Settings(method=method, granularity=granularity, ablation=ablation, samples=IMAGES)
    needed = memory_needed(graph_module, images, settings, processes=1).total
    gc.collect()
    before = held()
    setup = prepare(graph_module, images, settings)
    graph = EdgeGraph(graph_module, whole_mlps(graph_module), granularity)
    kind = HeadEngine if graph.reads_stream else ReaderEngine
    engine = kind(graph, setup.calibration, setup.reference)
    most = (_most if method == "acdc" else _most_wide)(engine) - before
    assert 0.9 * needed < most < 1.1 * needed


def _most(engine: Engine) -> int:
    """The most that is held while nothing is removed and every reader is asked about once."""
    most = 0
    for visit in engine.visits():
        visit.kl_without(visit.writers[:1], lambda kl: True)
        if visit.reader.sublayer in ("stream", "a0"):
            most = max(most, held())
        visit.remove([])
    return most


def _most_wide(engine: Engine) -> int:
    """The same, sublayer by sublayer."""
    most = 0
    for visit in engine.wide_visits():
        visit.kl_without(visit.edges[:1], lambda kl: True)
        if visit.edges[0].reader.sublayer in ("stream", "a0"):
            most = max(most, held())
    return most


def test_processes_share_it_and_a_ranking_needs_less(graph_module: GraphModule) -> None:
    images = open_data("digits", GREY).calibration.sample(IMAGES, seed=0).load()

    def needed(processes: int = 1, **settings: str) -> int:
        return memory_needed(graph_module, images, Settings(**settings), processes).total  # type: ignore[arg-type]

    assert needed(2) * 2 == needed()
    assert needed(method="eap", granularity="qkv") < needed() < needed(granularity="edge") < needed(granularity="qkv")


def test_the_limit() -> None:
    needed = Needed(3 * GIB, 2 * GIB)
    said = "activations kept: 3.00 GiB, besides the weights and a batch at a time"
    assert fit(needed, 3.0, 1) == fit(needed, None, 1) == (said, False)
    assert fit(needed, 2.0, 1) == (f"{said}; 2.00 GiB of it in a file beside --out, which takes longer", True)
    assert "activations kept: 5.0 MiB in each of 2 processes" in fit(Needed(5 * 2**20, 0), None, 2)[0]
    with pytest.raises(UserError, match=r"`memory` 0\.5 GiB is too little for the 1\.00 GiB"):
        fit(needed, 0.5, 1)


@pytest.mark.parametrize("method", ["acdc", "eap-acdc"])
def test_in_a_file_the_decisions_are_the_same(
    graph_module: GraphModule, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = open_data("digits", GREY).calibration.sample(16, seed=0).load()
    settings = Settings(method=method, granularity="qkv", samples=16)
    setup = prepare(graph_module, images, settings)
    graph = EdgeGraph(graph_module, whole_mlps(graph_module), "qkv")

    def decide(folder: Path | None) -> list[Decision]:
        engine = ReaderEngine(graph, setup.calibration, setup.reference, folder)
        if method == "acdc":
            return acdc(engine, reverse, Limits(1e-3), NoJournal())
        return eap_acdc(engine, Limits(1e-3), NoJournal(), seed=0)

    needed = memory_needed(graph_module, images, settings, processes=1)
    given: list[int] = []

    def spied(folder: Path, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        given.append(math.prod(shape) * dtype.itemsize)
        return mapped(folder, shape, dtype)

    monkeypatch.setattr(streams, "mapped", spied)
    in_memory = decide(None)
    assert given == []
    assert decide(tmp_path) == in_memory
    assert 0 < sum(given) == needed.in_file < needed.total


def test_the_command_finds_the_same_circuit(tmp_path: Path, capsys: Captured) -> None:
    path = artifact(tmp_path / "model.pt")
    qkv = ("--granularity", "qkv", "--tau", "0.003")
    assert run(path, tmp_path / "in-memory.json", *qkv) == 0
    said = " ".join(capsys.readouterr().out.split())
    (amount,) = re.findall(r"activations kept: (\S+) MiB", said)
    assert "in a file" not in said
    assert run(path, tmp_path / "out.json", *qkv, "--memory", f"{0.9 * float(amount) / 1024:.9f}") == 0
    assert "of it in a file beside --out" in " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "out.json").read_bytes() == (tmp_path / "in-memory.json").read_bytes()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["in-memory.json", "model.pt", "out.json"]


def test_a_folder_without_room_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = mapped(tmp_path, (2, 3), torch.float64)
    assert tensor.shape == (2, 3) and tensor.dtype == torch.float64
    assert not tensor.any() and list(tmp_path.iterdir()) == []

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(WriteError, match=r"No space left on device.*name another place with `out`"):
        mapped(tmp_path, (2, 3), torch.float32)
    assert list(tmp_path.iterdir()) == []
