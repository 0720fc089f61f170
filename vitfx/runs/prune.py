"""One run of `vitfx.prune` from a model and images that are open to a folder of results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vitfx.circuits.circuit import Circuit
from vitfx.deploy.deployment import Deployment
from vitfx.deploy.precision_file import write_precision
from vitfx.deploy.precisions import FP32
from vitfx.discovery.basis.journal import FileJournal
from vitfx.discovery.basis.settings import Settings
from vitfx.images.image_set import Images, ImageSet
from vitfx.models.graph_json import encode
from vitfx.pruning.goal import Goal, Target
from vitfx.pruning.prune_by_circuit import Compensation, Pruned, compile_model
from vitfx.pruning.prune_for_goal import compile_for_goal
from vitfx.pruning.target_bench import GoalRequest, ReferenceModel
from vitfx.reports.attention_maps import attention_maps
from vitfx.reports.pages import prune_page
from vitfx.reports.prune_text import to_markdown
from vitfx.reports.records import PRUNE_REPORT, PruneReport
from vitfx.runs.inputs import Inputs
from vitfx.runs.prune_files import BATCHES, RESULTS, measure, write_files
from vitfx.runs.prune_record import make_report
from vitfx.support.devices import pick_device
from vitfx.support.errors import UserError
from vitfx.support.files import JOURNAL, UNFINISHED, WriteError, begin_results, remove_results, write_aside
from vitfx.support.json_files import write_json
from vitfx.support.machine import environment
from vitfx.support.progress import Watcher


@dataclass(frozen=True)
class Job:
    """A checked command line, with the model and the data open.

    compensate, compensate_samples: what makes up for the dead, and on how many images it is fitted, at most.
    circuit, circuit_file: what stands in place of discovery, if anything does; the settings are its own then. goal:
    what is looked for in place of discovery, and where it is measured. speeds: of a sweep, rising; the goal is the last
    then. deployment: how pruned.onnx is made. precision: of a third ONNX file, none for "fp32". reference: see
    `GoalRequest`."""

    inputs: Inputs
    evaluation: ImageSet
    settings: Settings
    device: torch.device
    out: Path
    force: bool
    compensate: str
    compensate_samples: int
    deployment: Deployment
    circuit: Circuit | None = None
    circuit_file: Path | None = None
    goal: tuple[Goal, Target] | None = None
    precision: str = FP32
    speeds: tuple[float, ...] = ()
    reference: ReferenceModel | None = None

    @property
    def runs_on(self) -> torch.device:
        """Where ONNX files are timed."""
        return self.device if self.goal is None else pick_device(self.goal[1].device)

    @property
    def batch(self) -> int:
        """At which the speed-up counts."""
        return max(BATCHES) if self.goal is None else self.goal[1].batch

    def basis(self, facts: Mapping[str, str], samples: int) -> dict[str, Any]:
        """What all models of a sweep or of rounds depend on, but the machine. facts: see `vitfx.discovery.run.origins`.
        samples: calibration images."""
        assert self.goal is not None
        return {
            **facts,
            "model": self.inputs.model.source,
            "model_fingerprint": facts["model"],
            "arch": self.inputs.arch,
            "data": self.inputs.data,
            "evaluation_fingerprint": self.evaluation.fingerprint(),
            "samples": samples,
            "seed": self.settings.seed,
            "target": str(self.goal[1]),
            "deployment": self.deployment.to_json(),
            "device": str(self.device),
        }


def run_job(job: Job, watcher: Watcher) -> PruneReport:
    """Compiles, writes and measures; the report. A journal in the folder keeps decisions until all is written.

    Raises UserError, VerificationError and ExportMismatch.
    """
    watcher.say(job.inputs.splits.description)
    images = job.inputs.calibration(job.settings.samples, job.settings.seed, watcher.bar("loading"))
    journal: list[FileJournal] = []
    pruned = _for_goal(job, images, watcher) if job.goal else _discovered(job, images, journal, watcher)
    begin_results(job.out)
    remove_results(job.out, RESULTS)
    written = write_files(job.out, pruned, job.inputs.model, images, job.deployment, watcher)
    made = write_precision(job.out, job.precision, images.pixels)
    others = [Path(made["file"]).stem] if made else []
    batches = sorted({*BATCHES, job.batch})
    measured = measure(job.out, job.evaluation, job.runs_on, written.onnx_error, watcher, others, batches)
    measured = replace(measured, deployment=written.deployment, precision=made)
    settings = {
        "model": job.inputs.model.source,
        "arch": job.inputs.arch,
        "data": job.inputs.data,
        "circuit": None if job.circuit_file is None else str(job.circuit_file),
        "data_fingerprint": job.evaluation.fingerprint(),
        **(job.settings.to_json() if job.goal is None else {"samples": len(images), "seed": job.settings.seed}),
        "goal": str(job.goal[0]) if job.goal else None,
        "target": str(job.goal[1]) if job.goal else None,
        "missed": pruned.missed,
        "compensate": pruned.compensation.kind,
        "compensate_samples": pruned.compensation.images,
        "precision": job.precision,
        "device": str(job.device),
    }
    report = make_report(pruned, measured, images, settings, environment(), job.batch)
    _write_report(job, pruned, report)
    for one in journal:
        one.discard()
    remove_results(job.out, [UNFINISHED])
    return report


def _write_report(job: Job, pruned: Pruned, report: PruneReport) -> None:
    model = job.inputs.model
    maps = attention_maps(
        pruned.original, pruned.module, pruned.plan, job.evaluation, job.settings.seed, model.preprocess, model.classes
    )
    write_json(job.out / "report.json", PRUNE_REPORT, report)
    write_aside(job.out / "report.md", to_markdown(report))
    write_aside(job.out / "report.html", prune_page(report, pruned.circuit, pruned.plan, maps))


def _discovered(job: Job, images: Images, journal: list[FileJournal], watcher: Watcher) -> Pruned:
    """journal: the run's own is put into it, once it is open."""
    compensation = _compensation(job, watcher)

    def open_journal(key: str) -> FileJournal:
        journal.append(FileJournal(job.out / JOURNAL, key, force=job.force))
        if len(journal[0]):
            watcher.say(f"going on after {len(journal[0])} decisions of an earlier run")
        return journal[0]

    try:
        return compile_model(
            job.inputs.model.module,
            images,
            job.settings,
            device=job.device,
            open_journal=open_journal,
            watcher=watcher,
            # What no artifact can hold is told before discovery, not after hours of it.
            accept=encode,
            circuit=job.circuit,
            compensation=compensation,
        )
    except WriteError:
        raise
    except UserError:
        # The same command would end the same way: its decisions are worth nothing, and the way is free for another τ.
        for one in journal:
            one.discard()
        raise


def _for_goal(job: Job, images: Images, watcher: Watcher) -> Pruned:
    assert job.goal is not None
    goal, target = job.goal
    asked = GoalRequest(goal, target, job.deployment, job.settings.seed, fresh=job.force, reference=job.reference)
    module = job.inputs.model.module
    return compile_for_goal(module, images, asked, device=job.device, watcher=watcher, accept=encode)


def _compensation(job: Job, watcher: Watcher) -> Compensation:
    """Fitting survivors takes more images than discovery; those of calibration come first in them."""
    if job.compensate != "ridge":
        return Compensation(job.compensate)
    count = min(job.compensate_samples, len(job.inputs.splits.calibration))
    return Compensation(job.compensate, job.inputs.calibration(count, job.settings.seed, watcher.bar("loading")).pixels)
