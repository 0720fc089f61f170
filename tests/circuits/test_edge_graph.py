import pytest
import torch
from torch.nn import functional as F

from passes.plan import DeletionPlan, SublayerDeletion
from passes.stream import read_sites
from tests.support.checks import assert_equal, canonical, traced
from tests.support.families import images
from vitfx.circuits.circuit import EMBED, PARTS, Edge, Reader, Writer
from vitfx.circuits.edge_graph import EdgeGraph
from vitfx.discovery.basis.ablation import make_reference
from vitfx.graph.divergence import kl_divergence
from vitfx.graph.stages import run_stages
from vitfx.graph.verify import rewrite, tokens_of
from vitfx.support.errors import UserError

PIXELS = images(4, torch.float64)
PATHS = {name: [range(0, 48, 2), range(1, 48, 2)] for name in ("m0", "m1", "m2")}


@pytest.fixture(scope="module")
def graph():
    return EdgeGraph(canonical(), PATHS)


def test_writers_are_counted_as_the_docstring_derives(graph):
    assert len(graph.writers) == 1 + 3 * 4 + 3 * 2
    assert [one.name for one in graph.writers][:8] == [
        "embed", "a0.h0", "a0.h1", "a0.h2", "a0.h3", "m0.p0", "m0.p1", "a1.h0",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["vitfx", "timm-layerscale-average-registers", "hf-dinov2"])
def test_the_full_circuit_is_the_model(name):
    graph_module = traced(name).graph_module
    hidden = {f"m{i}": [range(graph_module.get_submodule(f"m{i}").units)] for i in range(3)}
    with torch.no_grad():
        logits, whole = EdgeGraph(graph_module, hidden).run(images(8)), graph_module(images(8))
    assert_equal(logits, whole, 1e-6)
    assert float(kl_divergence(whole, logits).mean()) < 1e-6


def test_zero_ablation_of_a_head_is_its_part_of_the_sum(graph):
    """Against the formula of the docstring, worked out by hand: stream + Σ of the other heads + bias."""
    zero = make_reference(graph, PIXELS, "zero")
    writer = next(one for one in graph.writers if one.name == "a2.h1")
    stage = next(one for one in graph.stages if one.name == "a2")
    with torch.no_grad():
        stream = run_stages(graph.stages[: graph.stages.index(stage)], PIXELS)
        module = stage.sublayer
        inner = stage.inner(stream).unflatten(-1, (4, 8))
        weight = module.out.weight.unflatten(1, (4, 8))
        stream = stream + module.out.bias
        for head in (0, 2, 3):
            stream = stream + inner[:, :, head] @ weight[:, head].T
        for later in graph.stages[graph.stages.index(stage) + 1 :]:
            stream = later(stream)
        assert_equal(graph.run(PIXELS, [Edge(writer)], zero), stream, 1e-12)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", ["embed", "a0.h1"])
def test_a_reader_sees_the_reference_in_place_of_the_writer_and_no_other_reader_does(name, part):
    """By hand: of head 2 in a1 the queries, keys or values come from the stream with the writer's mean in it."""
    graph = EdgeGraph(canonical(), PATHS, "qkv")
    mean = make_reference(graph, images(8, torch.float64)[4:], "mean")
    writer = next(one for one in graph.writers if one.name == name)
    a0, m0, a1, *later = graph.stages[graph.first :]
    with torch.no_grad():
        embedding = graph.embedding(PIXELS)
        change = embedding - mean["embed"]
        if name == "a0.h1":
            change = (a0.inner(embedding) - mean["a0"])[..., 8:16] @ a0.sublayer.out.weight[:, 8:16].T
        stream = run_stages([a0, m0], embedding)
        own = {"q": a1.sublayer.q, "k": a1.sublayer.k, "v": a1.sublayer.v}
        read = {key: linear(a1.norm(stream)).unflatten(-1, (4, 8)).transpose(1, 2) for key, linear in own.items()}
        unseen = own[part](a1.norm(stream - change)).unflatten(-1, (4, 8)).transpose(1, 2)
        read[part] = torch.stack([read[part][:, 0], read[part][:, 1], unseen[:, 2], read[part][:, 3]], 1)
        expected = run_stages(later, a1.behind(stream, a1.sublayer.core(**read)))
        got = graph.run(PIXELS, [Edge(writer, Reader("a1", 2, part))], mean)
        assert_equal(got, expected, 1e-12)
        assert float((got - graph.run(PIXELS)).abs().max()) > 1e-4 * float(expected.abs().max())


