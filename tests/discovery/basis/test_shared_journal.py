"""One journal for several processes, without any of them."""

from __future__ import annotations

from pathlib import Path

from vitfx.circuits.circuit import Decision, Edge, Writer
from vitfx.discovery.basis.journal import FileJournal, SharedJournal
from vitfx.support.processes import Alone


def test_orders_of_another_number_of_processes_are_left_out(tmp_path: Path) -> None:
    class Of(Alone):
        def __init__(self, rank: int, world: int) -> None:
            self.rank, self.world = rank, world

    def decision(order: tuple[int, ...] | None) -> Decision:
        return Decision(Edge(Writer("m0", 0, (1,))), False, 1.0, 2.0, order=order)

    def recalled(order: tuple[int, ...], share: Alone) -> tuple[int, ...] | None:
        path = tmp_path / "journal"
        path.unlink(missing_ok=True)
        FileJournal(path, "key").record([decision(order)])
        found = SharedJournal(FileJournal(path, "key"), share).recall([decision(None).edge])
        assert found is not None
        return found[0].order

    packed = (-2, 3, 2, 0, 1, 2, 1, 0)
    assert recalled(packed, Of(0, 2)) == (2, 0, 1)
    assert recalled(packed, Of(1, 2)) == (1, 0)
    assert recalled(packed, Alone()) is None
    assert recalled(packed, Of(0, 3)) is None
    assert recalled((2, 0, 1), Alone()) == (2, 0, 1)
    assert recalled((2, 0, 1), Of(0, 2)) is None


def test_only_the_first_process_records(tmp_path: Path) -> None:
    class Second(Alone):
        rank, world = 1, 2

    decision = Decision(Edge(Writer("m0", 0, (1,))), True, 1.0, 2.0)
    journal = FileJournal(tmp_path / "journal", "key")
    SharedJournal(journal, Second()).record([decision])
    assert len(FileJournal(tmp_path / "journal", "key")) == 0
    SharedJournal(journal, Alone()).record([decision])
    again = SharedJournal(FileJournal(tmp_path / "journal", "key"), Second())
    assert again.recall([decision.edge]) == [decision]
