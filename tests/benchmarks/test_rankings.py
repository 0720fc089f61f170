"""Ranks of edges: from runs at several thresholds, and by names of methods."""

import pytest

from benchmarks.rankings import RANKED, by_thresholds, read_method
from vitfx.discovery.basis.settings import Settings
from vitfx.support.errors import UserError

RUNS = {
    0.1: {"a": (True, 0.5), "b": (False, 0.03), "c": (False, 0.02), "d": (False, -0.01), "e": (True, 0.2)},
    0.01: {"a": (True, 0.1), "b": (True, 0.01), "c": (True, 0.02), "d": (False, 0.001), "e": (False, 0.0)},
    0.001: {"a": (True, 0.1), "b": (True, 0.01), "c": (True, 0.02), "d": (False, 0.0005), "e": (False, 0.0)},
}


def test_the_greatest_threshold_that_keeps_an_edge_comes_first_and_then_its_cost():
    assert by_thresholds(RUNS.__getitem__, [0.01, 0.1, 0.001]) == {
        "d": 0,  # removed everywhere, at 0.0005 where the least is allowed
        "c": 1,  # 0.02 at the first threshold that removed it
        "b": 2,  # 0.03 there
        "e": 3,  # kept by the greatest
        "a": 4,
    }


def test_equal_edges_have_equal_places():
    places = by_thresholds(lambda tau: RUNS[tau] | {"f": (False, 0.03)}, [0.1])
    assert places["f"] == places["b"] == 2


@pytest.mark.parametrize("method", RANKED)
def test_a_method_is_read_by_its_name(method):
    share = 0.9 if method == "edge-pruning" else None
    assert read_method(method, Settings(seed=3)) == Settings(method=method, seed=3, remove=share)


def test_a_metric_may_follow():
    assert read_method("eap:loss", Settings()) == Settings(method="eap", metric="loss")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("goal", "method goal can't be ranked: choose from eap, "),
        ("acdc:loss", "method acdc:loss names a metric, which acdc does not take: leave it out"),
        ("eap:accuracy", "metric accuracy of eap:accuracy is not known: choose one of kl, loss, logit-difference"),
    ],
)
def test_other_names_are_told(text, message):
    with pytest.raises(UserError, match=message):
        read_method(text, Settings())