@pytest.mark.parametrize("granularity", ["edge", "qkv"])
def test_an_mlp_beside_an_attention_reads_what_that_one_reads(granularity):
    """By hand: m1 sees the mean of a0's head 1, and neither a1 nor the sum does."""
    graph_module = canonical("timm-parallel")
    paths = {name: [range(graph_module.get_submodule(name).units)] for name in PATHS}
    graph = EdgeGraph(graph_module, paths, granularity)
    parents = [writer.sublayer for writer in graph.parents(Reader("m1"))]
    assert parents == [writer.sublayer for writer in graph.parents(graph.readers_of("a1")[0])]
    assert set(parents) == {EMBED, "a0", "m0"}
    mean = make_reference(graph, images(8, torch.float64)[4:], "mean")
    writer = next(one for one in graph.writers if one.name == "a0.h1")
    a0, m0, a1, m1, *later = graph.stages[graph.first :]
    with torch.no_grad():
        embedding = graph.embedding(PIXELS)
        change = (a0.inner(embedding) - mean["a0"])[..., 8:16] @ a0.sublayer.out.weight[:, 8:16].T
        read = run_stages([a0, m0], embedding)
        total = read + a1.module(a1.norm(read)) + m1.module(m1.norm(read - change))
        expected = run_stages(later, total)
        got = graph.run(PIXELS, [Edge(writer, Reader("m1"))], mean)
        assert_equal(got, expected, 1e-12)
        assert float((got - graph.run(PIXELS)).abs().max()) > 1e-4 * float(expected.abs().max())


def test_removing_everything_with_resampling_is_the_corrupted_run(graph):
    corrupted = images(8, torch.float64)[4:]
    reference = make_reference(graph, corrupted, "resample")
    with torch.no_grad():
        assert_equal(graph.run(PIXELS, graph.edges(), reference), graph.run(corrupted), 1e-12)


def test_removing_everything_with_a_mean_leaves_no_trace_of_the_image(graph):
    reference = make_reference(graph, images(8, torch.float64), "mean")
    with torch.no_grad():
        logits = graph.run(PIXELS, graph.edges(), reference)
    assert torch.equal(logits, logits[:1].expand_as(logits))


def test_a_removal_without_a_reference_is_an_error(graph):
    with pytest.raises(ValueError, match="no reference"):
        graph.run(PIXELS, [Edge(Writer(EMBED))])


def test_paths_must_hold_every_neuron_once():
    with pytest.raises(ValueError, match="each of its 48 neurons once"):
        EdgeGraph(canonical(), {**PATHS, "m1": [range(47)]})


def test_a_model_of_which_nothing_is_left_is_refused():
    graph_module = canonical()
    sites = read_sites(graph_module)
    everything = DeletionPlan(
        tuple(
            SublayerDeletion(one.name, one.module.kind, tuple(range(one.module.units)), one.module.units)
            for one in sites
        )
    )
    left = rewrite(graph_module, everything).graph_module
    for take in (lambda: EdgeGraph(left, {}), lambda: tokens_of(left, PIXELS)):
        with pytest.raises(UserError, match="the model has no attention and no MLP left"):
            take()


def test_kl_divergence_is_torchs():
    a, b = torch.randn(5, 7), torch.randn(5, 7)
    expected = F.kl_div(b.log_softmax(-1).double(), a.log_softmax(-1).double(), log_target=True, reduction="none").sum(
        -1
    )
    torch.testing.assert_close(kl_divergence(a, b), expected, rtol=1e-5, atol=1e-7)
    assert float(kl_divergence(a, a).abs().max()) < 1e-12
