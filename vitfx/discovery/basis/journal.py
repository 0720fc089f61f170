"""The journal of a discovery: one line a decision, so that Ctrl-C or a crash loses none of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitfx.circuits.circuit import Decision, Edge
from vitfx.support.errors import UserError
from vitfx.support.files import write_aside, writing

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
