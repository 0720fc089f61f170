"""Attention and MLP side by side, in every way of writing them down: two sublayers that read one stream."""

import pytest
import torch
from torch import nn

from passes.aten import record_values
from passes.gather_branches import gather_branches
from passes.layout import Walker
from passes.stream import read_sites
from tests.support.checks import assert_equal
from tests.support.families import HandWritten, images, randomised
from vitfx.graph.trace import aten_graph, to_canonical

PIXELS = images(3, torch.float64)


def mlp(block, x):
    return block["down"](torch.relu(block["up"](x)))


class Blocks(HandWritten):
    """rule: (model, block, x) -> what the block makes of the stream x."""

    def __init__(self, rule):
        super().__init__()
        self.rule = rule
        self.gain, self.both = nn.Parameter(torch.ones(32)), nn.Linear(32 + 40, 32)

    def attended(self, block, x):
        """The attention's, without their projection."""
        project, block = block["proj"], {**block, "proj": nn.Identity()}
        assert project.in_features == 32
        return self.attention(block, x)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = self.rule(self, block, x)
        return self.head(x.mean(1))


def both_from(model, block, x):
    return model.attention(block, block["n1"](x)), mlp(block, block["n2"](x))


def total(model, block, x):
    attention, neurons = both_from(model, block, x)
    return attention + neurons


def joined(model, block, x, order):
    read = block["n1"](x)
    parts = [model.attended(block, read), torch.relu(block["up"](read))]
    weight = model.both.weight if order == 1 else model.both.weight.roll(40, 1)
    return nn.functional.linear(torch.cat(parts[::order], -1), weight, model.both.bias)


FORMS = {
    "the stream last": lambda model, block, x: total(model, block, x) + x,
    "one after the other": lambda model, block, x: x + both_from(model, block, x)[0] + both_from(model, block, x)[1],
    "the MLP first": lambda model, block, x: mlp(block, block["n2"](x)) + (x + model.attention(block, block["n1"](x))),
    "one norm": lambda model, block, x: x + (model.attention(block, block["n1"](x)) + mlp(block, block["n1"](x))),
    "a gain behind both": lambda model, block, x: x + model.gain * total(model, block, x),
    "half of each": lambda model, block, x: x + total(model, block, x) / 2,
    "one projection": lambda model, block, x: x + joined(model, block, x, 1),
    "one projection, the MLP first": lambda model, block, x: joined(model, block, x, -1) * model.gain + x,
}


@pytest.mark.parametrize("form", FORMS)
def test_both_are_sublayers_of_one_stream(form):
    model = randomised(Blocks(FORMS[form])).double()
    traced = to_canonical(model, PIXELS[:2])
    assert traced.notes == ()
    sites = read_sites(traced.graph_module)
    assert [site.name for site in sites] == ["a0", "m0", "a1", "m1", "a2", "m2"]
    for attention, neurons in zip(sites[::2], sites[1::2], strict=True):
        assert neurons.stream is attention.stream and neurons.carried is attention.add
        assert attention.end is neurons.add is neurons.end
    with torch.no_grad():
        assert_equal(traced.graph_module(PIXELS), model(PIXELS), 1e-10)


def test_the_traced_graph_is_left_alone_and_others_are_not_touched():
    for rule, changes in ((FORMS["a gain behind both"], True), (lambda model, block, x: x + mlp(block, x), False)):
        graph_module = aten_graph(randomised(Blocks(rule)).double(), PIXELS[:2])
        code, walker = graph_module.code, Walker(graph_module, record_values(graph_module, PIXELS[:2]))
        gathered = gather_branches(walker)
        assert graph_module.code == code
        assert (gathered is not None) == changes
        if gathered is not None:
            assert_equal(gathered(PIXELS[:2])[0], graph_module(PIXELS[:2]), 1e-12)
            assert gather_branches(Walker(gathered, record_values(gathered, PIXELS[:2]))) is not None
