"""Circuits: writers, readers, the edges between them, and which of them were kept, at what KL divergence."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from vitfx.errors import UserError

FORMAT = "vitfx-circuit/1"
EMBED = "embed"
STREAM = "stream"


@dataclass(frozen=True)
class Writer:
    """What adds to the residual stream.

    sublayer: "embed", or the sublayer's name ("a3", "m3"). index: which head or path of it. units: the heads or hidden
    neurons that it is made of (one head; a path's neurons, ascending).
    """

    sublayer: str
    index: int = 0
    units: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """ "embed", "a3.h5" or "m3.p2"."""
        if self.sublayer == EMBED:
            return EMBED
        return f"{self.sublayer}.{'h' if self.sublayer.startswith('a') else 'p'}{self.index}"


@dataclass(frozen=True)
class Reader:
    """What reads the residual stream. On the head graph there is one: all that comes behind, called "stream"."""

    name: str = STREAM


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

    score: by how much removing it raised D_KL(G‖H), in nats an image. kl: D_KL(G‖H) once the edge was removed.
    """

    edge: Edge
    kept: bool
    score: float
    kl: float


@dataclass(frozen=True)
class Circuit:
    """The edges kept (H of the paper) and those removed, in the order of the decisions.

    kl: D_KL(G‖H) of the whole circuit in nats an image, over the calibration images. settings: what made it: method, τ,
    ablation, corruption, samples, seed. origins: fingerprints of model and data, versions.
    """

    decisions: tuple[Decision, ...]
    kl: float
    settings: Mapping[str, Any] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)

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
        """The same circuit gives the same bytes."""
        record = {
            "format": FORMAT,
            "settings": dict(sorted(self.settings.items())),
            "origins": dict(sorted(self.origins.items())),
            "kl": self.kl,
            "edges": {"kept": len(self.kept), "removed": len(self.removed)},
            "decisions": [
                {
                    "writer": asdict(decision.edge.writer),
                    "reader": decision.edge.reader.name,
                    "kept": decision.kept,
                    "score": decision.score,
                    "kl": decision.kl,
                }
                for decision in self.decisions
            ],
        }
        return json.dumps(record, ensure_ascii=False, indent=None, separators=(",", ":")).replace(
            '{"writer"', '\n{"writer"'
        )

    @staticmethod
    def from_json(text: str) -> Circuit:
        """Raises UserError for anything but a vitfx circuit."""
        try:
            record = json.loads(text)
            if record.get("format") != FORMAT:
                raise UserError(
                    f"format {record.get('format')!r} is not {FORMAT}: give a circuit.json that vitfx wrote"
                )
            decisions = tuple(
                Decision(Edge(_writer(one["writer"]), Reader(one["reader"])), one["kept"], one["score"], one["kl"])
                for one in record["decisions"]
            )
            return Circuit(decisions, record["kl"], record["settings"], record["origins"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"the circuit can't be read: {error!r}; give a circuit.json that vitfx wrote") from error


def _writer(record: dict[str, Any]) -> Writer:
    return Writer(record["sublayer"], record["index"], tuple(record["units"]))
