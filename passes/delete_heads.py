"""Deletes attention heads: rows of q, k and v, columns of the projection; the sublayer goes when none is left.

Of an attention pooling, which has no q, the heads' learnt queries go.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from passes.delete_units import DeleteUnits, columns_of, take_rows
from passes.dialect import Attention, Sublayer
from passes.plan import channels_of
from passes.pooled_attention import PooledAttention


class DeleteHeads(DeleteUnits):
    """Each layer may keep a different number of heads."""

    kind = "head"

    @staticmethod
    def shrunk(module: Sublayer, kept: Sequence[int]) -> Attention | PooledAttention:
        assert isinstance(module, Attention | PooledAttention)
        small: Attention | PooledAttention
        # Projections and core are replaced below.
        sizes = (module.k.in_features, len(kept), module.head_dim, module.value_dim)
        if isinstance(module, PooledAttention):
            small = PooledAttention(*sizes, module.queries, module.core.scale)
            small.query = nn.Parameter(module.query.detach()[list(kept)])
        else:
            small = Attention(*sizes, module.scale, core={"group": module.core.group})
        for name, linear in zip(module.reads, module.linears, strict=True):
            setattr(small, name, take_rows(linear, channels_of(kept, linear.out_features // module.units)))
        small.core = module.core.of_heads(kept)
        if module.core.out_norm is not None:
            small.core.out_norm = module.core.out_norm.of_channels(channels_of(kept, module.channels))
        small.out = columns_of(module, kept)
        return small
