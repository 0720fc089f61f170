"""Files are whole or not there, and folders are looked at before anything is written into them."""

from __future__ import annotations

import errno
import os
import tempfile
import time
from pathlib import Path

import pytest

from vitfx.support.errors import UserError
from vitfx.support.files import (
    JOURNAL,
    RECOVERY_STATE,
    TRAINING_STATE,
    UNFINISHED,
    WriteError,
    check_output,
    is_leftover,
    remove_results,
    temporary_folder,
    write_aside,
)


def test_contents_are_written_as_they_are(tmp_path: Path) -> None:
    write_aside(tmp_path / "a", "τ\n")
    write_aside(tmp_path / "b", b"\x00\r\n")
    assert (tmp_path / "a").read_bytes() == "τ\n".encode()
    assert (tmp_path / "b").read_bytes() == b"\x00\r\n"
    write_aside(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_disk_that_fills_up_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_aside(tmp_path / "a", "old")
    written = Path.write_bytes

    def full(path: Path, contents: bytes) -> int:
        written(path, contents[:1])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(WriteError, match=r"a can't be written \(No space left on device\): make room there"):
        write_aside(tmp_path / "a", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="No such file or directory"):
        write_aside(tmp_path / "none" / "a", "new")


@pytest.mark.parametrize("force", [True, False])
def test_free_folders(tmp_path: Path, force: bool) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun").mkdir()
    for name in (JOURNAL, "circuit.json"):
        (tmp_path / "begun" / name).write_text("")
    before = sorted(tmp_path.rglob("*"))
    for folder in (tmp_path / "new" / "folder", tmp_path / "empty", tmp_path / "begun"):
        check_output(folder, force=force, unfinished=JOURNAL)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", [JOURNAL, UNFINISHED, "pruned.pt"])
def test_a_part_of_a_first_write_is_no_result(tmp_path: Path, name: str) -> None:
    """A process that is killed in it leaves that, and the same command begins again."""
    (tmp_path / f".{name}.0123abcd.partial").write_text("{")
    check_output(tmp_path, force=False)
    (tmp_path / ".another.partial").write_text("{")
    with pytest.raises(UserError, match=r"is not empty \(it has .another.partial\)"):
        check_output(tmp_path, force=False)


def test_writers_of_one_target_do_not_touch_each_others_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second writes, renames and cleans up while the first has written but half."""
    written, used = Path.write_bytes, []

    def write(path: Path, contents: bytes) -> int:
        used.append(path.name)
        half = len(contents) // 2
        written(path, contents[:half])
        if len(used) == 1:
            write_aside(tmp_path / "table.json", "second, whole")
            assert (tmp_path / "table.json").read_text() == "second, whole"
        with path.open("ab") as file:
            return file.write(contents[half:])

    monkeypatch.setattr(Path, "write_bytes", write)
    write_aside(tmp_path / "table.json", "first, whole")
    assert (tmp_path / "table.json").read_text() == "first, whole"
    assert len(set(used)) == 2 and all(is_leftover(tmp_path / name) for name in used)
    assert [path.name for path in tmp_path.iterdir()] == ["table.json"]


def test_leftovers_of_killed_writers_go_once_nobody_can_still_be_writing(tmp_path: Path) -> None:
    old, young, foreign = (tmp_path / f".{name}.partial" for name in ("a[1].0123abcd", "a[1].89abcdef", "b.0123abcd"))
    for leftover in (old, young, foreign):
        leftover.write_text("{")
    two_days_ago = time.time() - 2 * 86400
    for leftover in (old, foreign):
        os.utime(leftover, (two_days_ago, two_days_ago))
    write_aside(tmp_path / "a[1]", "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == [young.name, foreign.name, "a[1]"]


def test_folders_with_something_in_them(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"is not empty \(it has notes.txt\): name another folder with `out`, or pass"):
        check_output(tmp_path, force=False)
    check_output(tmp_path, force=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", [JOURNAL, TRAINING_STATE, RECOVERY_STATE])
def test_what_a_run_goes_on_from_is_not_anothers_to_replace(tmp_path: Path, name: str) -> None:
    """Though the folder says that it is unfinished."""
    (tmp_path / UNFINISHED).touch()
    check_output(tmp_path, force=False)
    (tmp_path / name).touch()
    check_output(tmp_path, force=False, unfinished=name)
    check_output(tmp_path, force=True)
    with pytest.raises(UserError, match=f"has {name}, from which an interrupted run goes on: give that run's command"):
        check_output(tmp_path, force=False)


@pytest.mark.parametrize("force", [True, False])
@pytest.mark.parametrize(
    ("name", "reason"), [("file", "is a file"), ("file/a/b", "file is a file"), ("n" * 300, "File name too long")]
)
def test_folders_that_cannot_be(tmp_path: Path, name: str, reason: str, force: bool) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=reason):
        check_output(tmp_path / name, force=force)
    assert (tmp_path / "file").read_text() == "mine"


def test_only_results_are_removed(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text(name)
    remove_results(tmp_path, ["a", "c", "never"])
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_no_room_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with temporary_folder() as folder:
        (folder / "a").write_text("b")
    assert not folder.exists()
    (tmp_path / "file").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    with pytest.raises(WriteError, match=r"can't be made \(.*\): .* TMPDIR"), temporary_folder():
        pass
