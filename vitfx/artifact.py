"""The pruned model's file: its graph as data, its weights, and where it comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch.fx import GraphModule

from vitfx.images.preprocess import Preprocess
from vitfx.models.checkpoint import ARTIFACT_FORMAT
from vitfx.models.graph_json import encode
from vitfx.models.model_file import write_record


def save_artifact(
    path: Path,
    graph_module: GraphModule,
    preprocess: Preprocess,
    classes: tuple[str, ...] | None,
    data: str | None,
    provenance: dict[str, Any],
) -> None:
    """Writes what `vitfx.models.checkpoint.load_model` reads back as a canonical graph, without the original's code.

    provenance: JSON-like facts: vitfx version, the original's fingerprint, settings, the circuit's fingerprint.
    """
    record = {
        "format": ARTIFACT_FORMAT,
        "graph": encode(graph_module),
        "state_dict": {name: value.detach().cpu().contiguous() for name, value in graph_module.state_dict().items()},
        "preprocess": preprocess.to_json(),
        "classes": None if classes is None else list(classes),
        "data": data,
        "provenance": provenance,
    }
    write_record(path, record)
