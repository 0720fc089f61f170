"""Tokens merge as ToMe merges them, and all that a canonical graph can do it can do then."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.base import PassError, run_passes
from passes.cost import measure_cost
from passes.delete_heads import DeleteHeads
from passes.delete_mlp_paths import DeleteMlpPaths
from passes.merge_tokens import MergeBySchedule, UndoMerges, schedule_of, token_counts
from passes.merging import MergeTokens
from passes.stream import read_sites
from passes.token_schedule import TokenSchedule
from tests.support.checks import assert_equal, canonical, check, plan_of, traced
from tests.support.families import FAMILIES, HandWritten, images, randomised
from tests.support.tome import tome_logits
from vitfx.deploy.lowering import REWRITES, lower
from vitfx.graph.merge_oracle import Merges
from vitfx.graph.trace import to_canonical
from vitfx.graph.verify import ablated_logits, rewrite, verify

PIXELS = images(3, torch.float64)
PROTECTED = {
    **dict.fromkeys(("hand-written", "careless", "torch-encoder", "timm-parallel-fused"), 0),
    **dict.fromkeys(("timm-layerscale-average-registers", "hf-dinov3"), 3),
    **dict.fromkeys(("timm-registers-after-positions", "timm-distilled", "hf-deit"), 2),
    "hf-dinov2-registers": 5,
}


def merged(graph_module, merges):
    return run_passes(graph_module, [MergeBySchedule(TokenSchedule(tuple(merges)), PIXELS)]).graph_module


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "timm-beit"])
def test_every_family_merges_as_tome_does(name):
    graph_module = canonical(name)
    counts = token_counts(graph_module, PIXELS)
    assert counts.protected == PROTECTED.get(name, 1)
    schedule = TokenSchedule(((0, 3), (1, 1), (2, 2)))
    expected = tome_logits(graph_module, schedule, counts.protected, PIXELS).detach()
    assert not torch.allclose(expected, graph_module(PIXELS))
    made = check(MergeBySchedule(schedule, PIXELS), graph_module, PIXELS, expected, changes=True)
    assert schedule_of(made) == schedule
    assert token_counts(made, PIXELS) == counts
    back = run_passes(made, [UndoMerges()])
    assert back.changed
    assert back.graph_module.code == graph_module.code
    assert not run_passes(graph_module, [UndoMerges()]).changed


@settings(max_examples=8, deadline=None, derandomize=True)
@given(data=st.data())
def test_plans_and_schedules_are_proved_together(data):
    """The oracle merges the ablated model's tokens by loops, by the keys of the heads that survive."""
    name = data.draw(st.sampled_from(["vitfx", "timm-distilled", "timm-eva02", "timm-norms-inside", "timm-parallel"]))
    graph_module = traced(name).graph_module
    units = {}
    for site in read_sites(graph_module):
        if data.draw(st.booleans()):
            every = range(site.module.units)
            units[site.name] = list(every) if data.draw(st.booleans()) else [data.draw(st.sampled_from(every))]
    if not any(site.module.kind == "head" and len(units.get(site.name, ())) < 4 for site in read_sites(graph_module)):
        del units["a1"]
    blocks = sorted(data.draw(st.sets(st.integers(0, 2), min_size=1)))
    schedule = TokenSchedule(tuple((block, data.draw(st.integers(1, 2))) for block in blocks))
    plan = plan_of(graph_module, units)
    artifact = rewrite(graph_module, plan, MergeBySchedule(schedule, PIXELS)).graph_module.eval()
    proof = verify(graph_module, artifact, plan, images(5))
    assert proof.passed
    assert proof.float64 < 1e-12
    assert lower(artifact, REWRITES, images(3)).error < 1e-12


def test_alike_tokens_merge_by_the_lower_index_and_weigh_what_they_stand_for():
    merge = MergeTokens(1, 2, tracks=True)
    x = torch.arange(8.0).view(1, 8, 1)
    alike = torch.ones(1, 8, 3)
    # A is 1, 3, 5, 7 and B is 2, 4, 6: all alike, so that 1 and 3 merge into 2.
    stream, sizes, groups = merge(x, alike)
    assert stream.flatten().tolist() == [0, 5, 7, 2, 4, 6]
    assert sizes.tolist() == [[1, 1, 1, 3, 1, 1]]
    assert groups.tolist() == [[0, 3, 3, 3, 4, 1, 5, 2]]
    # A is 5, 2 and 6, B is 7 and 4: 5 merges into 7, and 2, which is a mean of three, as well.
    stream, sizes, groups = merge(stream, alike[:, :6], sizes, groups)
    assert stream.flatten().tolist() == pytest.approx([0, 6, (5 + 7 + 3 * 2) / 5, 4])
    assert sizes.tolist() == [[1, 1, 5, 1]]
    assert groups.tolist() == [[0, 2, 2, 2, 3, 2, 1, 2]]


