"""What vitfx's own model files hold, checked field by field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from vitfx.images.preprocess import Preprocess
from vitfx.models.weights import fingerprint, unwrap_state_dict
from vitfx.support.digests import DIGEST, digest_of
from vitfx.support.errors import UserError, in_a_line

CHECKPOINT_FORMAT = "vitfx-checkpoint/1"
ARTIFACT_FORMAT = "vitfx-artifact/1"


@dataclass(frozen=True)
class ModelRecord:
    """What a checkpoint or an artifact holds, every field of the type that it should be."""

    weights: dict[str, torch.Tensor]
    factory: str  #: of a checkpoint: "module:callable"; empty in an artifact
    kwargs: Mapping[str, Any]  #: the factory's
    graph: str  #: of an artifact, as `vitfx.models.graph_json` writes it; empty in a checkpoint
    preprocess: Preprocess | None
    classes: tuple[str, ...] | None
    data: str | None
    provenance: Mapping[str, Any]  #: JSON-like


def read_record(record: Mapping[str, Any], source: str) -> ModelRecord:
    """Checks what `save_checkpoint` or `save_artifact` wrote; raises UserError for anything else."""
    form = record.get("format")
    if form not in (CHECKPOINT_FORMAT, ARTIFACT_FORMAT):
        raise UserError(
            f"{source} has the format {in_a_line(form)!r}, this vitfx reads {CHECKPOINT_FORMAT} and {ARTIFACT_FORMAT}: "
            "load it with the vitfx that wrote it"
        )
    types = {"preprocess": dict, "classes": list | tuple, "data": str, "provenance": dict}
    needed = {"factory": str, "kwargs": dict} if form == CHECKPOINT_FORMAT else {"graph": str}
    for name in (*needed, "state_dict"):
        if name not in record:
            raise UserError(f"{source} calls itself {form} but has no {name}: write it with vitfx.models.checkpoint")
    for name, expected in {**types, **needed}.items():
        value = record.get(name)
        if not (isinstance(value, expected) or (value is None and name in types)):
            raise UserError(
                f"{source} has a value of type {type(value).__name__} as its {name}: "
                "write it with vitfx.models.checkpoint"
            )
    classes, provenance = record.get("classes"), record.get("provenance") or {}
    if not all(type(name) in (str, int) for name in classes or ()):
        raise UserError(f"{source} has classes that are no names: write it with vitfx.models.checkpoint")
    try:
        json.dumps(provenance)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"the provenance in {source} is not JSON ({in_a_line(error)}): give another file") from error
    weights = unwrap_state_dict(record["state_dict"], source)
    if record.get(DIGEST) not in (None, _digest(record, weights)):
        raise UserError(
            f"{source} does not match its digest, so it was damaged or edited: copy it again, or write changes "
            "with vitfx.models.checkpoint"
        )
    return ModelRecord(
        weights=weights,
        factory=record["factory"] if "factory" in needed else "",
        kwargs=record["kwargs"] if "kwargs" in needed else {},
        graph=record["graph"] if "graph" in needed else "",
        preprocess=Preprocess.from_json(record["preprocess"]) if record.get("preprocess") else None,
        classes=None if classes is None else tuple(map(str, classes)),
        data=record.get("data"),
        provenance=provenance,
    )


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with a digest of all its fields, weights included, which `read_record` checks."""
    return {**record, DIGEST: _digest(record, record["state_dict"])}


def _digest(record: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> str:
    return digest_of({**record, "state_dict": fingerprint(weights)})
