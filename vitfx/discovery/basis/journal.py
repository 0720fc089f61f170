"""The journal of a discovery, one decision a line, so that Ctrl-C or a crash loses none of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch

from vitfx.circuits.circuit import Decision, Edge
from vitfx.discovery.basis.protocol import Journal
from vitfx.support.digests import DIGEST, DamagedError, check_digest, digest_of
from vitfx.support.errors import UserError
from vitfx.support.files import write_aside, writing
from vitfx.support.processes import Share
from vitfx.support.reading import check_depth
from vitfx.support.typed import typed

FORMAT = "vitfx-journal/2"
"""Each line's digest covers the digest of the line before it as well: a line that is lost or moved shows. Journals of
vitfx 0.5 have no format and are gone on with, their lines believed one by one."""
_MEASURED = ("kept", "score", "kl", "basis", "attribution", "order")


class _Head(TypedDict):
    format: NotRequired[str]
    key: str


class _Line(TypedDict):
    edge: str
    units: list[int]
    kept: bool
    score: float
    kl: float | None
    basis: str
    attribution: float | None
    order: list[int] | None


class NoJournal:
    """Remembers nothing."""

    def recall(self, edges: Sequence[Edge]) -> None:
        return None

    def record(self, decisions: Sequence[Decision]) -> None:
        pass


class FileJournal:
    """Appends decisions to a file and recalls those of an earlier run with the same key.

    key: everything that the decisions depend on. If the file holds decisions with another key, they are an error
    (UserError), or with `force` dropped. A missing folder is made. Raises WriteError.
    """

    def __init__(self, path: Path, key: str, *, force: bool = False) -> None:
        self.path = path
        self._lines: dict[str, dict[str, Any]] = {}
        self._made_folder = not path.parent.exists()
        with writing(path):
            lines, empty = _whole_lines(path), not _has_contents(path)
        if lines and lines[0].get("key") == key:
            for line in lines[1:]:
                # An edge that was decided again takes the place of its last decision.
                self._lines.pop(line["edge"], None)
                self._lines[line["edge"]] = line
        elif not empty and len(lines) != 1 and not force:
            raise UserError(
                f"{path} belongs to an interrupted run of {max(len(lines) - 1, 0)} decisions with other settings, "
                "another model or other images: give those to resume it, another place with `out`, "
                "or `force` to begin anew"
            )
        else:
            lines = [{"key": key}]
        lines[0]["format"] = FORMAT
        self._place = {name: place for place, name in enumerate(self._lines)}
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        # The last line may have been cut off: all whole lines are written anew.
        text, self._last = _chained(lines, "")
        write_aside(path, text)

    def __len__(self) -> int:
        return len(self._lines)

    def recall(self, edges: Sequence[Edge]) -> list[Decision] | None:
        """The earlier decisions on these edges, in the order in which they were made; None unless all are known, and of
        the same heads and neurons."""
        for edge in edges:
            line = self._lines.get(edge.name)
            if line is None or line["units"] != list(edge.writer.units):
                return None
        ordered = sorted(edges, key=lambda edge: self._place[edge.name])
        return [self._decision(edge) for edge in ordered] or None

    def _decision(self, edge: Edge) -> Decision:
        decision = Decision(edge, *(self._lines[edge.name][name] for name in _MEASURED))
        return replace(decision, order=None if decision.order is None else tuple(decision.order))

    def record(self, decisions: Sequence[Decision]) -> None:
        lines = [
            {
                "edge": decision.edge.name,
                "units": list(decision.edge.writer.units),
                **{name: getattr(decision, name) for name in _MEASURED},
            }
            for decision in decisions
        ]
        text, last = _chained(lines, self._last)
        with writing(self.path), self.path.open("a") as file:
            file.write(text)
        self._last = last

    def discard(self) -> None:
        """Removes the file, and the folder if the journal made it and it holds nothing else."""
        self.path.unlink(missing_ok=True)
        if self._made_folder and not any(self.path.parent.iterdir()):
            self.path.parent.rmdir()


def _has_contents(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _chained(lines: Sequence[dict[str, Any]], last: str) -> tuple[str, str]:
    """Their text behind a line with the digest `last`, and the digest of the last of them."""
    text = ""
    for line in lines:
        last = _link(line, last)
        text += json.dumps({**line, DIGEST: last}) + "\n"
    return text, last


def _link(line: dict[str, Any], last: str) -> str:
    return digest_of({**line, "behind": last})


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """The first line, with the key, and the whole decisions that follow it; nothing if the first line is damaged."""
    if not path.is_file():
        return []
    lines: list[dict[str, Any]] = []
    last = ""
    for text in path.read_text(errors="replace").splitlines():
        try:
            line = json.loads(text)
            check_depth(line)
            line = typed(line, _Line if lines else _Head)
            if "format" in (lines[0] if lines else line):
                last = _checked(line, last)
            else:
                check_digest(line)
        except (ValueError, RecursionError, DamagedError):
            break
        line.pop(DIGEST, None)
        lines.append(line)
    return lines


def _checked(line: dict[str, Any], last: str) -> str:
    """Its digest. Raises DamagedError where it is not the line that was written behind the last one."""
    if line.get(DIGEST) != (digest := _link(line, last)):
        raise DamagedError("it does not follow the line before it")
    return digest


ImageOrder = tuple[int, ...] | None


class SharedJournal:
    """The first process's journal, for all processes: all recall its decisions, it alone records.

    A decision's order is of one process's own images. The journal holds the orders of all processes, so that a resumed
    run comes to the same bits. If it is resumed with another number of processes, they mean nothing and are left out.
    """

    def __init__(self, journal: Journal, share: Share) -> None:
        """journal: the first process's own, or a copy of it with the same decisions."""
        self._journal, self._share = journal, share

    def recall(self, edges: Sequence[Edge]) -> list[Decision] | None:
        decisions = self._journal.recall(edges)
        return decisions and [replace(decision, order=self._own(decision.order)) for decision in decisions]

    def record(self, decisions: Sequence[Decision]) -> None:
        """To be called by all processes, with the same decisions."""
        shared = [replace(decision, order=self._of_all(decision.order)) for decision in decisions]
        if self._share.rank == 0:
            self._journal.record(shared)

    def _of_all(self, order: ImageOrder) -> ImageOrder:
        """Minus the number of processes, then for each the number of its images and their order; of a single process,
        just its order."""
        world = self._share.world
        if order is None or world == 1:
            return order
        sizes = torch.zeros(world, dtype=torch.int64)
        sizes[self._share.rank] = len(order)
        sizes = self._share.sum(sizes)
        rows = torch.zeros(world, int(sizes.max()), dtype=torch.int64)
        rows[self._share.rank, : len(order)] = torch.tensor(order)
        rows = self._share.sum(rows)
        packed = [-world]
        for size, row in zip(sizes.tolist(), rows.tolist(), strict=True):
            packed += [size, *row[:size]]
        return tuple(packed)

    def _own(self, order: ImageOrder) -> ImageOrder:
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
