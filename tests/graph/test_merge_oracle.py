"""Which images a proof about merged tokens is run on: those whose merges rounding can't change."""

import torch
from torch import nn

from passes.merging import MergeTokens
from tests.support.families import images
from vitfx.graph.merge_oracle import clearly_merged

PIXELS = images(4)


class Close(MergeTokens):
    """Decides by the margins that it is given, one for each image."""

    def __init__(self, *margins: float) -> None:
        super().__init__(0, 1)
        self.margins = torch.tensor(margins)

    def forward(self, x, keys):
        return (x,)

    def margin(self, keys):
        return self.margins


class Merging(nn.Module):
    def __init__(self, *merges: Close) -> None:
        super().__init__()
        self.merges = nn.ModuleList(merges)

    def forward(self, pixels):
        for merge in self.merges:
            merge(pixels, pixels)


def test_an_image_is_compared_where_all_of_its_merges_are_clear():
    model = Merging(Close(0.5, 1e-6, 0.5, 1e-4), Close(0.5, 0.5, 1e-6, 1e-4))
    assert torch.equal(clearly_merged(model, PIXELS), PIXELS[[0, 3]])


def test_where_none_is_clear_and_where_nothing_merges_all_are_compared():
    assert clearly_merged(Merging(Close(1e-6, 0, 0, 0)), PIXELS) is PIXELS
    assert clearly_merged(Merging(), PIXELS) is PIXELS
