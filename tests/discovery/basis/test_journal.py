"""The journal: what was recorded whole is recalled, whatever happened to the end of the file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from vitfx.circuits.circuit import Decision, Edge, Writer
from vitfx.discovery.basis.journal import FileJournal
from vitfx.support.digests import DIGEST, digest_of
from vitfx.support.errors import UserError
from vitfx.support.files import WriteError

EDGES = [Edge(Writer("m1", index, (2 * index, 2 * index + 1))) for index in range(3)]
DECISIONS = [Decision(edge, index != 1, 0.1 * index + 1e-17, 1 / (index + 3)) for index, edge in enumerate(EDGES)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Of a journal with three decisions under the key "key"."""
    path = tmp_path / "run" / "journal.jsonl"
    journal = FileJournal(path, "key")
    assert len(journal) == 0
    for decision in DECISIONS:
        journal.record([decision])
    return path


def recalled(journal: FileJournal, edges: Sequence[Edge] = EDGES) -> list[Decision | None]:
    """Edge by edge."""
    return [known[0] if (known := journal.recall([edge])) else None for edge in edges]


def test_decisions_are_recalled_to_the_last_bit(path: Path) -> None:
    again = FileJournal(path, "key")
    assert len(again) == 3
    assert recalled(again) == DECISIONS
    assert again.recall([Edge(Writer("a0", 0, (0,)))]) is None


@pytest.mark.parametrize("cut", [1, 2, 30])
def test_a_line_that_was_cut_off_is_decided_again(path: Path, cut: int) -> None:
    path.write_text(path.read_text()[:-cut])
    again = FileJournal(path, "key")
    expected = DECISIONS if cut == 1 else DECISIONS[:2]
    assert recalled(again, EDGES[: len(expected)]) == expected
    assert len(again) == len(expected)
    again.record([DECISIONS[2]])
    assert FileJournal(path, "key").recall([EDGES[2]]) == [DECISIONS[2]]


@pytest.mark.parametrize("rubbish", ["7\n", "[]\n", '{"edge": "m1.p2→stream"}\n', "\x00\x00\x00", "\udcff"])
def test_rubbish_at_the_end_is_dropped(path: Path, rubbish: str) -> None:
    with path.open("a", errors="surrogateescape") as file:
        file.write(rubbish)
    again = FileJournal(path, "key")
    assert recalled(again) == DECISIONS


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: line[:-9],
        lambda line: line.replace("0.1", "0.2", 1),
        lambda line: '{"note": "of somebody"}',
        lambda line: "",
        lambda line: resealed({**json.loads(line), "score": 0.25}),
        lambda line: json.dumps({name: value for name, value in json.loads(line).items() if name != DIGEST}),
    ],
    ids=["cut off", "changed", "another record", "empty", "changed with its digest", "without a digest"],
)
def test_behind_a_broken_line_nothing_is_believed(path: Path, damage: Callable[[str], str]) -> None:
    """Later decisions rest on it."""
    key, first, second, third = path.read_text().splitlines()
    path.write_text("\n".join([key, first, damage(second), third, ""]))
    assert damage(second) != second
    assert recalled(FileJournal(path, "key")) == [DECISIONS[0], None, None]
    assert len(path.read_text().splitlines()) == 2


def resealed(record: dict[str, object]) -> str:
    """With the digest that it has alone, without the lines before it."""
    return json.dumps({**record, DIGEST: digest_of(record)})


@pytest.mark.parametrize("places", [(0, 2, 3), (0, 1, 1, 2, 3), (0, 1, 3, 2), (0, 3), (0, 2, 1, 3)])
def test_lines_that_are_lost_doubled_or_moved_are_noticed(path: Path, places: tuple[int, ...]) -> None:
    """Each is whole, and what stands before the first that is in a wrong place is what was decided first."""
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[place] for place in places))
    right = next(count for count, place in enumerate((*places, -1)) if place != count) - 1
    again = FileJournal(path, "key")
    assert len(again) == right
    again.record(DECISIONS[right:])
    assert recalled(FileJournal(path, "key")) == DECISIONS


@pytest.mark.parametrize("sealed", [True, False])
def test_a_journal_of_an_older_version_is_gone_on_with(path: Path, sealed: bool) -> None:
    """Without a chain; what is recorded behind it then has one."""
    records = [json.loads(line) for line in path.read_text().splitlines()[:3]]
    plain = [{name: value for name, value in line.items() if name not in (DIGEST, "format")} for line in records]
    path.write_text("\n".join(resealed(line) if sealed else json.dumps(line) for line in plain) + "\n")
    again = FileJournal(path, "key")
    assert recalled(again) == [*DECISIONS[:2], None]
    again.record(DECISIONS[2:])
    lines = path.read_text().splitlines(keepends=True)
    assert recalled(FileJournal(path, "key")) == DECISIONS
    path.write_text("".join([lines[0], *lines[2:]]))
    assert len(FileJournal(path, "key")) == 0


