"""Some heads or paths of a sublayer alone: what they compute from what their readers read.

Shapes: n images of a batch, N images of the process, T tokens, D width, E inner channels of a sublayer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from passes.dialect import Attention
from passes.mlp import Neurons
from passes.plan import channels_of
from vitfx.circuits.circuit import Reader
from vitfx.circuits.edge_table import Wiring
from vitfx.graph.narrow import NarrowingStage
from vitfx.graph.stages import Stage, project_heads


class Units:
    """Some heads or paths of one sublayer, with a copy of their part of its weights."""

    def __init__(self, stage: Stage, wiring: Wiring, rows: Sequence[int]) -> None:
        """rows: of the wiring's writers."""
        module = stage.sublayer
        assert module is not None
        self.stage, self.module, self.rows = stage, module, list(rows)
        self.units = [unit for row in rows for unit in wiring.writers[row].units]
        weight = module.out.weight
        self.channels = channels_of(self.units, module.channels).to(weight.device)
        self.sizes = [len(wiring.writers[row].units) * module.channels for row in rows]
        self._columns = weight.T[self.channels].split(self.sizes)
        self._stacked = torch.stack(self._columns) if len(set(self.sizes)) == 1 else None
        if isinstance(module, Attention):
            self._core = module.core.of_heads(self.units)
        else:
            self._rows = [
                (linear.weight[self.channels], None if linear.bias is None else linear.bias[self.channels])
                for linear in module.linears
            ]

    def inner(self, read: Tensor, parts: Sequence[Tensor]) -> Tensor:
        """The inner channels (n, T, ·): those of heads from `parts`, those of neurons from `read` (1, n, T, D)."""
        if isinstance(self.module, Attention):
            heads: Tensor = self._core(*parts)
            return heads
        assert isinstance(self.module, Neurons) and self.stage.norm is not None
        normed = self.stage.norm(read[0])
        if self.module.inner_norm is not None:
            return self.module.inner(normed)[..., self.channels]
        return self.module.activate(*(F.linear(normed, weight, bias) for weight, bias in self._rows))

    def by_row(self, inner: Tensor) -> Tensor:
        """What each row adds to the stream: (n, T, ·) -> (rows, n, T, D)."""
        if self._stacked is None:
            pieces = inner.split(self.sizes, dim=-1)
            return torch.stack([piece @ columns for piece, columns in zip(pieces, self._columns, strict=True)])
        apart = inner.flatten(0, 1).unflatten(1, (len(self.rows), -1)).transpose(0, 1)
        return torch.unflatten(torch.bmm(apart, self._stacked), 1, inner.shape[:2])

    def parts(self, readers: Sequence[Reader], read: Tensor, known: Sequence[Tensor] = ()) -> list[Tensor]:
        """An attention's queries, keys and values, computed anew where their reader is given; an MLP has none.

        read: what each reader reads, (readers, n, T, D). If only queries are given, it may hold their tokens alone.
        known: the parts whose readers are not given, (n, heads, T, channels).
        """
        if not isinstance(self.module, Attention):
            return []
        assert self.stage.norm is not None
        parts = []
        places = [[at for at, reader in enumerate(readers) if reader.part in (None, name)] for name in "qkv"]
        pieces = _apart(self.stage.norm(read), places)
        for position, (name, linear) in enumerate(
            zip("qkv", (self.module.q, self.module.k, self.module.v), strict=True)
        ):
            chosen, inputs = places[position], pieces[position]
            if not chosen:
                parts.append(known[position])
                continue
            if name == "q" and isinstance(self.stage, NarrowingStage) and inputs.shape[2] > len(self.stage.tokens):
                inputs = inputs[:, :, self.stage.tokens]
            heads = [head for at in chosen if (head := readers[at].head) is not None]
            made = project_heads(linear, self.module.units, inputs, heads)
            where = [self.units.index(head) for head in heads]
            whole = where == list(range(len(self.units)))
            parts.append(
                made if whole else known[position].index_copy(1, torch.tensor(where, device=made.device), made)
            )
        return parts


def _apart(rows: Tensor, places: Sequence[Sequence[int]]) -> list[Tensor]:
    """The rows at each of several lists of places. Where these follow one another, `split` does it without a copy, and
    autograd puts the gradient together without adding up zeros."""
    filled = sorted((own for own in places if own), key=lambda own: own[0])
    if [at for own in filled for at in own] == list(range(len(rows))):
        pieces = dict(zip((own[0] for own in filled), rows.split([len(own) for own in filled]), strict=True))
        return [pieces[own[0]] if own else rows[:0] for own in places]
    adjacent = [bool(own) and own[-1] - own[0] + 1 == len(own) for own in places]
    return [rows[own[0] : own[-1] + 1] if whole else rows[own] for own, whole in zip(places, adjacent, strict=True)]


@dataclass
class DownstreamStep:
    """A later sublayer, or the logits, as far as a change reaches it. Tensors are of the circuit as it stands."""

    index: int  #: of the stage
    readers: list[int]  #: rows of the readers that see some of the change
    mask: Tensor  #: (readers, writers changed before), 1 where the reader sees the writer
    units: Units | None  #: the writers that change in turn; None for the logits
    read: Tensor = field(default_factory=lambda: torch.empty(0))  #: what the readers read, (readers, N, T, D)
    parts: list[Tensor] = field(default_factory=list)  #: queries, keys and values, (N, heads, T, channels)
    inner: Tensor = field(default_factory=lambda: torch.empty(0))  #: the units' inner channels, (N, T, channels)
