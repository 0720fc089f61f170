"""Overlaps of circuits against sets written out."""

from __future__ import annotations

import json

import pytest

from vitfx.circuits.circuit import EMBED, Circuit, Writer
from vitfx.discovery.stability import Outcome
from vitfx.discovery.task_overlap import Alive, jaccard, overlaps, served

WRITERS = (
    Writer(EMBED),
    *(Writer("a0", head, (head,)) for head in range(4)),
    Writer("m0", 0, (0, 2)),
    Writer("m0", 1, (1, 3, 4, 5)),
    *(Writer("a1", head, (head,)) for head in range(2)),
    Writer("m1", 0, (0, 1)),
)


def alive(*names: str) -> Alive:
    dead = frozenset(writer for writer in WRITERS if writer.name not in names)
    return Alive.of(Outcome(Circuit((), 0.0), WRITERS, dead))


FIRST, SECOND = alive("a0.h0", "a0.h1", "m0.p0", "a1.h0"), alive("a0.h1", "a0.h2", "a1.h0", "m0.p0", "m0.p1", "m1.p0")


def test_heads_and_neurons() -> None:
    assert jaccard(FIRST, SECOND, "a") == 2 / 4
    # Of m0, a third of two paths against all of both, and of m1 nothing against one.
    assert jaccard(FIRST, SECOND, "m") == pytest.approx((2 * 2 / 6) / (2 + 1))
    assert jaccard(FIRST, FIRST, "m") == jaccard(alive(), alive(), "a") == 1
    assert Alive.from_json(json.loads(json.dumps(SECOND.to_json()))) == SECOND


def test_means_and_spreads_over_seeds() -> None:
    third = alive("a0.h0")
    (same, other), (mirrored, _) = overlaps([[FIRST, third], [SECOND, SECOND]], "a")
    assert same.mean == pytest.approx(1 / 3, abs=1e-6) and same.spread is None
    assert other == mirrored
    assert other.mean == pytest.approx((2 / 4 + 0) / 2) and other.spread == pytest.approx(0.5 / 2**0.5, abs=1e-6)
    assert overlaps([[FIRST], [SECOND]], "a")[0][0].mean == 1


def test_which_heads_live() -> None:
    assert served([FIRST, SECOND]) == {"a0.h0": 0.5, "a0.h1": 1, "a0.h2": 0.5, "a0.h3": 0, "a1.h0": 1, "a1.h1": 0}


@pytest.mark.parametrize("record", [{"a0": ["xyz", 4, 4]}, {"a0": ["f"]}, {"a0": [15, 4, 4]}])
def test_a_damaged_record(record: dict[str, list[object]]) -> None:
    with pytest.raises((TypeError, ValueError)):
        Alive.from_json(record)
