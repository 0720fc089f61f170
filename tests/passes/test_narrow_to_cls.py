"""Behind the last attention only the tokens that are read are computed, where that can be."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.base import run_passes
from passes.cost import measure_cost
from passes.deployment import NarrowedAttention
from passes.narrow_to_cls import NarrowToCls
from passes.stream import read_sites
from tests.support.checks import assert_equal, canonical, check, plan_of
from tests.support.families import FAMILIES, HandWritten, images, randomised
from vitfx.graph.trace import to_canonical
from vitfx.graph.verify import rewrite

PIXELS = images(3, torch.float64)
READ = {
    **dict.fromkeys(("vitfx", "torchvision", "timm", "timm-written-out", "hf-vit", "hf-vit-eager"), 1),
    "timm-registers-after-positions": 1,
    **dict.fromkeys(("timm-rms-swiglu-qk-norm", "timm-norms-inside", "timm-side-by-side", "hf-dinov3"), 1),
    **dict.fromkeys(("timm-norm-on-norm", "timm-grouped-queries", "timm-parallel"), 1),
    "timm-distilled": 2,
    "hf-deit": 2,
}


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_not_read_is_not_computed(name):
    graph_module = canonical(name)
    expected = graph_module(PIXELS).detach()
    narrows = name in READ
    made = check(
        NarrowToCls(PIXELS),
        graph_module,
        PIXELS,
        expected,
        changes=narrows,
        nodes=int(narrows),
        tolerance=1e-12,
        keeps_canonical=not narrows,
    )
    if narrows:
        assert isinstance(made.a2, NarrowedAttention)
        assert made.a2.count == READ[name]
        assert made.norm(made.m2_norm(torch.zeros(1, READ[name], 32).double())).shape == (1, READ[name], 32)


def test_the_mlp_behind_runs_for_the_class_token_alone():
    graph_module = canonical()
    image = PIXELS.shape[1:]
    saved = measure_cost(graph_module, image).flops
    made = run_passes(graph_module, [NarrowToCls(PIXELS)]).graph_module
    seen = []
    made.m2.register_forward_hook(lambda module, args, out: seen.append(tuple(out.shape)))
    made(PIXELS)
    assert seen == [(3, 1, 32)]
    # 16 of 17 tokens: q and projection, two MLP products, the attention's own two products.
    tokens, width, hidden = 16, 32, 48
    expected = 2 * tokens * (2 * width * width + 2 * width * hidden + 2 * 17 * width)
    weight_free = measure_cost_of(made, image)
    assert saved - weight_free == expected


def measure_cost_of(graph_module, image):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        graph_module(torch.zeros(1, *image).double())
    return counter.get_total_flops()


@settings(max_examples=15, deadline=None, derandomize=True)
@given(data=st.data())
def test_pruned_graphs_with_constants_for_each_token(data):
    graph_module = canonical(data.draw(st.sampled_from(["torchvision", "timm-distilled"])))
    units = {}
    for site in read_sites(graph_module):
        if data.draw(st.booleans()):
            every = range(site.module.units)
            units[site.name] = list(every) if data.draw(st.booleans()) else [data.draw(st.sampled_from(every))]
    small = rewrite(graph_module, plan_of(graph_module, units, "position")).graph_module
    result = run_passes(small, [NarrowToCls(PIXELS)])
    assert result.changed == any(site.module.kind == "head" for site in read_sites(small))
    assert_equal(result.graph_module(PIXELS), small(PIXELS), 1e-12)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("hand-written", "read all tokens"),
        ("timm-layerscale-average-registers", "16 of 19 tokens, which are not the first"),
        ("hf-dinov2-registers", "17 of 21 tokens, which are not the first"),
    ],
)
def test_it_says_why_not(name, reason):
    (note,) = run_passes(canonical(name), [NarrowToCls(PIXELS)]).notes
    assert reason in note


class FromTheEnd(HandWritten):
    """Reads the first of its 16 tokens, which it finds by counting back."""

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = x + self.attention(block, block["n1"](x))
            x = block["down"](torch.relu(block["up"](block["n2"](x)))) + x
        return self.head(x[:, -16:-15].sum(1))


def test_a_classifier_that_counts_from_the_end_keeps_its_tokens():
    graph_module = to_canonical(randomised(FromTheEnd()), images(2)).graph_module.double()
    result = run_passes(graph_module, [NarrowToCls(PIXELS)])
    assert not result.changed
    assert result.notes == ("narrow_to_cls: the classifier counts its tokens from the end",)
