"""Sublayers of one kind that read one stream side by side become one."""

import torch

from passes.stream import read_sites
from tests.support.checks import assert_equal
from tests.support.families import HandWritten, images, randomised
from vitfx.graph.trace import to_canonical


class SideBySide(HandWritten):
    """Three attentions behind norms of their own, then two MLPs."""

    def mlp(self, block, x):
        return block["down"](block["up"](block["n2"](x)).relu())

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        attended = [self.attention(block, block["n1"](x)) for block in self.blocks]
        x = x + (attended[0] + attended[1] + attended[2])
        first, second, _ = self.blocks
        x = x + (
            first["down"](first["up"](first["n2"](x)).relu()) + second["down"](second["up"](second["n2"](x)).relu())
        )
        return self.head(x.mean(1))


def test_sublayers_side_by_side_are_one():
    model = randomised(SideBySide())
    found = to_canonical(model, images(2))
    attention, mlp = (site.module for site in read_sites(found.graph_module))
    assert (attention.units, mlp.units, found.notes) == (6, 80, ())
    with torch.no_grad():
        assert_equal(found.graph_module(images(3)), model(images(3)), 1e-5)
