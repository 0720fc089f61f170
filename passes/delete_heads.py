"""Deletes attention heads: rows of q, k and v, columns of the projection; the sublayer goes when none is left."""

from __future__ import annotations

from collections.abc import Sequence

from passes.delete_units import DeleteUnits, columns_of, take_rows
from passes.dialect import Attention, Sublayer
from passes.plan import channels_of


class DeleteHeads(DeleteUnits):
    """Each layer may keep a different number of heads."""

    kind = "head"

    @staticmethod
    def shrunk(module: Sublayer, kept: Sequence[int]) -> Attention:
        assert isinstance(module, Attention)
        q, k, v = module.q, module.k, module.v
        small = Attention(
            q.in_features, len(kept), module.head_dim, module.channels, module.scale
        )  # its projections are replaced below
        small.q = take_rows(q, channels_of(kept, module.head_dim))
        small.k = take_rows(k, channels_of(kept, module.head_dim))
        small.v = take_rows(v, channels_of(kept, module.channels))
        small.out = columns_of(module, kept)
        return small
