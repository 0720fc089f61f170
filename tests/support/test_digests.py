"""A record or an archive that is not as it was written is not believed."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from vitfx.support.digests import DIGEST, DamagedError, check_digest, check_zip, digest_of
from vitfx.support.errors import UserError
from vitfx.support.json_files import read_json, write_json

RECORD = {"b": [1, 2.5, None], "a": {"d": "ä", "c": True}}


def test_the_digest_is_of_the_contents_and_not_of_their_order() -> None:
    turned = {"a": {"c": True, "d": "ä"}, "b": [1, 2.5, None]}
    assert digest_of(turned) == digest_of(RECORD) == digest_of({**RECORD, DIGEST: "of before"})
    for other in ({**RECORD, "b": [2.5, 1, None]}, {**RECORD, "a": {"d": "ä", "c": 1}}, {**RECORD, "e": None}):
        assert digest_of(other) != digest_of(RECORD)


def test_only_a_record_with_its_own_digest_or_none_is_believed() -> None:
    check_digest(RECORD)
    check_digest({**RECORD, DIGEST: digest_of(RECORD)})
    for wrong in (digest_of({}), "", None):
        with pytest.raises(DamagedError, match="do not match its digest"):
            check_digest({**RECORD, DIGEST: wrong})


def test_a_file_is_read_by_its_own_format_alone(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_json(path, "vitfx-test/1", RECORD)
    assert read_json(path, "vitfx-test/1", "give one") == RECORD
    with pytest.raises(UserError, match=r"record.json is a vitfx-test/1, not a vitfx-test/2: give one"):
        read_json(path, "vitfx-test/2", "give one")
    path.write_text(json.dumps({**json.loads(path.read_text()), "b": 3}))
    with pytest.raises(UserError, match=r"record.json can't be trusted, .* digest, .*: give one"):
        read_json(path, "vitfx-test/1", "give one")


def archive_of_two(folder: Path) -> Path:
    path = folder / "archive"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("first", b"weights")
        archive.writestr("second", b"biases!")
    return path


def test_a_part_of_an_archive_that_was_changed_is_named(tmp_path: Path) -> None:
    path = archive_of_two(tmp_path)
    check_zip(path)
    path.write_bytes(path.read_bytes().replace(b"biases!", b"biases?"))
    with pytest.raises(DamagedError, match="its part second does not match its checksum"):
        check_zip(path)


def test_a_part_that_a_damaged_length_hides_is_missed(tmp_path: Path) -> None:
    """The second member's entry is taken for a comment on the first."""
    path = archive_of_two(tmp_path)
    contents = bytearray(path.read_bytes())
    comment = contents.index(b"PK\x01\x02") + 32
    contents[comment : comment + 2] = (100).to_bytes(2, "little")
    path.write_bytes(contents)
    with pytest.raises(DamagedError, match="of its 2 parts 1 can be found"):
        check_zip(path)


def test_an_archive_of_more_parts_than_its_end_can_count(tmp_path: Path) -> None:
    path = tmp_path / "archive"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("first", b"weights")
        archive.comment = b"of many parts"
    contents = bytearray(path.read_bytes())
    count = contents.rindex(b"PK\x05\x06") + 10
    contents[count : count + 2] = b"\xff\xff"
    path.write_bytes(contents)
    check_zip(path)
