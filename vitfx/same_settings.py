"""Whether what an earlier run left is of the same command, so that it can be gone on with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitfx.support.errors import UserError


def check_same(path: Path, what: str, earlier: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raises UserError, naming the first difference. path: the file that `earlier` was read from, a record of `what`.
    settings: of this run, JSON-ready."""
    wanted = json.loads(json.dumps(settings))
    for name in sorted(wanted.keys() | earlier.keys()):
        if wanted.get(name) != earlier.get(name):
            raise UserError(
                f"{path} is of another {what} (its {name} is {earlier.get(name)}, not {wanted.get(name)}): name "
                "another folder with --out, or pass --force to replace it"
            )
