from tests.support.gated import make_graph
from vitfx.discovery.methods.attribution import random_scores


def test_the_seed_alone_decides():
    graph = make_graph("qkv")
    scores = random_scores(graph, 3)
    assert scores == random_scores(graph, 3)
    assert list(scores) == [edge.name for edge in graph.edges()]
    assert scores != random_scores(graph, 4)
    assert 0 <= min(scores.values()) < 0.1 < 0.9 < max(scores.values()) < 1
