"""How much of one task's circuit another's has: heads and MLP paths that live for both, and by how much seeds differ.

Heads are compared by their place and paths by their neurons, which every run groups anew, as in `stability`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean, stdev
from typing import Any

from vitfx.circuits.circuit import EMBED
from vitfx.discovery.stability import Outcome

KINDS = {"a": "heads", "m": "paths"}
"""By the first letter of a sublayer's name, what its writers are."""


@dataclass(frozen=True)
class Alive:
    """The heads and neurons that live in a circuit."""

    bits: Mapping[str, int]  #: by sublayer, one for each head or neuron
    sizes: Mapping[str, tuple[int, int]]  #: by sublayer, how many heads or neurons it has, and how many writers

    @staticmethod
    def of(outcome: Outcome) -> Alive:
        bits: dict[str, int] = {}
        sizes: dict[str, tuple[int, int]] = {}
        for writer in outcome.writers:
            if writer.sublayer == EMBED:
                continue
            own = 0 if writer in outcome.dead else sum(1 << unit for unit in writer.units)
            units, writers = sizes.get(writer.sublayer, (0, 0))
            sizes[writer.sublayer] = units + len(writer.units), writers + 1
            bits[writer.sublayer] = bits.get(writer.sublayer, 0) | own
        return Alive(bits, sizes)

    def to_json(self) -> dict[str, list[Any]]:
        """By sublayer, its bits in hexadecimal and its sizes."""
        return {name: [f"{bits:x}", *self.sizes[name]] for name, bits in self.bits.items()}

    @staticmethod
    def from_json(record: Mapping[str, Sequence[Any]]) -> Alive:
        """Raises TypeError and ValueError for what `to_json` did not make."""
        bits = {name: int(own, 16) for name, (own, _, _) in record.items()}
        return Alive(bits, {name: (int(units), int(writers)) for name, (_, units, writers) in record.items()})


def jaccard(left: Alive, right: Alive, kind: str) -> float:
    """|both| / |either| of the heads, kind "a", or the paths, "m"; 1 where neither has any."""
    both = either = 0.0
    for name, bits in left.bits.items():
        if name.startswith(kind):
            units, writers = left.sizes[name]
            both += writers / units * (bits & right.bits[name]).bit_count()
            either += writers / units * (bits | right.bits[name]).bit_count()
    return both / either if either else 1.0


@dataclass(frozen=True)
class Overlap:
    """Of two tasks, or of a task with itself under other seeds."""

    mean: float  #: Jaccard
    spread: float | None  #: its standard deviation over seeds, None for fewer than two values


def overlaps(tasks: Sequence[Sequence[Alive]], kind: str) -> list[list[Overlap]]:
    """Of every two tasks, seed by seed; of a task with itself, of every two seeds.

    tasks: the runs of each, seed by seed.
    """
    return [[_overlap(left, right, kind) for right in tasks] for left in tasks]


def _overlap(left: Sequence[Alive], right: Sequence[Alive], kind: str) -> Overlap:
    pairs = combinations(left, 2) if left is right else zip(left, right, strict=True)
    values = [jaccard(*pair, kind) for pair in pairs] or [1.0]
    return Overlap(round(fmean(values), 6), round(stdev(values), 6) if len(values) > 1 else None)


def served(runs: Sequence[Alive]) -> dict[str, float]:
    """By head, such as "a3.h5", the share of runs in which it lives."""
    return {
        f"{name}.h{head}": round(fmean(run.bits[name] >> head & 1 for run in runs), 6)
        for name, (units, _) in runs[0].sizes.items()
        if name.startswith("a")
        for head in range(units)
    }
