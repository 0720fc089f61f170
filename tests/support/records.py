"""Records that vitfx wrote, to be edited: without the digest that would refuse the edit before anything else does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from vitfx.support.digests import DIGEST


def json_record(path: Path) -> dict[str, Any]:
    return _unsealed(json.loads(path.read_text(encoding="utf-8")))


def model_record(path: Path) -> dict[str, Any]:
    return _unsealed(torch.load(path, weights_only=True))


def _unsealed(record: Any) -> Any:
    if isinstance(record, dict):
        record.pop(DIGEST, None)
    return record