def test_margins_tell_how_close_a_choice_was():
    merge = MergeTokens(0, 1)
    keys = torch.tensor(
        [[[1.0, 0.0], [1.0, 0.1], [1.0, 1.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]]
    )
    first, tie = merge.margin(keys).tolist()
    assert first == pytest.approx(1 / 1.01**0.5 - 1.1 / (2 * 1.01) ** 0.5, abs=1e-6)
    assert tie == 0


def test_a_margin_is_that_of_the_closest_choice_whether_of_partner_or_of_pair():
    """Token 0 is as good as torn between 1 and 3, and far more like either than 2 is."""
    merge = MergeTokens(0, 1)
    angles = torch.tensor([0.0, 0.5, 2.0, -0.501])
    keys = torch.stack([angles.cos(), angles.sin()], -1)[None].double()
    cosines = [math.cos(0.5) - math.cos(0.501), math.cos(0.5) - math.cos(1.5)]
    assert cosines[0] < cosines[1]
    assert merge.margin(keys).tolist() == pytest.approx(cosines[:1], rel=1e-4)
    # Where all of A merge, only the choice of partners counts.
    assert MergeTokens(0, 2).margin(keys).tolist() == pytest.approx(cosines[:1], rel=1e-4)


def test_nothing_merges_by_an_empty_schedule():
    result = run_passes(canonical(), [MergeBySchedule(TokenSchedule(), PIXELS)])
    assert not result.changed


def test_flops_fall_with_the_tokens():
    graph_module = canonical()
    image = PIXELS.shape[1:]
    before, after = (measure_cost(each, image) for each in (graph_module, merged(graph_module, [(0, 8)])))
    assert after.parameters == before.parameters
    # m0, a1, m1, a2 and m2 on 9 of 17 tokens; likeness of 8 by 8 keys, and 9 means of 17 tokens of 32 channels.
    products = 2 * 8 * 32 * (5 * 2 * 48 + 2 * 4 * 32 - 2 * 2 * 48) + 2 * 2 * 2 * 32 * (17**2 - 9**2)
    assert before.flops - after.flops == products - 2 * 8 * 8 * 8 - 2 * 9 * 17 * 32


@pytest.mark.parametrize(
    ("name", "merges", "reason"),
    [
        ("timm-beit", [(0, 2), (2, 1)], "a1 has a position bias"),
        (
            "vitfx",
            [(0, 5), (1, 6)],
            "behind a1 6 tokens are to merge, but of the 11 that may, at most half can",
        ),
    ],
)
def test_what_can_not_merge_is_told(name, merges, reason):
    with pytest.raises(PassError, match=reason):
        merged(canonical(name), merges)


def test_a_constant_for_each_token_stops_merges_before_it():
    graph_module = canonical()
    small = rewrite(graph_module, plan_of(graph_module, {"a1": [0]}, "position")).graph_module
    with pytest.raises(PassError, match="a1 has a bias for each token"):
        merged(small, [(0, 2)])
    assert schedule_of(merged(small, [(2, 2)])) == TokenSchedule(((2, 2),))


def test_a_constant_that_is_added_to_each_token_stops_merges_before_it():
    graph_module = canonical()
    cut = run_passes(graph_module, [DeleteMlpPaths(plan_of(graph_module, {"m1": range(48)}, "position"))]).graph_module
    with pytest.raises(PassError, match="m1_constant adds a constant to each token"):
        merged(cut, [(0, 2)])
    assert schedule_of(merged(cut, [(2, 2)])) == TokenSchedule(((2, 2),))


@pytest.mark.parametrize(
    ("units", "constants", "reason"),
    [
        ({"a1": range(4)}, "none", "tokens merge by the keys of a1, which is to go: undo the merges before"),
        ({"m1": [3]}, "position", "the constant of m1 has a row for each token, and tokens merge before"),
        ({"m0": [3], "a1": [2]}, "mean", None),
        ({"a0": [1, 2]}, "position", None),
    ],
)
def test_what_can_not_go_where_tokens_merge_already_is_told(units, constants, reason):
    made = merged(canonical(), [(1, 2)])
    plan = plan_of(canonical(), units, constants)
    passes = [DeleteHeads(plan), DeleteMlpPaths(plan)]
    if reason is not None:
        with pytest.raises(PassError, match=reason):
            run_passes(made, passes)
    else:
        expected = ablated_logits(canonical(), plan, PIXELS, Merges.of(made))
        assert_equal(run_passes(made, passes).graph_module(PIXELS), expected, 1e-9)


class Unusual(HandWritten):
    """A step between its blocks that is not recognised, or a class token behind the others."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.token = torch.nn.Parameter(torch.zeros(1, 1, 32)) if last else None

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x if self.token is None else torch.cat([x, self.token.expand(x.shape[0], -1, -1)], 1)
        for block in self.blocks:
            x = x + self.attention(block, block["n1"](x))
            x = block["down"](torch.relu(block["up"](block["n2"](x)))) + x
            x = x.tanh() if self.token is None else x
        return self.head(x.mean(1) if self.token is None else x[:, -1])


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        (False, r"between_tanh\w* is not recognised and may need all tokens"),
        (True, "of its 17 tokens, 1 hold no part of the image, and they are not the first"),
    ],
)
def test_models_whose_tokens_can_not_merge(last, reason):
    graph_module = to_canonical(randomised(Unusual(last)), images(2)).graph_module.double()
    with pytest.raises(PassError, match=reason):
        merged(graph_module, [(0, 2)])


def test_merges_of_a_deleted_attention_move_to_the_one_before():
    graph_module = canonical()
    small = rewrite(graph_module, plan_of(graph_module, {"a0": range(4), "a2": range(4)})).graph_module
    assert schedule_of(merged(small, [(0, 2), (2, 3)])) == TokenSchedule(((1, 5),))


def test_another_schedule_is_refused_before_the_first_is_undone():
    with pytest.raises(PassError, match="tokens merge already, by the schedule 0:2: undo that first"):
        merged(merged(canonical(), [(0, 2)]), [(0, 3)])
