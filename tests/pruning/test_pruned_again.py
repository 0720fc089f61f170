"""A pruned model is pruned again, by any plan of its own: each time it is the ablated model."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.stream import read_sites
from tests.support.checks import assert_equal, canonical, plan_of
from tests.support.families import images
from vitfx.graph.verify import ablated_logits, rewrite

PIXELS = images(3, torch.float64)
NAMES = (
    "vitfx",
    "timm-distilled",
    "timm-eva02",
    "timm-norms-inside",
    "timm-rms-swiglu-qk-norm",
    "timm-grouped-queries",
    "timm-side-by-side",
    "hand-written",
)


def drawn_plan(draw, graph_module):
    """Any units of any sublayers, but not all of one attention."""
    units = {}
    for site in read_sites(graph_module):
        every = range(site.module.units)
        if draw(st.booleans()):
            whole = site.name != "a1" and draw(st.booleans())
            units[site.name] = list(every) if whole else [draw(st.sampled_from(every))]
    return plan_of(graph_module, units, draw(st.sampled_from(["none", "mean"])))


@settings(max_examples=12, deadline=None, derandomize=True)
@given(data=st.data())
def test_deletions_one_after_the_other_are_those_of_their_oracles(data):
    graph_module = canonical(data.draw(st.sampled_from(NAMES)))
    for _ in range(2):
        plan = drawn_plan(data.draw, graph_module)
        expected = ablated_logits(graph_module, plan, PIXELS)
        graph_module = rewrite(graph_module, plan).graph_module
        assert_equal(graph_module(PIXELS), expected, 1e-9)
