"""What several processes add up and say, without starting any."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from vitfx.support.errors import UserError
from vitfx.support.processes import Alone, Distributed, OwnFailure, ToldElsewhere, on_each

PARTS = [torch.tensor([value], dtype=torch.float64) for value in (1.0, 1e16, -1e16, 1.0)]


def of_process(rank: int, monkeypatch: pytest.MonkeyPatch) -> Distributed:
    """One of as many processes as there are parts, of which each has its own."""

    def gather(parts: list[Tensor], own: Tensor) -> None:
        assert torch.equal(own, PARTS[rank])
        for part, value in zip(parts, PARTS, strict=True):
            part.copy_(value)

    monkeypatch.setattr(dist, "all_gather", gather)
    share = Distributed.__new__(Distributed)
    share.rank, share.world, share._device = rank, len(PARTS), torch.device("cpu")
    return share


def test_sums_are_the_same_to_the_bit_on_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two numbers commute, three do not associate: with its own part first, the last process would have another sum."""
    assert 1.0 + 1e16 - 1e16 + 1.0 != 1.0 + 1.0 + 1e16 - 1e16
    sums = {float(of_process(rank, monkeypatch).sum(part)) for rank, part in enumerate(PARTS)}
    assert sums == {1.0 + 1e16 - 1e16 + 1.0}


@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_of_several_that_fail_the_first_says_so(rank: int) -> None:
    class Failing(Alone):
        """Of four processes, of which the second and the fourth fail."""

        world = 4

        def __init__(self) -> None:
            self.rank = rank

        def sum(self, value: Tensor) -> Tensor:
            return torch.tensor([0.0, 1.0, 0.0, 1.0])

    def function() -> int:
        if rank in (1, 3):
            raise UserError("no room")
        return rank

    with pytest.raises(UserError) as raised:
        on_each(Failing(), function)
    assert type(raised.value) is (OwnFailure if rank == 1 else ToldElsewhere)
    assert (str(raised.value) == "process 1: no room") == (rank == 1)
