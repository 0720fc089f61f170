"""What a discovery says that it keeps is what it keeps."""

from __future__ import annotations

import gc

import pytest
import torch
from torch.fx import GraphModule

from tests.prune_runs import GREY, model
from vitfx.data import open_data
from vitfx.discovery import prepare, whole_mlps
from vitfx.edge_graph import EdgeGraph
from vitfx.errors import UserError
from vitfx.head_engine import HeadEngine
from vitfx.memory import GIB, check_memory, memory_needed
from vitfx.reader_engine import ReaderEngine
from vitfx.search import Engine
from vitfx.settings import Settings
from vitfx.trace import to_canonical

IMAGES = 512
"""Enough for weights and batches, which count for nothing here, to be small beside them."""


@pytest.fixture(scope="module")
def graph_module() -> GraphModule:
    return to_canonical(model(), torch.zeros(2, 1, 8, 8)).graph_module


def held() -> int:
    """Bytes in all tensors that are alive, storages once."""
    found = [one for one in gc.get_objects() if type(one) is torch.Tensor]
    return sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in found}.values())


@pytest.mark.parametrize("method", ["acdc", "eap-acdc"])
@pytest.mark.parametrize(
    ("granularity", "ablation"), [("head", "mean"), ("head", "resample"), ("edge", "resample"), ("qkv", "mean")]
)
def test_what_is_needed_is_what_is_held(
    graph_module: GraphModule, granularity: str, ablation: str, method: str
) -> None:
    images = open_data("digits", GREY).calibration.sample(IMAGES, seed=0).load()
    settings = Settings(method=method, granularity=granularity, ablation=ablation, samples=IMAGES)
    needed = memory_needed(graph_module, images, settings, processes=1)
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
        return memory_needed(graph_module, images, Settings(**settings), processes)  # type: ignore[arg-type]

    assert needed(2) * 2 == needed()
    assert needed(method="eap", granularity="qkv") < needed() < needed(granularity="edge") < needed(granularity="qkv")


def test_the_limit() -> None:
    assert check_memory(3 * GIB, 3.0, 1) == "activations kept: 3.00 GiB, beside the weights and a batch at a time"
    assert "activations kept: 5.0 MiB in each of 2 processes" in check_memory(5 * 2**20, None, 2)
    with pytest.raises(UserError, match="--memory 2 GiB is too little for the 3"):
        check_memory(3 * GIB, 2.0, 1)
