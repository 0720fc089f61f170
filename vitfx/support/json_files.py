"""JSON files that say what they are, by their `format`, and prove it, by their digest."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitfx.support.digests import DIGEST, DamagedError, check_digest, digest_of
from vitfx.support.errors import UserError, in_a_line
from vitfx.support.files import write_aside
from vitfx.support.reading import read_json_value


def json_text(format: str, record: Mapping[str, Any]) -> str:
    """format: such as "vitfx-report/1", the first key. Raises ValueError for NaN and infinity, which JSON lacks."""
    sealed = {"format": format, **record}
    sealed[DIGEST] = digest_of(sealed)
    text = json.dumps(sealed, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    # Bytes of a file's name that are not UTF-8, which Python holds as lone surrogates.
    return re.sub("[\ud800-\udfff]", lambda lone: f"\\u{ord(lone[0]):04x}", text)


def write_json(path: Path, format: str, record: Mapping[str, Any]) -> None:
    """Raises WriteError, and ValueError as `json_text` does."""
    write_aside(path, json_text(format, record))


def read_json(path: Path, format: str, advice: str) -> dict[str, Any]:
    """The record that `write_json` wrote, without its `format`; see `read_any_json`."""
    return read_any_json(path, (format,), advice)[1]


def read_any_json(path: Path, formats: Sequence[str], advice: str) -> tuple[str, dict[str, Any]]:
    """The file's format, which is one of `formats`, and its record without it.

    advice: ends the sentence of the error, such as "give a report.json that vitfx wrote". Raises UserError where the
    file can't be read, is no JSON object, has another format, or is not as it was written.
    """
    format, record = read_sealed(path, advice)
    if format is None or format not in formats:
        kind = "of no format" if format is None else f"a {in_a_line(format)}"
        raise UserError(f"{path} is {kind}, not a {' or a '.join(formats)}: {advice}")
    record.pop(DIGEST, None)
    return format, record


def read_sealed(path: Path, advice: str) -> tuple[str | None, dict[str, Any]]:
    """The file's format, None where it says none, and its record without it but with its digest. Raises UserError, see
    `read_any_json`."""
    record = read_json_value(path, advice)
    try:
        check_digest(record if isinstance(record, dict) else {})
    except DamagedError as error:
        raise UserError(f"{path} can't be trusted, for {error}: {advice}") from error
    if not isinstance(record, dict) or not isinstance(record.get("format"), str):
        return None, {}
    return record.pop("format"), record
