"""Deletes MLP paths: rows of what reads the stream, columns of the projection; the sublayer goes when none is left."""

from __future__ import annotations

from collections.abc import Sequence

from passes.delete_units import DeleteUnits, columns_of, take_rows
from passes.dialect import Sublayer
from passes.mlp import GatedMlp, Mlp, Neurons
from passes.plan import channels_of


class DeleteMlpPaths(DeleteUnits):
    """A path is a group of hidden neurons; plans name the neurons."""

    kind = "neuron"

    @staticmethod
    def shrunk(module: Sublayer, kept: Sequence[int]) -> Neurons:
        assert isinstance(module, Mlp | GatedMlp)
        small = type(module)(module.linears[0].in_features, len(kept), module.activation)
        for name, linear in zip(module.reads, module.linears, strict=True):
            setattr(small, name, take_rows(linear, channels_of(kept, 1)))
        if module.hidden_norm is not None:
            small.hidden_norm = module.hidden_norm.of_channels(channels_of(kept, 1))
        small.out = columns_of(module, kept)
        return small
