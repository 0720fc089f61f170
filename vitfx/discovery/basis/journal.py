"""The journal of a discovery: one line a decision, so that Ctrl-C or a crash loses none of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vitfx.circuits.circuit import Decision, Edge
from vitfx.discovery.basis.protocol import Journal
from vitfx.support.errors import UserError
from vitfx.support.files import write_aside, writing
from vitfx.support.processes import Share

_MEASURED = ("kept", "score", "kl", "basis", "attribution", "order")


class NoJournal:
    """Remembers nothing."""

    def recall(self, edge: Edge) -> None:
        return None

    def record(self, decision: Decision) -> None:
        pass

    def recall_all(self, edges: Sequence[Edge]) -> None:
        return None

    def record_all(self, decisions: Sequence[Decision]) -> None:
        pass


class FileJournal:
    """Appends decisions to a file and recalls those of an earlier run with the same key.

    key: everything that the decisions depend on. A journal with decisions and another key raises UserError, or, with
    force, is begun anew. The folder is made where it is missing. Raises WriteError.
    """

    def __init__(self, path: Path, key: str, *, force: bool = False) -> None:
        self.path = path
        self._known: dict[str, dict[str, Any]] = {}
        self._made_folder = not path.parent.exists()
        with writing(path):
            lines, empty = _whole_lines(path), not _has_contents(path)
        if lines and lines[0].get("key") == key:
            for line in lines[1:]:
                # What was decided again goes where it was decided last.
                self._known.pop(line["edge"], None)
                self._known[line["edge"]] = line
        elif not empty and len(lines) != 1 and not force:
            raise UserError(
                f"{path} is of a run of {max(len(lines) - 1, 0)} decisions that was broken off, "
                "with other settings, model or images: give those to go on with it, another place with --out, "
                "or --force to begin anew"
            )
        else:
            lines = [{"key": key}]
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        # The last line may have been cut off: what is known is written again, whole.
        write_aside(path, "".join(json.dumps(line) + "\n" for line in lines))

    def __len__(self) -> int:
        return len(self._known)

    def recall(self, edge: Edge) -> Decision | None:
        """The earlier decision on this edge, if it was on the same heads or neurons."""
        line = self._known.get(edge.name)
        if line is None or line["units"] != list(edge.writer.units):
            return None
        found = Decision(edge, *(line[name] for name in _MEASURED))
        return replace(found, order=None if found.order is None else tuple(found.order))

    def recall_all(self, edges: Sequence[Edge]) -> list[Decision] | None:
        """The earlier decisions on all of these edges, in the order in which they were made; None where one is not
        known."""
        found = {edge.name: one for edge in edges if (one := self.recall(edge)) is not None}
        if len(found) < len(edges):
            return None
        return [found[name] for name in self._known if name in found] or None

    def record(self, decision: Decision) -> None:
        self.record_all([decision])

    def record_all(self, decisions: Sequence[Decision]) -> None:
        lines = [
            {
                "edge": one.edge.name,
                "units": list(one.edge.writer.units),
                **{name: getattr(one, name) for name in _MEASURED},
            }
            for one in decisions
        ]
        with writing(self.path), self.path.open("a") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))

    def discard(self) -> None:
        """Takes the file away, and the folder where the journal made it and nothing else is in it."""
        self.path.unlink(missing_ok=True)
        if self._made_folder and not any(self.path.parent.iterdir()):
            self.path.parent.rmdir()


def _has_contents(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """The first line, with the key, and the decisions that follow it whole; nothing where the first is damaged."""
    if not path.is_file():
        return []
    lines: list[dict[str, Any]] = []
    for text in path.read_text(errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            break
        needed = {"edge", "units", *_MEASURED} if lines else {"key"}
        if not isinstance(line, dict) or not needed <= line.keys():
            break
        lines.append(line)
    return lines


Order = tuple[int, ...] | None


class SharedJournal:
    """The first process's journal: all recall what it knows, it alone records.

    A decision's order is of a process's own images. The journal has the orders of all, so that a run that was broken
    off goes on to the same bits; where the number of processes is another by now, they mean nothing and are left out.
    """

    def __init__(self, journal: Journal, share: Share) -> None:
        """journal: the first process's own, or a copy of it with the same decisions."""
        self._journal, self._share = journal, share

    def recall(self, edge: Edge) -> Decision | None:
        found = self._journal.recall(edge)
        return None if found is None else replace(found, order=self._own(found.order))

    def recall_all(self, edges: Sequence[Edge]) -> list[Decision] | None:
        found = self._journal.recall_all(edges)
        return None if found is None else [replace(one, order=self._own(one.order)) for one in found]

    def record(self, decision: Decision) -> None:
        """To be called by all processes, with the same decision."""
        together = replace(decision, order=self._of_all(decision.order))
        if self._share.rank == 0:
            self._journal.record(together)

    def record_all(self, decisions: Sequence[Decision]) -> None:
        """As `record`."""
        together = [replace(one, order=self._of_all(one.order)) for one in decisions]
        if self._share.rank == 0:
            self._journal.record_all(together)

    def _of_all(self, order: Order) -> Order:
        """Less the number of processes, then of each how many images it has and their order; of one alone, its own."""
        world = self._share.world
        if order is None or world == 1:
            return order
        sizes = torch.zeros(world, dtype=torch.int64)
        sizes[self._share.rank] = len(order)
        sizes = self._share.sum(sizes)
        rows = torch.zeros(world, int(sizes.max()), dtype=torch.int64)
        rows[self._share.rank, : len(order)] = torch.tensor(order)
        rows = self._share.sum(rows)
        found = [-world]
        for size, row in zip(sizes.tolist(), rows.tolist(), strict=True):
            found += [size, *row[:size]]
        return tuple(found)

    def _own(self, order: Order) -> Order:
        if order is None:
            return None
        world = -order[0] if order and order[0] < 0 else 1
        if world != self._share.world:
            return None
        if world == 1:
            return order
        rest = order[1:]
        for _ in range(self._share.rank):
            rest = rest[1 + rest[0] :]
        return rest[1 : 1 + rest[0]]
