"""vitfx.training.optimizer: the recursion by hand, buffers too."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vitfx.training.optimizer import make_average


def test_the_average_is_the_recursion_with_its_warm_up() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = make_average(model, decay=0.3)
    wanted = None
    for step in range(8):
        with torch.no_grad():
            model[0].weight.add_(torch.randn(2, 2))
        model(torch.randn(5, 2))
        average.update_parameters(model)
        value = model[0].weight.detach().double()
        decay = min(0.3, (1 + step) / (10 + step))
        wanted = value.clone() if wanted is None else decay * wanted + (1 - decay) * value
        torch.testing.assert_close(average.module[0].weight.detach().double(), wanted, atol=1e-5, rtol=1e-5)
    assert average.module[1].num_batches_tracked == 8
    assert average.module[1].running_mean.abs().sum() > 0
    assert not torch.equal(average.module[1].running_mean, model[1].running_mean)


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_no_decay_no_average(decay: float) -> None:
    assert (make_average(nn.Linear(2, 2), decay) is None) == (decay == 0)
