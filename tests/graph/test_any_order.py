"""Any small ViT, any plan, any token schedule, all passes in any order that their requirements allow."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx import GraphModule

from passes.base import Pass, PassError, RequirementError, RewriteError, run_passes
from passes.delete_heads import DeleteHeads
from passes.delete_mlp_paths import DeleteMlpPaths
from passes.fold_constants import FoldConstants
from passes.merge_tokens import MergeBySchedule, UndoMerges
from passes.plan import DeletionPlan
from passes.stream import is_canonical
from tests.support.checks import assert_equal, assert_trainable
from tests.support.families import images
from tests.support.random_vits import drawn_plan, drawn_schedule, vits
from vitfx.deploy.export import compare_onnx, export_onnx
from vitfx.deploy.lowering import PASSES, REWRITES, PassOptions
from vitfx.graph.merge_oracle import Merges, clearly_merged
from vitfx.graph.trace import to_canonical
from vitfx.graph.verify import ablated_logits

PIXELS = images(4, torch.float64)
ORDERS = 4
"""Of each model, whose trace takes longer than all passes."""


def _after(each: Pass, graph_module: GraphModule, plan: DeletionPlan) -> GraphModule:
    """The graph behind a pass: its values are the oracle's, and the pass once more changes nothing."""
    try:
        result = run_passes(graph_module, [each]).graph_module
    except RequirementError:
        assert not _canonical(graph_module)
        return graph_module
    except RewriteError as error:
        # What can't merge, or go behind a merge, is told so; anything else that a pass refuses is a fault.
        assert isinstance(each, MergeBySchedule) or "undo the merges before" in error.reason, error
        return graph_module
    with torch.no_grad():
        assert_equal(result(PIXELS), _expected(each, graph_module, plan, result), 1e-9)
    again = run_passes(result, [each])
    assert not again.changed and again.graph_module.code == result.code, each.name
    return result


def _expected(each: Pass, before: GraphModule, plan: DeletionPlan, after: GraphModule) -> torch.Tensor:
    """Of a deletion and a merge what the ablated model with merged tokens computes, of all others what was before."""
    kind = {DeleteHeads: "head", DeleteMlpPaths: "neuron", MergeBySchedule: ""}.get(type(each))
    if kind is None:
        return before(PIXELS)
    deletions = DeletionPlan(tuple(deletion for deletion in plan.deletions if deletion.kind == kind))
    whole = run_passes(before, [UndoMerges()]).graph_module
    return ablated_logits(whole, deletions, PIXELS, Merges.of(after))


def _canonical(graph_module: GraphModule) -> bool:
    try:
        is_canonical(graph_module)
    except PassError:
        return False
    return True


@settings(max_examples=5, deadline=None, derandomize=True)
@given(data=st.data())
def test_deleted_is_ablated_twice_is_once_and_it_trains_and_exports(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    original = to_canonical(data.draw(vits()).double(), PIXELS[:2]).graph_module
    for _ in range(ORDERS):
        plan = drawn_plan(data.draw, original)
        schedule = drawn_schedule(data.draw, 3)
        options = PassOptions(PIXELS[:2])
        steps = [DeleteHeads(plan), DeleteMlpPaths(plan), FoldConstants(), MergeBySchedule(schedule, PIXELS)]
        steps += [PASSES[name](options) for name in REWRITES]
        current = original
        for each in data.draw(st.permutations(steps)):
            current = _after(each, current, plan)
        assert_trainable(current, PIXELS[:2])
    artifact, path = current.float().eval(), tmp_path_factory.mktemp("any") / "model.onnx"
    pixels = clearly_merged(artifact, PIXELS.float())
    export_onnx(artifact, path, PIXELS[:2].float(), {})
    assert compare_onnx(path, artifact, pixels) < 1e-4
