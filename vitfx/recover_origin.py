"""The run of `vitfx.prune` behind a model that is retrained: what died there belongs on the page as well."""

from __future__ import annotations

from pathlib import Path

from vitfx.models.checkpoint import LoadedModel
from vitfx.reports.points import PRUNE
from vitfx.reports.read_runs import Run, read_run
from vitfx.support.errors import UserError


def origin_of(model: LoadedModel, teacher: LoadedModel) -> Run | None:
    """The run in whose folder the artifact lies, where that run made it of the teacher; else None.

    Files that were moved apart or overwritten are no reason to fail: a page does without.
    """
    if model.provenance.get("model_fingerprint") != teacher.fingerprint:
        return None
    folder = Path(model.source).parent
    try:
        run = read_run(folder, str(folder))
    except UserError:
        return None
    if run.kind != PRUNE or run.circuit is None:
        return None
    return run if run.circuit.fingerprint() == model.provenance.get("circuit_fingerprint") else None
