"""Who still sees whom: the edges of a reader-level graph as a table, and which of them still lead to the logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vitfx.circuits.circuit import EMBED, LOGITS, Edge, Reader, Writer
from vitfx.circuits.edge_graph import EdgeGraph


class Wiring:
    """Rows are the graph's readers and columns its writers, in the graph's order: those of one stage are adjacent."""

    def __init__(self, graph: EdgeGraph) -> None:
        self.graph = graph
        self.writers, self.readers = graph.writers, graph.readers
        self.row = {writer: row for row, writer in enumerate(self.writers)}
        self.reader_row = {reader: row for row, reader in enumerate(self.readers)}
        self.writer_stage = [
            graph.first - 1 if writer.sublayer == EMBED else graph.stage_index(writer.sublayer)
            for writer in self.writers
        ]
        self.reader_stage = [graph.stage_index(reader.sublayer) for reader in self.readers]
        stages = torch.tensor(self.writer_stage)
        #: bool (readers, writers): the edge exists and was not removed
        self.seen = torch.stack([stages < graph.reads_at(reader.sublayer) for reader in self.readers])
        self._exists = self.seen.clone()
        #: bool (writers,): some chain of kept edges leads to the logits; known once the stage is settled
        self.alive = torch.zeros(len(self.writers), dtype=torch.bool)
        self._leads = torch.tensor([reader.sublayer == LOGITS for reader in self.readers])

    def writers_of(self, stage: int) -> list[int]:
        return [row for row, at in enumerate(self.writer_stage) if at == stage]

    def readers_of(self, stage: int) -> list[int]:
        return [row for row, at in enumerate(self.reader_stage) if at == stage]

    def alive_writers(self, stage: int) -> list[int]:
        return [row for row in self.writers_of(stage) if bool(self.alive[row])]

    def alive_readers(self, stage: int) -> list[int]:
        """The readers from which a chain of kept edges leads to the logits. Keys come first, then queries, then values,
        so that what they read is split without a copy."""
        leading = [row for row in self.readers_of(stage) if bool(self._leads[row])]
        return sorted(leading, key=lambda row: self.readers[row].part or "")

    @property
    def gone(self) -> torch.Tensor:
        """bool (readers, writers): the edge was removed."""
        return self._exists & ~self.seen

    def missed(self, stage: int) -> list[bool]:
        """For each writer, whether some reader behind this stage that leads to the logits does not see it."""
        behind = self._leads & (torch.tensor(self.reader_stage) > stage)
        return (behind[:, None] & self.gone).any(dim=0).tolist()

    def head_row(self, reader: Reader) -> int:
        """The row, as a writer, of the head that a reader belongs to."""
        assert reader.head is not None
        return self.writers_of(self.graph.stage_index(reader.sublayer))[reader.head]

    def sees(self, edge: Edge) -> bool:
        return bool(self.seen[self.reader_row[edge.reader], self.row[edge.writer]])

    def remove(self, reader: int, writers: Sequence[Writer]) -> None:
        self.seen[reader, [self.row[writer] for writer in writers]] = False

    def settle(self, stage: int) -> None:
        """Works out which of a stage's writers and readers are alive, once all readers behind it are decided."""
        own = self.writers_of(stage)
        self.alive[own] = (self.seen[:, own] & self._leads[:, None]).any(dim=0)
        for row in self.readers_of(stage):
            reader = self.readers[row]
            rows = own if reader.head is None else [self.head_row(reader)]
            self._leads[row] = bool(self.alive[rows].any())
