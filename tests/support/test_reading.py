"""vitfx.support.reading: files are read whole or refused in a sentence; what may never end is not begun."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from vitfx.support.errors import UserError
from vitfx.support.reading import MOST_DEPTH, check_depth, check_file, read_bytes, read_json_value, read_text


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def test_whole_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes("ü".encode())
    assert read_bytes(tmp_path / "a", "") == b"\xc3\xbc" and read_text(tmp_path / "a", "") == "ü"
    assert read_text(tmp_path / "a", "", encoding="ascii", errors="surrogateescape") == "\udcc3\udcbc"
    (tmp_path / "a").write_text(nested(MOST_DEPTH))
    assert read_json_value(tmp_path / "a", "") == json.loads(nested(MOST_DEPTH))
    (tmp_path / "link").symlink_to("a")
    check_file(tmp_path / "link", "")


def test_what_is_no_file_is_not_begun(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    (tmp_path / "nowhere").symlink_to("absent")
    for name, why in (("pipe", "a pipe or a device and no file"), ("zeros", "a pipe or a device and no file")):
        with pytest.raises(UserError, match=rf"{name} is {why}: give another"):
            read_bytes(tmp_path / name, "give another")
    with pytest.raises(UserError, match="is a folder and no file: give another"):
        read_text(tmp_path, "give another")
    for name in ("nowhere", "absent", "pipe/inside"):
        with pytest.raises(UserError, match=r"can't be read \((No such file|Not a directory).*\): give another"):
            read_json_value(tmp_path / name, "give another")


def test_files_that_are_too_large(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert read_bytes(tmp_path / "a", "", most=5) == b"12345"
    with pytest.raises(UserError, match=r"a has 5 bytes, more than any such file \(4\): give another"):
        read_bytes(tmp_path / "a", "give another", most=4)


@pytest.mark.parametrize(
    ("contents", "why"),
    [
        (b"\xff\xfe", "is not text"),
        (b"{", "is not JSON"),
        (b"1" * 5000, "is not JSON"),
        (nested(MOST_DEPTH + 1).encode(), "is not JSON .it is nested more than 100 deep"),
        (b'{"a":' * MOST_DEPTH + b"[0]" + b"}" * MOST_DEPTH, "is not JSON .it is nested more than 100 deep"),
        (nested(100_000).encode(), "is not JSON"),
    ],
)
def test_what_is_no_json(contents: bytes, why: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(contents)
    with pytest.raises(UserError, match=why):
        read_json_value(tmp_path / "a", "give another")


def test_depth_of_wide_values_is_found() -> None:
    check_depth([[number] for number in range(10_000)])
    with pytest.raises(ValueError, match="nested more than"):
        check_depth([0, {"a": json.loads(nested(MOST_DEPTH))}])
