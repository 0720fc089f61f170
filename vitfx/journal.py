"""The journal of a discovery: one line a decision, so that Ctrl-C or a crash loses none of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vitfx.circuit import Decision, Edge
from vitfx.errors import UserError


class FileJournal:
    """Appends decisions to a file and recalls those of an earlier run with the same key.

    key: everything that the decisions depend on. A journal with another key raises UserError, or, with force, is begun
    anew.
    """

    def __init__(self, path: Path, key: str, *, force: bool = False) -> None:
        self.path = path
        self._known: dict[str, dict[str, Any]] = {}
        lines = _whole_lines(path)
        if lines and lines[0].get("key") == key:
            self._known = {line["edge"]: line for line in lines[1:]}
            # The last line may have been cut off: what is known is written again, whole.
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        elif lines and not force:
            raise UserError(
                f"{path.parent} holds a run of {len(lines) - 1} decisions that was broken off, with other settings, model "
                "or images: give those to go on with it, name another folder with --out, or pass --force to begin anew"
            )
        else:
            path.write_text(json.dumps({"key": key}) + "\n")

    def __len__(self) -> int:
        return len(self._known)

    def recall(self, edge: Edge) -> Decision | None:
        line = self._known.get(edge.name)
        return None if line is None else Decision(edge, line["kept"], line["score"], line["kl"])

    def record(self, decision: Decision) -> None:
        line = {"edge": decision.edge.name, "kept": decision.kept, "score": decision.score, "kl": decision.kl}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines
