"""Deletes MLP paths: rows of fc1, columns of the projection; the sublayer goes when none is left."""

from __future__ import annotations

from collections.abc import Sequence

from passes.delete_units import DeleteUnits, columns_of, take_rows
from passes.dialect import Mlp, Sublayer
from passes.plan import channels_of


class DeleteMlpPaths(DeleteUnits):
    """A path is a group of hidden neurons; plans name the neurons."""

    kind = "neuron"

    @staticmethod
    def shrunk(module: Sublayer, kept: Sequence[int]) -> Mlp:
        assert isinstance(module, Mlp)
        small = Mlp(module.fc1.in_features, len(kept), module.activation)
        small.fc1 = take_rows(module.fc1, channels_of(kept, 1))
        small.out = columns_of(module, kept)
        return small
