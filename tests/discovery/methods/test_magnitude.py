import pytest
import torch

from tests.support.gated import make_graph
from vitfx.discovery.methods.magnitude import magnitude


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def modules(graph):
    return {stage.name: stage for stage in graph.stages}


@pytest.mark.parametrize("family", ["vitfx", "hand-written"])
def test_a_head_has_its_rows_and_columns(family):
    graph = make_graph("head", family)
    scores, a1, m1 = magnitude(graph), modules(graph)["a1"].module, modules(graph)["m1"].module
    size = 32 // a1.units
    rows = slice(size, 2 * size)
    parts = [a1.q.weight[rows], a1.k.weight[rows], a1.v.weight[rows], a1.out.weight[:, rows]]
    assert scores["a1.h1→stream"] == pytest.approx(float(torch.cat([part.flatten() for part in parts]).norm()))
    path = torch.cat([m1.fc1.weight[1::2].flatten(), m1.out.weight[:, 1::2].flatten()])
    assert scores["m1.p1→stream"] == pytest.approx(float(path.norm()))


def test_a_block_has_all_of_its_matrices_and_the_embedding_its_parameters():
    graph = make_graph("block")
    scores, stages = magnitude(graph), modules(graph)
    m2 = stages["m2"].module
    assert scores["m2→stream"] == pytest.approx(float((m2.fc1.weight.norm() ** 2 + m2.out.weight.norm() ** 2).sqrt()))
    before = [value for name in ("embed", "positions") for value in stages[name].module.parameters()]
    expected = torch.cat([value.flatten() for value in before]).norm()
    assert scores["embed→stream"] == pytest.approx(float(expected))
    assert list(scores) == [edge.name for edge in graph.edges()]


def test_a_pair_is_the_norm_of_the_product():
    """‖W_r diag(γ) W_w‖_F by the product itself, for readers and writers of all kinds."""
    qkv, edge = make_graph("qkv"), make_graph("edge")
    fine, coarse, stages = magnitude(qkv), magnitude(edge), modules(qkv)
    a2, m2, norm = stages["a2"].module, stages["m2"].module, stages["a2"].norm
    head, columns = slice(8, 16), stages["m1"].module.out.weight[:, 0::2]
    rows = {part: linear.weight[head] * norm.weight for part, linear in (("q", a2.q), ("k", a2.k), ("v", a2.v))}
    for part, value in rows.items():
        assert fine[f"m1.p0→a2.h1.{part}"] == pytest.approx(float((value @ columns).norm()))
    together = torch.cat(list(rows.values()))
    assert coarse["m1.p0→a2.h1"] == pytest.approx(float((together @ columns).norm()))
    assert coarse["embed→a2.h1"] == pytest.approx(float(together.norm()))
    of_head = stages["a0"].module.out.weight[:, 24:32]
    expected = (m2.fc1.weight * stages["m2"].norm.weight @ of_head).norm()
    assert coarse["a0.h3→m2"] == fine["a0.h3→m2"] == pytest.approx(float(expected))
    assert fine["a0.h3→logits"] == pytest.approx(float((stages["norm"].module.weight[:, None] * of_head).norm()))


def test_without_a_last_layernorm_the_logits_read_the_columns_themselves():
    graph = make_graph("edge", "hand-written")
    columns = modules(graph)["m2"].module.out.weight[:, 1::2]
    assert magnitude(graph)["m2.p1→logits"] == pytest.approx(float(columns.norm()))


@pytest.mark.parametrize("granularity", ["edge", "qkv"])
def test_every_edge_has_a_score(granularity):
    graph = make_graph(granularity)
    scores = magnitude(graph)
    assert list(scores) == [edge.name for edge in graph.edges()]
    assert min(scores.values()) > 0
