"""Circuits: writers, readers, the edges between them, and which of them were kept, at what KL divergence."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitfx.circuits.details import Details
from vitfx.support.digests import DIGEST, DamagedError, check_digest, digest_of
from vitfx.support.errors import UserError, in_a_line
from vitfx.support.reading import check_depth, read_text

FORMAT = "vitfx-circuit/2"
EMBED = "embed"
STREAM = "stream"
LOGITS = "logits"
PARTS = ("q", "k", "v")
GRANULARITIES = ("block", "head", "edge", "qkv")
"""What an edge is, see `vitfx.circuits.edge_graph`."""

EXACT, BOUND, GROUP, ATTRIBUTED, PROBE, LEARNED = "exact", "bound", "group", "attributed", "probe", "learned"
"""What a decision rests on.

exact: the score and the KL divergence were measured on all images.
bound: both are at least this much; measuring stopped once that was enough to keep the edge.
group: the edge was removed together with others; kl is that of the group, score the edge's share of its cost.
attributed: the score is an attribution alone.
probe: exact, of an edge drawn at random to check the attributions.
learned: the score is the probability that the edge's gate is open, after training.
"""


@dataclass(frozen=True)
class Writer:
    """What adds to the residual stream: the embedding, a head, an MLP path, or a whole sublayer."""

    sublayer: str  #: its name ("a3", "m3"), or "embed"
    index: int | None = 0  #: which head or path of the sublayer; None for all of it
    units: tuple[int, ...] = ()  #: its heads or hidden neurons: one head; the neurons of a path, ascending

    @property
    def name(self) -> str:
        """ "embed", "a3.h5" or "m3.p2"; "a3" for a whole sublayer."""
        if self.sublayer == EMBED or self.index is None:
            return self.sublayer
        return f"{self.sublayer}.{'h' if self.sublayer.startswith('a') else 'p'}{self.index}"


@dataclass(frozen=True)
class Reader:
    """What reads the residual stream: an MLP ("m3"), a head ("a3.h5"), its queries, keys or values ("a3.h5.q"), the
    classifier ("logits"), or, on the block and the head graph, everything behind the writer ("stream")."""

    sublayer: str = STREAM
    head: int | None = None
    part: str | None = None

    @property
    def name(self) -> str:
        head = "" if self.head is None else f".h{self.head}"
        return f"{self.sublayer}{head}" + ("" if self.part is None else f".{self.part}")

    @staticmethod
    def parse(name: str) -> Reader:
        """The reader of this name. Raises ValueError if no reader has such a name."""
        sublayer, *rest = name.split(".")
        if not rest:
            return Reader(sublayer)
        if not rest[0].startswith("h") or rest[1:] not in ([], ["q"], ["k"], ["v"]):
            raise ValueError(f"{name!r} is not a reader's name")
        return Reader(sublayer, int(rest[0][1:]), rest[1] if rest[1:] else None)


@dataclass(frozen=True)
class Edge:
    """writer → reader. Once it is removed, the reader sees the writer's ablation instead of its output."""

    writer: Writer
    reader: Reader = Reader()

    @property
    def name(self) -> str:
        return f"{self.writer.name}→{self.reader.name}"


