"""One run of `vitfx.prune` from a model and images that are open to a folder of results."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vitfx.checkpoint import LoadedModel
from vitfx.compile import compile_model
from vitfx.data import Splits
from vitfx.deliver import RESULTS, measure, write_files
from vitfx.errors import UserError
from vitfx.files import JOURNAL, WriteError, remove_results, write_aside
from vitfx.graph_json import encode
from vitfx.image_set import ImageSet
from vitfx.journal import FileJournal
from vitfx.machine import environment
from vitfx.progress import Watcher
from vitfx.report import make_report, to_markdown
from vitfx.settings import Settings


@dataclass(frozen=True)
class Job:
    """A checked command line, with the model and the data open.

    data, arch: as the user gave them, so that the report says how to open the same again.
    """

    model: LoadedModel
    splits: Splits
    evaluation: ImageSet
    settings: Settings
    device: torch.device
    out: Path
    force: bool
    data: str
    arch: str | None


def run_job(job: Job, watcher: Watcher) -> dict[str, Any]:
    """Compiles, writes and measures; the report. A journal in the folder keeps decisions until all is written.

    Raises UserError, VerificationError and ExportMismatch.
    """
    watcher.say(job.splits.description)
    images = job.splits.calibration.sample(job.settings.samples, job.settings.seed).load(watcher.bar("loading"))
    if len(images) < 2:
        raise UserError(f"{images.skipped} of the {job.settings.samples} sampled images are corrupt: mend {job.data}")
    journal: list[FileJournal] = []

    def open_journal(key: str) -> FileJournal:
        journal.append(FileJournal(job.out / JOURNAL, key, force=job.force))
        if len(journal[0]):
            watcher.say(f"going on after {len(journal[0])} decisions of an earlier run")
        return journal[0]

    try:
        pruned = compile_model(
            job.model.module,
            images,
            job.settings,
            device=job.device,
            open_journal=open_journal,
            watcher=watcher,
            # What no artifact can hold is told before discovery, not after hours of it.
            accept=encode,
        )
    except WriteError:
        raise
    except UserError:
        # The same command would end the same way: its decisions are worth nothing, and the way is free for another τ.
        for one in journal:
            one.discard()
        raise
    remove_results(job.out, RESULTS)
    onnx_error = write_files(job.out, pruned, job.model, images, watcher)
    measured = measure(job.out, job.evaluation, job.device, onnx_error, watcher)
    settings = {
        "model": job.model.source,
        "arch": job.arch,
        "data": job.data,
        "data_fingerprint": job.evaluation.fingerprint(),
        **job.settings.to_json(),
        "device": str(job.device),
    }
    report = make_report(pruned, measured, images, settings, environment())
    write_aside(job.out / "report.json", json.dumps(report, indent=1, ensure_ascii=False))
    write_aside(job.out / "report.md", to_markdown(report))
    journal[0].discard()
    return report


def check_labels(model: LoadedModel, images: ImageSet, data: str) -> None:
    """Without names, classes are matched by their position, and each needs a logit: UserError where one has none."""
    if images.labels is None:
        return
    with torch.no_grad():
        logits = model.module(torch.zeros(2, model.preprocess.channels, *model.preprocess.size)).shape[1]
    if max(images.labels) >= logits:
        raise UserError(
            f"{data} has at least {max(images.labels) + 1} classes and the model {logits} logits: "
            "give the data that it was trained on, or images without class folders"
        )
