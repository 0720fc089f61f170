"""Masks: what they add to the scores is a bias of positions, and what no such bias can say is refused by name."""

import pytest
import torch
from torch.nn import functional as F

from passes.stream import read_sites
from tests.support.checks import assert_equal
from tests.support.families import HandWritten, images, randomised
from vitfx.graph.trace import to_canonical
from vitfx.support.errors import UserError

NEAR = (torch.arange(16)[:, None] - torch.arange(16)).abs() < 3


class Masked(HandWritten):
    """Attention in one operator, with a mask."""

    def __init__(self, **mask):
        super().__init__()
        self.mask = mask

    def options(self, x):
        return self.mask

    def attention(self, block, x):
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in block["qkv"](x).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, **self.options(x))
        return block["proj"](mixed.transpose(1, 2).flatten(2))


class MaskedByPlace(Masked):
    """Each image of a batch has a mask of its own."""

    def options(self, x):
        return {"attn_mask": torch.arange(x.shape[0]).view(-1, 1, 1, 1) * NEAR.float()}


class MaskedByContent(Masked):
    """Tokens that are unlike do not see each other."""

    def options(self, x):
        return {"attn_mask": (x @ x.transpose(1, 2) > 0)[:, None]}


def test_a_mask_is_a_position_bias():
    model = randomised(Masked(attn_mask=NEAR))
    found = to_canonical(model, images(2))
    assert found.notes == ()
    bias = read_sites(found.graph_module)[0].module.core.position_bias
    assert torch.equal(bias[0], torch.zeros(16, 16).masked_fill(~NEAR, -torch.inf))
    with torch.no_grad():
        assert_equal(found.graph_module(images(3)), model(images(3)), 1e-5)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (Masked(is_causal=True), "its attention has dropout or a causal mask"),
        (MaskedByPlace(), "the attention's bias differs from image to image"),
        (MaskedByContent(), "the attention mask is computed from the image"),
    ],
)
def test_what_is_no_position_bias_is_named(model, why):
    with pytest.raises(UserError, match=why):
        to_canonical(randomised(model), images(2))
