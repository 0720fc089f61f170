"""Digests by which a file proves itself: a flipped bit or an edit by hand is one sentence, never another result."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitfx.support.errors import in_a_line

DIGEST = "digest"
"""The key under which a JSON record has the digest of all its other fields."""
_END, _END_BYTES, _MOST_COMMENT = b"PK\x05\x06", 22, 2**16 - 1
"""What a zip file's last record begins with, its length, and that of the comment that may follow."""
_UNCOUNTED = 0xFFFF
"""The number of members in it where they are more, which another record says."""


class DamagedError(Exception):
    """What a file holds is not what was written to it; the sentence says what differs, and neither file nor advice."""


def digest_of(record: Mapping[str, Any]) -> str:
    """sha256 of a JSON record without its digest, however its text is laid out and its keys are ordered."""
    text = json.dumps({name: value for name, value in record.items() if name != DIGEST})
    # Only what was read back has the types and keys that a reader will see.
    canonical = json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def check_digest(record: Mapping[str, Any]) -> None:
    """Raises DamagedError where a record is not as it was written; one without a digest, as vitfx 0.5 wrote them, is
    taken as it is."""
    if DIGEST in record and record[DIGEST] != digest_of(record):
        raise DamagedError("its contents do not match its digest, so it was damaged or edited")


def check_zip(path: Path) -> None:
    """Compares every member of a zip file, such as torch.save writes, with its checksum, and their number with the
    one that the file ends with: a length that is damaged can hide members. Raises DamagedError."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged, members, counted = archive.testzip(), len(archive.infolist()), _counted(path)
    except Exception as error:  # A damaged archive breaks in as many ways as it has parts.
        raise DamagedError(f"its zip structure is damaged ({in_a_line(error)})") from error
    if damaged is not None:
        raise DamagedError(f"its part {damaged} does not match its checksum")
    if counted not in (members, _UNCOUNTED):
        raise DamagedError(f"of its {counted} parts {members} can be found")


def _counted(path: Path) -> int:
    """The number of members that the archive's end names."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _END_BYTES - _MOST_COMMENT))
        end = file.read()
    at = end.rindex(_END) + 10
    return int.from_bytes(end[at : at + 2], "little")
