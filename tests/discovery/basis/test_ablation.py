import pytest
import torch

from tests.support.checks import assert_equal, canonical
from tests.support.families import images
from vitfx.circuits.circuit import EMBED, Edge
from vitfx.circuits.edge_graph import EdgeGraph
from vitfx.discovery.basis.ablation import make_reference
from vitfx.discovery.basis.settings import ABLATIONS
from vitfx.discovery.engines.decided_stages import decide, run_decided
from vitfx.graph.stages import contribution, run_stages

WHOLE = {f"m{i}": [range(48)] for i in range(3)}
# More images than make_reference runs at a time.
CORRUPTED = images(37, torch.float64)


@pytest.fixture(scope="module")
def graph():
    return EdgeGraph(canonical(), WHOLE)


@pytest.fixture(scope="module")
def inner(graph):
    """a1's inner channels on the corrupted images, computed on their own."""
    with torch.no_grad():
        index = next(i for i, stage in enumerate(graph.stages) if stage.name == "a1")
        return graph.stages[index].inner(run_stages(graph.stages[:index], CORRUPTED))


@pytest.mark.parametrize(
    ("ablation", "expected"),
    [
        ("zero", lambda inner: torch.zeros(32, dtype=torch.float64)),
        ("mean", lambda inner: inner.mean(dim=(0, 1))),
        ("position-mean", lambda inner: inner.mean(dim=0)),
        ("resample", lambda inner: inner),
    ],
)
def test_references(graph, inner, ablation, expected):
    found = make_reference(graph, CORRUPTED, ablation)
    assert set(found) == {EMBED, "a0", "m0", "a1", "m1", "a2", "m2"}
    torch.testing.assert_close(found["a1"], expected(inner), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("ablation", "expected"),
    [
        ("zero", lambda stream: torch.zeros(32, dtype=torch.float64)),
        ("mean", lambda stream: stream.mean(dim=0)),
        ("position-mean", lambda stream: stream.mean(dim=0)),
        ("resample", lambda stream: stream),
    ],
)
def test_the_embeddings_reference_keeps_its_positions_apart(graph, ablation, expected):
    stream = run_stages(graph.stages[: graph.first], CORRUPTED)
    torch.testing.assert_close(make_reference(graph, CORRUPTED, ablation)[EMBED], expected(stream).detach())


def test_an_unknown_ablation_is_an_error(graph):
    with pytest.raises(ValueError, match="zero, mean, position-mean, resample"):
        make_reference(graph, CORRUPTED, "median")


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_the_suffix_with_less_in_it_is_the_edge_graph_with_more_removed(graph, ablation):
    """A stage whole, one in part, one gone altogether; several images at once and some of them."""
    reference = make_reference(graph, CORRUPTED, ablation)
    removed = {"m1": range(5, 48), "a2": range(4), "m2": range(3)}
    start = next(i for i, stage in enumerate(graph.stages) if stage.name == "a1")
    with torch.no_grad():
        decided = [
            decide(stage, removed.get(stage.name, ()), reference.get(stage.name)) for stage in graph.stages[start:]
        ]
        images_of = slice(3, 20)
        stream = run_stages(graph.stages[:start], CORRUPTED)[images_of]
        gone = [one for one in EdgeGraph(canonical(), _groups(removed)).writers if _removed(one, removed)]
        sliced = {name: value[images_of] if value.dim() == 3 else value for name, value in reference.items()}
        expected = graph.run(CORRUPTED[images_of], [Edge(one) for one in gone], sliced)
        assert_equal(run_decided(decided, stream, images_of), expected, 1e-10)


def _groups(removed):
    return {
        name: [removed.get(name, range(1)), sorted(set(range(48)) - set(removed.get(name, range(1))))] for name in WHOLE
    }


def _removed(writer, removed):
    units = set(removed.get(writer.sublayer, ()))
    return bool(writer.units) and set(writer.units) <= units


def test_contributions_add_up_to_the_sublayer(graph, inner):
    module = next(stage for stage in graph.stages if stage.name == "a1").sublayer
    with torch.no_grad():
        parts = sum(contribution(module, [head], inner) for head in range(4))
        assert_equal(parts + module.out.bias, module.out(inner), 1e-12)