def test_a_damaged_line_of_an_older_version_is_not_believed(path: Path) -> None:
    first, changed = ({"edge": edge.name, "units": list(edge.writer.units), "kept": True, "score": 1.0, "kl": None,
                       "basis": "exact", "attribution": None, "order": None} for edge in EDGES[:2])  # fmt: skip
    text = "\n".join(map(resealed, ({"key": "key"}, first, changed))) + "\n"
    path.write_text(text)
    assert len(FileJournal(path, "key")) == 2
    path.write_text(text[:-200] + text[-200:].replace("true", "false"))
    assert len(FileJournal(path, "key")) == 1


def test_a_journal_cut_off_anywhere_recalls_what_was_decided_first(path: Path) -> None:
    whole = path.read_bytes()
    head = whole.index(b"\n")
    for length in range(head, len(whole), 11):
        path.write_bytes(whole[:length])
        again = FileJournal(path, "key")
        count = len(again)
        assert recalled(again, EDGES[:count]) == DECISIONS[:count]
        again.record(DECISIONS[count:])
        assert path.read_bytes() == whole


def test_a_crash_while_the_journal_is_opened_loses_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            FileJournal(path, "key")
    assert len(FileJournal(path, "key")) == 3


def test_an_edge_of_other_neurons_is_decided_again(path: Path) -> None:
    """The same name can stand for another group where the groups were made anew."""
    again = FileJournal(path, "key")
    other = Edge(Writer("m1", 0, (0, 4)))
    assert other.name == EDGES[0].name
    assert again.recall([other]) is None
    again.record([Decision(other, True, 1.0, 2.0)])
    assert FileJournal(path, "key").recall([other]) == [Decision(other, True, 1.0, 2.0)]


def test_a_sublayer_is_recalled_whole_or_not_at_all(path: Path) -> None:
    others = [Edge(Writer("m1", 1, (2, 9))), Edge(Writer("m1", 2, (4, 5)))]
    mixed = [EDGES[0], *others]
    assert FileJournal(path, "key").recall(EDGES) == DECISIONS
    assert FileJournal(path, "key").recall(mixed) is None
    assert FileJournal(path, "key").recall([*EDGES, Edge(Writer("m2"))]) is None
    # What is decided again is recalled in its new order.
    again = [Decision(edge, False, 0.5, 0.25) for edge in reversed(mixed)]
    FileJournal(path, "key").record(again)
    assert FileJournal(path, "key").recall(mixed) == again


@pytest.mark.parametrize("contents", [None, "notes\n", "[]\n"])
def test_what_another_run_left_is_not_overwritten(path: Path, contents: str | None) -> None:
    if contents is not None:
        path.write_text(contents)
    before = path.read_text()
    with pytest.raises(UserError, match="another place with `out`, or `force` to begin anew"):
        FileJournal(path, "another key")
    assert path.read_text() == before
    forced = FileJournal(path, "another key", force=True)
    assert len(forced) == 0
    assert keys(path) == ["another key"]


def keys(path: Path) -> list[str]:
    """Of all lines."""
    return [json.loads(line)["key"] for line in path.read_text().splitlines()]


def test_a_run_that_had_decided_nothing_is_in_nobodys_way(path: Path) -> None:
    path.write_text('{"key": "other"}\n')
    assert len(FileJournal(path, "another key")) == 0
    assert keys(path) == ["another key"]


def test_force_goes_on_with_the_same_run(path: Path) -> None:
    assert len(FileJournal(path, "key", force=True)) == 3


def test_an_empty_file_is_begun(tmp_path: Path) -> None:
    (tmp_path / "journal").touch()
    assert len(FileJournal(tmp_path / "journal", "key")) == 0
    assert keys(tmp_path / "journal") == ["key"]


def test_discarding_takes_the_folder_only_where_the_journal_made_it(tmp_path: Path) -> None:
    FileJournal(tmp_path / "made" / "journal", "key").discard()
    assert not (tmp_path / "made").exists()
    (tmp_path / "there").mkdir()
    FileJournal(tmp_path / "there" / "journal", "key").discard()
    assert list((tmp_path / "there").iterdir()) == []
    used = FileJournal(tmp_path / "used" / "journal", "key")
    (tmp_path / "used" / "result").write_text("new")
    used.discard()
    assert [one.name for one in (tmp_path / "used").iterdir()] == ["result"]


def test_a_place_that_takes_no_files(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(WriteError, match="can't be written"):
        FileJournal(tmp_path / "file" / "run" / "journal", "key")


@pytest.mark.parametrize("change", [{"edge": []}, {"units": 3}, {"kept": "false"}, {"kl": []}, {"order": 2.5}])
def test_a_line_of_other_types_ends_the_journal(path: Path, change: dict[str, object]) -> None:
    """With the right digest."""
    head, first, second, _ = (json.loads(line) for line in path.read_text().splitlines())
    record = {**second, **change}
    record[DIGEST] = digest_of({**record, "behind": first[DIGEST]})
    path.write_text("".join(json.dumps(line) + "\n" for line in (head, first, record)))
    journal = FileJournal(path, "key")
    assert len(journal) == 1 and journal.recall(EDGES[:1]) == DECISIONS[:1]
