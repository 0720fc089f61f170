"""Which tokens are read, and what works token by token. (Cut constants are tested with what cuts: narrowing.)"""

import torch
from torch import nn

from passes.dialect import AddConstant
from passes.mlp import Mlp
from passes.token_use import by_token, cut_tokens, tokens_read


def test_tokens_read_and_a_classifier_that_hides_them():
    stream = torch.zeros(2, 5, 4)
    assert tokens_read(lambda x: x[:, 2] * 3, stream) == (2,)
    assert tokens_read(lambda x: x[:, [0, 3]].sum(1), stream) == (0, 3)
    # No gradient reaches what goes through a comparison, but the values change: so all are read.
    assert tokens_read(lambda x: x[:, 0] + (x[:, 1] > 0.5), stream) == tuple(range(5))


def test_by_token():
    assert by_token(Mlp(4, 8, "gelu"))
    assert by_token(nn.LayerNorm(4))
    assert not by_token(nn.Linear(4, 4))
    assert not by_token(None)


def test_cut_tokens_leaves_what_has_no_constants_for_tokens():
    tokens = torch.tensor([1, 3])
    mlp, table, plain = Mlp(4, 8, "gelu", out_bias=(5, 4)), AddConstant((5, 4)), AddConstant((4,))
    nn.init.normal_(mlp.out.bias)
    assert torch.equal(cut_tokens(mlp, tokens).out.bias, mlp.out.bias[tokens])
    assert cut_tokens(table, tokens).value.shape == (2, 4)
    assert table.value.shape == (5, 4)
    assert cut_tokens(plain, tokens) is plain
