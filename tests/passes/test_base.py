import copy
import dataclasses
import operator

import pytest
import torch
from torch.fx import Graph, GraphModule

from passes.base import Pass, PassError, PassResult, PromiseError, RequirementError, RewriteError, run_passes
from passes.delete_heads import DeleteHeads
from passes.plan import DeletionPlan
from passes.stream import is_canonical, read_sites
from tests.support.checks import canonical, plan_of


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


class Crashes(Pass):
    def rewrite(self, graph_module):
        raise ZeroDivisionError("by zero")


class Refuses(Pass):
    def rewrite(self, graph_module):
        raise PassError("there is nothing to negate")


class ReturnsACopy(Pass):
    def rewrite(self, graph_module):
        return PassResult(copy.deepcopy(graph_module), True)


class ChangesItsInput(Negate):
    in_place = False


class HidesAChange(Negate):
    def rewrite(self, graph_module):
        return dataclasses.replace(super().rewrite(graph_module), changed=False)


class HidesAWrite(Pass):
    def rewrite(self, graph_module):
        with torch.no_grad():
            graph_module.a0.out.weight[0, 0] = 0
        return PassResult(graph_module, False)


class HidesASetting(Pass):
    def rewrite(self, graph_module):
        graph_module.a0.core.scale = 2.0
        return PassResult(graph_module, False)


class WorksOnACopy(Negate):
    in_place = False

    def rewrite(self, graph_module):
        return super().rewrite(copy.deepcopy(graph_module))


def test_passes_work_on_a_copy_recompiled_with_notes():
    source = _doubling()
    result = run_passes(source, [Negate(), Negate(), Negate()])
    assert (source(2), result.graph_module(2)) == (4, -4)
    assert result.changed
    assert result.notes == ("negate: negated",) * 3


def test_no_pass_changes_nothing():
    assert not run_passes(_doubling(), []).changed


def test_a_change_is_told_whatever_comes_behind_it():
    assert run_passes(
        canonical(), [DeleteHeads(plan_of(canonical(), {"a0": [1]})), DeleteHeads(DeletionPlan())]
    ).changed


def test_names_are_those_of_the_classes():
    assert (Negate.name, BreaksTheGraph().name, DeleteHeads.name) == ("negate", "breaks_the_graph", "delete_heads")


def test_a_callback_sees_every_result_in_order():
    seen = []
    run_passes(_doubling(), [Negate(), WorksOnACopy()], lambda each, result: seen.append((each.name, result)))
    assert [name for name, _ in seen] == ["negate", "works_on_a_copy"]
    assert [result.graph_module(2) for _, result in seen] == [-4, 4]


@pytest.mark.parametrize(
    ("failing", "sentence"),
    [
        (Crashes(), "crashes: the rewrite failed with ZeroDivisionError: by zero"),
        (Refuses(), "refuses: there is nothing to negate"),
    ],
)
def test_a_failed_rewrite(failing, sentence):
    with pytest.raises(RewriteError) as caught:
        run_passes(_doubling(), [Negate(), failing])
    assert str(caught.value) == sentence
    assert sentence.endswith(f": {caught.value.reason}")


def test_a_failed_requirement():
    with pytest.raises(RequirementError, match=r"^delete_heads: node add"):
        run_passes(_doubling(), [DeleteHeads(DeletionPlan())])


class ForgetsTheDialect(Negate):
    ensures = (is_canonical,)


@pytest.mark.parametrize(
    ("failing", "sentence"),
    [
        (ForgetsTheDialect(), "forgets_the_dialect: node neg"),
        (BreaksTheGraph(), "breaks_the_graph: its graph is malformed: "),
        (ReturnsACopy(), "returns_a_copy: it works in place and returned another graph module"),
        (ChangesItsInput(), "changes_its_input: it works on a copy and changed the graph module that it was given"),
        (HidesAChange(), "hides_a_change: it reported no change and changed the graph module that it was given"),
        (HidesAWrite(), "hides_a_write: it reported no change"),
        (HidesASetting(), "hides_a_setting: it reported no change"),
    ],
)
def test_a_failed_promise(failing, sentence):
    with pytest.raises(PromiseError, match=f"^{sentence}"):
        run_passes(canonical(), [failing])


def test_a_hidden_write_into_what_does_not_train():
    with pytest.raises(PromiseError, match=r"^hides_a_write: it reported no change"):
        run_passes(canonical().requires_grad_(False), [HidesAWrite()])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda site: site.add.replace_input_with(site.node, site.norm), "a0 is not read by a residual add alone"),
        (
            lambda site: site.node.replace_input_with(site.norm, site.stream),
            "reads positions, which is neither LayerNorm nor RMSNorm",
        ),
        (
            lambda site: site.add.replace_input_with(site.stream, site.norm),
            "its LayerNorm a0_norm alone",
        ),
        (
            lambda site: site.add.replace_input_with(site.stream, site.stream.args[0]),
            "a0 does not add to the stream that it reads",
        ),
    ],
)
def test_a_damaged_stream_is_not_canonical(damage, reason):
    graph_module = canonical()
    damage(read_sites(graph_module)[0])
    with pytest.raises(PassError, match=reason):
        is_canonical(graph_module)


def test_a_graph_that_is_used_up_is_not_copied() -> None:
    graph_module = canonical().float()
    assert run_passes(graph_module, [DeleteHeads(DeletionPlan())], consume=True).graph_module is graph_module
    assert run_passes(graph_module, [DeleteHeads(DeletionPlan())]).graph_module is not graph_module


def _second_input(graph):
    with graph.inserting_before(next(iter(graph.nodes))):
        graph.placeholder("more")


def _past_the_last_sublayer(graph):
    (norm,) = graph.find_nodes(op="call_module", target="norm")
    norm.replace_input_with(norm.args[0], norm.args[0].args[0])


def _two_read_a_norm(graph):
    (norm,) = graph.find_nodes(op="call_module", target="a0_norm")
    (output,) = graph.find_nodes(op="output")
    with graph.inserting_before(output):
        output.args = (graph.call_function(operator.add, (output.args[0], norm)),)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_second_input, "one input, this one has 2"),
        (_past_the_last_sublayer, "node norm reads .* where the stream is m2_add"),
        (_two_read_a_norm, "a0 does not read its LayerNorm a0_norm alone"),
    ],
)
def test_a_damaged_chain_is_not_canonical(damage, reason):
    graph_module = canonical()
    damage(graph_module.graph)
    with pytest.raises(PassError, match=reason):
        is_canonical(graph_module)
