"""Every pass on a tiny model: the graph before and after, as text."""

import importlib
import inspect
import pkgutil

import pytest
import torch
from torch import nn
from torch.fx import Graph, GraphModule

import passes
from passes.absorb_keys import AbsorbKeys
from passes.base import Pass, run_passes
from passes.canonicalize import Canonicalize
from passes.compensate import Compensate
from passes.delete_heads import DeleteHeads
from passes.delete_mlp_paths import DeleteMlpPaths
from passes.fold_biases import FoldBiases
from passes.fold_constants import FoldConstants
from passes.fold_norms import FoldNorms
from passes.fold_patches import FoldPatches
from passes.fold_scales import FoldScales
from passes.keep_answers import KeepAnswers
from passes.merge_tokens import MergeBySchedule, UndoMerges
from passes.narrow_to_cls import NarrowToCls
from passes.pack_qkv import PackQkv
from passes.plain_pixels import PlainPixels
from passes.plan import DeletionPlan, Refit, SublayerDeletion
from passes.printer import format_graph, node_count
from passes.remove_no_ops import RemoveNoOps
from passes.token_schedule import TokenSchedule
from tests.support.families import randomised
from tests.support.golden import CANONICAL, CASES, PATCHES_FOLDED, TRACED
from vitfx.graph.trace import trace

PIXELS = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


PLAN = DeletionPlan(
    (
        SublayerDeletion("a0", "head", (1,), 2, torch.ones(4, 8, dtype=torch.float64)),
        SublayerDeletion("m0", "neuron", tuple(range(6)), 6, torch.ones(8, dtype=torch.float64)),
    ),
    (Refit("a0", torch.ones(8, 4), torch.ones(8)),),
)


class Tiny(nn.Module):
    """One layer, written out, with a cast that does nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 4, 4)
        self.table = nn.Parameter(torch.zeros(4, 8))
        self.n1, self.n2, self.n3 = nn.LayerNorm(8), nn.LayerNorm(8), nn.LayerNorm(8)
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8, bias=False)
        self.up, self.down = nn.Linear(8, 6), nn.Linear(6, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.conv(x).flatten(2).mT + self.table
        q, k, v = self.qkv(self.n1(x)).reshape(-1, 4, 3, 2, 4).permute(2, 0, 3, 1, 4)
        pattern = (q @ k.mT / 2).softmax(-1, dtype=torch.float32).to(x.dtype)
        x = x + self.proj((pattern @ v).transpose(1, 2).flatten(2))
        x = x + self.down(self.up(self.n2(x)).relu())
        return self.head(self.n3(x)[:, 0])


PASSES = {
    each.name: each
    for each in (
        RemoveNoOps(),
        Canonicalize(PIXELS),
        DeleteHeads(PLAN),
        DeleteMlpPaths(PLAN),
        Compensate(PLAN),
        FoldConstants(),
        FoldPatches(PIXELS),
        PlainPixels((0.5,), (0.25,)),
        FoldNorms(),
        FoldScales(),
        FoldBiases(),
        NarrowToCls(PIXELS),
        AbsorbKeys(),
        PackQkv(),
        MergeBySchedule(TokenSchedule(((0, 1),)), PIXELS),
        UndoMerges(),
        KeepAnswers((2, 0), PIXELS),
    )
}


def traced() -> GraphModule:
    """The model's ATen graph, its nodes numbered anew: torch's own numbers depend on its version."""
    graph_module = trace(randomised(Tiny()), PIXELS)
    for node in graph_module.graph.nodes:
        if node.op == "call_function":
            node.name = getattr(node.target, "__name__", "").partition(".")[0]
    graph = Graph()
    graph.output(graph.graph_copy(graph_module.graph, {}))
    return GraphModule(graph_module, graph)


def graph_of(text: str) -> GraphModule:
    """The traced model, rewritten until it reads so."""
    if text == TRACED:
        return traced()
    name, (before, _) = next((name, texts) for name, texts in CASES.items() if texts[1] == text)
    return run_passes(graph_of(before), [PASSES[name]]).graph_module


@pytest.mark.parametrize("name", CASES)
def test_before_and_after(name):
    before, after = CASES[name]
    graph_module = graph_of(before)
    assert f"{format_graph(graph_module, PIXELS)}\n" == before
    result = run_passes(graph_module, [PASSES[name]])
    assert result.changed
    assert f"{format_graph(result.graph_module, PIXELS)}\n" == after


def test_every_pass_has_a_golden_text():
    modules = [importlib.import_module(f"passes.{found.name}") for found in pkgutil.iter_modules(passes.__path__)]
    classes = {value for module in modules for value in vars(module).values() if inspect.isclass(value)}
    names = {each.name for each in classes if issubclass(each, Pass) and not inspect.isabstract(each)}
    assert names == set(CASES) == set(PASSES)


def test_nodes_of_called_graphs_are_counted():
    graph_module = graph_of(CANONICAL)
    inside = sum(len(graph_module.get_submodule(name).graph.nodes) for name in ("embed", "head"))
    assert node_count(graph_module) == len(graph_module.graph.nodes) + inside
    assert node_count(graph_of(PATCHES_FOLDED)) < node_count(graph_module)
