"""Circuits: writers, readers, the edges between them, and which of them were kept, at what KL divergence."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitfx.support.errors import UserError

FORMAT = "vitfx-circuit/2"
EMBED = "embed"
STREAM = "stream"
LOGITS = "logits"
PARTS = ("q", "k", "v")

EXACT, BOUND, GROUP, ATTRIBUTED, PROBE = "exact", "bound", "group", "attributed", "probe"
"""What a decision rests on, see `Decision.basis`."""


@dataclass(frozen=True)
class Writer:
    """What adds to the residual stream.

    sublayer: "embed", or the sublayer's name ("a3", "m3"). index: which head or path of it, None for all of it.
    units: the heads or hidden neurons that it is made of (one head; a path's neurons, ascending).
    """

    sublayer: str
    index: int | None = 0
    units: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """ "embed", "a3.h5" or "m3.p2"; "a3" for a whole sublayer."""
        if self.sublayer == EMBED or self.index is None:
            return self.sublayer
        return f"{self.sublayer}.{'h' if self.sublayer.startswith('a') else 'p'}{self.index}"


@dataclass(frozen=True)
class Reader:
    """What reads the residual stream: an MLP ("m3"), a head ("a3.h5"), its queries, keys or values ("a3.h5.q"), the
    classifier ("logits"), or, on the block and the head graph, all that comes behind ("stream")."""

    sublayer: str = STREAM
    head: int | None = None
    part: str | None = None

    @property
    def name(self) -> str:
        head = "" if self.head is None else f".h{self.head}"
        return f"{self.sublayer}{head}" + ("" if self.part is None else f".{self.part}")

    @staticmethod
    def parse(name: str) -> Reader:
        """The reader of this name. Raises ValueError for anything else."""
        sublayer, *rest = name.split(".")
        if not rest:
            return Reader(sublayer)
        if not rest[0].startswith("h") or rest[1:] not in ([], ["q"], ["k"], ["v"]):
            raise ValueError(f"{name!r} is not a reader's name")
        return Reader(sublayer, int(rest[0][1:]), rest[1] if rest[1:] else None)


@dataclass(frozen=True)
class Edge:
    """writer → reader. Removing it makes the reader see the writer's ablation instead of its output."""

    writer: Writer
    reader: Reader = Reader()

    @property
    def name(self) -> str:
        return f"{self.writer.name}→{self.reader.name}"


@dataclass(frozen=True)
class Decision:
    """What a scorer made of an edge.

    score: by how much removing it raised D_KL(G‖H), in nats an image; for the methods that rank, their own score.
    kl: D_KL(G‖H) once the edge was removed; None where it was not measured. basis: "exact", both were measured on all
    images; "bound", both are at least this much, the rest was not needed to keep the edge; "group", the edge went with
    others at once, kl is theirs, score its share by attribution; "attributed", the score is an attribution alone;
    "probe", exact, of an edge that was drawn at random to tell how far attributions can be believed.
    attribution: what the score was predicted to be before it was measured, where that was done. order: of a removed
    edge, the images by what they now add to D_KL(G‖H), most first; for going on after it, and no part of a circuit.
    """

    edge: Edge
    kept: bool
    score: float
    kl: float | None
    basis: str = EXACT
    attribution: float | None = None
    order: tuple[int, ...] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Circuit:
    """The edges kept (H of the paper) and those removed, in the order of the decisions.

    kl: D_KL(G‖H) of the whole circuit in nats an image, over the calibration images. settings: what made it: method, τ,
    granularity, ablation, corruption, samples, seed. origins: fingerprints of model and data, versions. details: what a
    method has to say about itself, such as its calibration; JSON-ready.
    """

    decisions: tuple[Decision, ...]
    kl: float
    settings: Mapping[str, Any] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def removed(self) -> tuple[Edge, ...]:
        return tuple(decision.edge for decision in self.decisions if not decision.kept)

    @property
    def kept(self) -> tuple[Edge, ...]:
        return tuple(decision.edge for decision in self.decisions if decision.kept)

    def fingerprint(self) -> str:
        """sha256 of the JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """The same circuit gives the same bytes. Writers once, by name, then a line a decision."""
        writers = {one.edge.writer.name: one.edge.writer for one in self.decisions}
        record = {
            "format": FORMAT,
            "settings": dict(sorted(self.settings.items())),
            "origins": dict(sorted(self.origins.items())),
            "details": dict(sorted(self.details.items())),
            "kl": self.kl,
            "edges": {"kept": len(self.kept), "removed": len(self.removed)},
            "writers": {name: [one.sublayer, one.index, list(one.units)] for name, one in sorted(writers.items())},
            "columns": ["writer", "reader", "kept", "score", "kl", "basis", "attribution"],
        }
        lines = [
            json.dumps(
                [one.edge.writer.name, one.edge.reader.name, one.kept, one.score, one.kl, one.basis, one.attribution]
            )
            for one in self.decisions
        ]
        head = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
        return head[:-1] + ',"decisions":[\n' + ",\n".join(lines) + "\n]}"

    @staticmethod
    def from_json(text: str) -> Circuit:
        """Raises UserError for anything but a vitfx circuit."""
        try:
            record = json.loads(text)
            if record.get("format") != FORMAT:
                raise UserError(
                    f"format {record.get('format')!r} is not {FORMAT}: give a circuit.json that this vitfx wrote"
                )
            writers = {name: Writer(one[0], one[1], tuple(one[2])) for name, one in record["writers"].items()}
            decisions = tuple(
                Decision(Edge(writers[writer], Reader.parse(reader)), *measured)
                for writer, reader, *measured in record["decisions"]
            )
            return Circuit(decisions, record["kl"], record["settings"], record["origins"], record["details"])
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise UserError(f"the circuit can't be read: {error!r}; give a circuit.json that vitfx wrote") from error


def read_circuit(path: Path) -> Circuit:
    """Raises UserError for anything but a circuit with edges."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}): give a circuit.json that vitfx wrote") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text: give a circuit.json that vitfx wrote") from error
    try:
        circuit = Circuit.from_json(text)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if not circuit.decisions:
        raise UserError(f"{path} has no edges: give a circuit of a whole run")
    return circuit