@dataclass(frozen=True)
class Decision:
    """Whether an edge was kept, and why."""

    edge: Edge
    kept: bool
    score: float  #: by how much removing it raised D_KL(G‖H), nats an image; for ranking methods, their own score
    kl: float | None  #: D_KL(G‖H) with the edge removed; None where it was not measured
    basis: str = EXACT  #: what score and kl rest on, see `EXACT`
    attribution: float | None = None  #: the score that was forecast before it was measured
    #: Of a removed edge: the images by what they now add to D_KL(G‖H), most first. For resuming; not part of a circuit.
    order: tuple[int, ...] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Circuit:
    """The edges kept (H of the paper) and those removed, in the order in which they were decided."""

    decisions: tuple[Decision, ...]
    kl: float  #: D_KL(G‖H) of the whole circuit, nats an image, over the calibration images
    settings: Mapping[str, Any] = field(default_factory=dict)  #: that it was found with: method, τ, granularity, …
    origins: Mapping[str, str] = field(default_factory=dict)  #: fingerprints of model and images, versions
    details: Details = field(default_factory=Details)  #: what the method has to say about it

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
        """Each writer once, by name, then one decision a line. Equal circuits give equal bytes.

        Raises ValueError for NaN and infinity, which JSON lacks.
        """
        writers = {decision.edge.writer.name: decision.edge.writer for decision in self.decisions}
        record = {
            "format": FORMAT,
            "settings": dict(sorted(self.settings.items())),
            "origins": dict(sorted(self.origins.items())),
            "details": dict(sorted(self.details.items())),
            "kl": self.kl,
            "edges": {"kept": len(self.kept), "removed": len(self.removed)},
            "writers": {
                name: [writer.sublayer, writer.index, list(writer.units)] for name, writer in sorted(writers.items())
            },
            "columns": ["writer", "reader", "kept", "score", "kl", "basis", "attribution"],
        }
        head = json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        rows = ",\n".join(json.dumps(_row(decision), allow_nan=False) for decision in self.decisions)
        digest = digest_of({**record, "decisions": [_row(decision) for decision in self.decisions]})
        return f'{head[:-1]},"{DIGEST}":"{digest}","decisions":[\n{rows}\n]}}'

    @staticmethod
    def from_json(text: str) -> Circuit:
        """Raises UserError for anything but a vitfx circuit."""
        try:
            record = json.loads(text)
            check_depth(record)
            check_digest(record)
            if (form := record.get("format")) != FORMAT:
                raise UserError(
                    f"format {in_a_line(form)!r} is not {FORMAT}: give a circuit.json that this vitfx wrote"
                )
            writers = {name: _writer(*fields) for name, fields in record["writers"].items()}
            decisions = tuple(_decision(writers, *fields) for fields in record["decisions"])
            head = {name: _of(record[name], types) for name, types in _HEAD.items()}
            for origin in head["origins"].values():
                _of(origin, (str,))
            return Circuit(decisions, **head)
        except DamagedError as error:
            raise UserError(f"the circuit can't be trusted, for {error}: give one that vitfx wrote") from error
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
            raise UserError(
                f"the circuit can't be read: {in_a_line(repr(error))}; give a circuit.json that vitfx wrote"
            ) from error


_NUMBER, _NONE = (int, float), type(None)
_HEAD: dict[str, tuple[type, ...]] = {"kl": _NUMBER, "settings": (dict,), "origins": (dict,), "details": (dict,)}


def _writer(sublayer: Any, index: Any, units: Any) -> Writer:
    return Writer(
        _of(sublayer, (str,)), _of(index, (int, _NONE)), tuple(_of(unit, (int,)) for unit in _of(units, (list,)))
    )


def _decision(
    writers: Mapping[str, Writer],
    writer: Any,
    reader: Any,
    kept: Any,
    score: Any,
    kl: Any,
    basis: Any,
    attribution: Any,
) -> Decision:
    return Decision(
        Edge(writers[writer], Reader.parse(reader)),
        _of(kept, (bool,)),
        _of(score, _NUMBER),
        _of(kl, (*_NUMBER, _NONE)),
        _of(basis, (str,)),
        _of(attribution, (*_NUMBER, _NONE)),
    )


def _of(value: Any, types: tuple[type, ...]) -> Any:
    """The value, if it is of one of these types: a bool is no number here. Raises TypeError."""
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise TypeError(f"{value!r:.80} is of the wrong type")
    return value


def _row(decision: Decision) -> list[str | float | None]:
    edge = decision.edge
    measured = (decision.kept, decision.score, decision.kl, decision.basis, decision.attribution)
    return [edge.writer.name, edge.reader.name, *measured]


def read_circuit(path: Path) -> Circuit:
    """Raises UserError for anything but a circuit with edges."""
    text = read_text(path, "give a circuit.json that vitfx wrote")
    try:
        circuit = Circuit.from_json(text)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if not circuit.decisions:
        raise UserError(f"{path} has no edges: give a circuit from a discovery that finished")
    return circuit
