import operator

import pytest
import torch
from torch.fx import Graph, GraphModule

from passes.base import Pass, PassError, PassResult, run_passes
from passes.delete_heads import DeleteHeads
from passes.plan import DeletionPlan
from passes.stream import is_canonical, read_sites
from tests.support.checks import canonical


def _doubling() -> GraphModule:
    graph = Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(operator.add, (x, x)))
    return GraphModule(torch.nn.Module(), graph)


class Negate(Pass):
    def rewrite(self, graph_module):
        output = next(node for node in graph_module.graph.nodes if node.op == "output")
        with graph_module.graph.inserting_before(output):
            node = graph_module.graph.call_function(operator.neg, (output.args[0],))
        output.args = (node,)
        return PassResult(graph_module, True, ("negated",))


class BreaksTheGraph(Pass):
    def rewrite(self, graph_module):
        first, second = list(graph_module.graph.nodes)[:2]
        first.prepend(second)
        return PassResult(graph_module, True)


class Fails(Pass):
    def rewrite(self, graph_module):
        raise ZeroDivisionError("by zero")


def test_passes_work_on_a_copy_recompiled_with_notes():
    source = _doubling()
    result = run_passes(source, [Negate(), Negate(), Negate()])
    assert (source(2), result.graph_module(2)) == (4, -4)
    assert result.changed
    assert result.notes == ("Negate: negated",) * 3


def test_no_pass_changes_nothing():
    assert not run_passes(_doubling(), []).changed


@pytest.mark.parametrize("one", [BreaksTheGraph(), Fails()])
def test_a_failure_names_the_pass(one):
    with pytest.raises(PassError, match=f"^{one.name} failed: "):
        run_passes(_doubling(), [Negate(), one])


def test_what_a_pass_requires_is_checked_first():
    with pytest.raises(PassError, match=r"^DeleteHeads: node add"):
        run_passes(_doubling(), [DeleteHeads(DeletionPlan())])


def test_what_a_pass_ensures_is_checked_last():
    class Forgets(Negate):
        ensures = (is_canonical,)

    with pytest.raises(PassError, match=r"^Forgets: node neg"):
        run_passes(canonical(), [Forgets()])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda site: site.add.replace_input_with(site.node, site.norm), "a0 is not read by one add alone"),
        (
            lambda site: site.node.replace_input_with(site.norm, site.stream),
            "reads positions, which is neither LayerNorm nor RMSNorm",
        ),
    ],
)
def test_a_damaged_stream_is_not_canonical(damage, reason):
    graph_module = canonical()
    damage(read_sites(graph_module)[0])
    with pytest.raises(PassError, match=reason):
        is_canonical(graph_module)
