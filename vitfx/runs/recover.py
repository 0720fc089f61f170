"""One run of `vitfx.recover`: retrains the pruned model, and the unpruned one if asked to, exports and measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.fx import GraphModule

from vitfx.deploy.deployment import deploy
from vitfx.deploy.export import export_checked, export_plain, onnx_metadata
from vitfx.deploy.program_file import write_program
from vitfx.graph.canonical import read_module
from vitfx.graph.divergence import Divergence, make_divergence
from vitfx.graph.trace import to_canonical
from vitfx.models.checkpoint import LoadedModel, save_artifact
from vitfx.recovery.allowed import check_loss, check_processes
from vitfx.recovery.data import RecoverData, open_recover_data
from vitfx.recovery.retrain import Recovered, Store, recover
from vitfx.recovery.settings import RecoverSettings
from vitfx.reports.attention_maps import attention_maps
from vitfx.reports.pages import recover_page
from vitfx.reports.read_runs import Run, read_run
from vitfx.reports.records import RECOVER_REPORT, RecoverReport
from vitfx.reports.recover_text import draw, to_markdown
from vitfx.runs.recover_job import RecoverJob, held_out_at_most, refuse_unlabelled, settings_record
from vitfx.runs.recover_measure import Row, measure
from vitfx.runs.recover_record import make_report
from vitfx.support.errors import UserError
from vitfx.support.files import RECOVERY_STATE, UNFINISHED, begin_results, remove_results, write_aside
from vitfx.support.json_files import write_json
from vitfx.support.machine import environment, load_average
from vitfx.support.processes import Share, first_says, on_first
from vitfx.support.progress import Watcher
from vitfx.version import VERSION

PRUNED, BASELINE, RETRAINED = "pruned", "baseline", "baseline-retrained"
STATE, BASELINE_STATE = RECOVERY_STATE, "baseline.state"
PICTURE = "recovery.png"
RESULTS = (
    "pruned.pt", "pruned.pt2", "pruned.onnx", "baseline.onnx", "baseline-retrained.pt", "baseline-retrained.onnx",
    PICTURE, "report.json", "report.md", "report.html",
)  # fmt: skip
_EXAMPLES = 8
_SCALED = 64
"""Held-out images whose answers tell how much values differ."""


@dataclass(frozen=True)
class _Models:
    """Canonical graphs on the CPU."""

    pruned: GraphModule
    teacher: GraphModule
    measure: Divergence  #: of the kind of their answers


def run_recover(job: RecoverJob, share: Share, watcher: Watcher) -> RecoverReport:
    """Retrains, exports, measures and writes; the report. Goes on where a run with the same settings stopped.

    share: all processes retrain, and the first does the rest.

    Raises UserError, VerificationError, ExportMismatch, and KeyboardInterrupt after Ctrl-C.
    """
    with first_says(share.rank == 0):
        refuse_unlabelled(job)
        check_processes(job.settings.batch, share.world)
    load = load_average()
    job.inputs.tell(watcher, job.device)
    if job.teacher.weights_note:
        watcher.say(job.teacher.weights_note)
    images, at_most = job.inputs.splits.calibration, held_out_at_most(job)
    data = on_first(
        share,
        lambda: open_recover_data(
            images, job.cache, watcher, held_out=at_most, samples=job.samples, seed=job.settings.seed
        ),
    )
    with first_says(share.rank == 0):
        models = _open(job, data, watcher)
    stores = {name: Store(job.out / name, job.save_seconds, job.force) for name in (STATE, BASELINE_STATE)}
    on_first(share, partial(_begin, job, [store.path for store in stores.values()]))
    with first_says(share.rank == 0):
        recovered = recover(
            models.pruned, models.teacher, data, job.settings, device=job.device, watcher=watcher, share=share,
            store=stores[STATE], measure=models.measure,
        )  # fmt: skip
        recovered = replace(recovered, notes=(*recovered.notes, *job.inputs.remarks))
        baseline = None
        if job.also_baseline:
            baseline = _retrain_baseline(job, models, data, recovered.steps, stores[BASELINE_STATE], share, watcher)

    def deliver() -> RecoverReport:
        rows = _export(job, models, recovered, baseline, data, watcher)
        measured = measure(rows, job.evaluation, job.device, watcher, models.measure, job.runtime)
        settings = settings_record(job, models.measure, share.world)
        report = make_report(job.command, settings, recovered, baseline, measured, data, {
            **environment(), "device": str(job.device), "load_average_before": load,
        })  # fmt: skip
        _write_report(job, models.teacher, recovered.module, report, watcher)
        for store in stores.values():
            store.discard()
        remove_results(job.out, [UNFINISHED])
        return report

    return on_first(share, deliver)


def _begin(job: RecoverJob, states: Sequence[Path]) -> None:
    """Readies the folder, and removes earlier results where no run goes on. states: of one that would."""
    begin_results(job.out)
    if not any(path.exists() for path in states):
        remove_results(job.out, RESULTS)


def _write_report(
    job: RecoverJob, teacher: GraphModule, retrained: GraphModule, report: RecoverReport, watcher: Watcher
) -> None:
    model = job.inputs.model
    origin = origin_of(model, job.teacher)
    maps = attention_maps(
        teacher, retrained, None if origin is None else origin.plan, job.evaluation, job.settings.seed,
        model.preprocess, model.classes,
    )  # fmt: skip
    write_json(job.out / "report.json", RECOVER_REPORT, report)
    write_aside(job.out / "report.md", to_markdown(report))
    write_aside(job.out / "report.html", recover_page(report, origin, maps))
    draw(job.out / PICTURE, report, watcher)


def _open(job: RecoverJob, data: RecoverData, watcher: Watcher) -> _Models:
    pixels = _examples(data, _EXAMPLES)
    pixels = pixels.repeat(2, 1, 1, 1)
    front = read_module(job.teacher.module, pixels, watcher)
    kind = front.kind(data.train.labels if data.labelled else None, job.inputs.task, watcher)
    check_loss(job.settings, kind.name, labelled=data.labelled)
    pruned = to_canonical(job.inputs.model.module, pixels[:2]).graph_module
    with torch.no_grad():
        answers = torch.cat([front.graph_module(batch) for batch in _examples(data, _SCALED).split(_EXAMPLES)])
    return _Models(pruned, front.graph_module, make_divergence(kind.name, answers))


def _examples(data: RecoverData, count: int) -> Tensor:
    """Held-out images, preprocessed."""
    return data.preprocess.normalise(data.held_out.rows(torch.arange(min(count, len(data.held_out)))))


def _retrain_baseline(
    job: RecoverJob, models: _Models, data: RecoverData, steps: int, store: Store, share: Share, watcher: Watcher
) -> Recovered:
    """The unpruned model, as many steps on the same images by their labels: it has no teacher."""
    settings = _by_labels(job.settings)
    watcher.say(
        f"the unpruned model is retrained for {steps:,} steps as well, by labels, at a rate of up to {settings.rate:g}"
    )
    return recover(
        models.teacher, models.teacher, data, settings,
        device=job.device, watcher=watcher, share=share, store=store, steps=steps, measure=models.measure,
    )  # fmt: skip


def _by_labels(settings: RecoverSettings) -> RecoverSettings:
    """For the unpruned model, which takes all its steps whatever the checks say, and keeps the best of them."""
    rate = settings.lr if settings.only == "all" else None
    return replace(settings, loss="ce", hidden=0.0, only="all", lr=rate, patience=settings.checks + 1)


def _export(
    job: RecoverJob,
    models: _Models,
    recovered: Recovered,
    baseline: Recovered | None,
    data: RecoverData,
    watcher: Watcher,
) -> list[Row]:
    """Writes artifacts and ONNX files: unpruned models as torch exports them, pruned ones as deployed. baseline: the
    unpruned model's own retraining."""
    if job.deployment.remark:
        watcher.say(job.deployment.remark)
    watcher.say("exporting")
    pixels = data.preprocess.normalise(data.train.rows(torch.arange(min(_EXAMPLES, len(data.train)))))
    metadata = onnx_metadata(job.inputs.model, {"teacher": job.teacher.source})

    def plain(module: GraphModule, name: str) -> Path:
        source = job.teacher.module if name == BASELINE else module
        model, _ = export_plain(source, module, pixels[:2], metadata, job.deployment.opset)
        export_checked(model, job.out / f"{name}.onnx", module, pixels)
        return job.out / f"{name}.onnx"

    def small(module: GraphModule, path: Path) -> Path:
        deployed = deploy(module, job.deployment, pixels, metadata)
        graph_module = deployed.lowered.graph_module
        export_checked(deployed.model, path, graph_module, pixels)
        if path.name == "pruned.onnx":
            write_program(path.with_suffix(".pt2"), graph_module, pixels, metadata)
        return path

    aside = small(models.pruned, job.out / ".before.onnx")
    before = aside.read_bytes()
    aside.unlink()
    rows = [
        Row(BASELINE, models.teacher, plain(models.teacher, BASELINE)),
        Row(PRUNED, models.pruned, before),
    ]
    if baseline is not None:
        _save(job, job.out / f"{RETRAINED}.pt", baseline, job.teacher, _by_labels(job.settings), models.measure)
        rows.append(Row("baseline retrained", baseline.module, plain(baseline.module, RETRAINED)))
    _save(job, job.out / "pruned.pt", recovered, job.inputs.model, job.settings, models.measure)
    rows.append(Row("pruned retrained", recovered.module, small(recovered.module, job.out / "pruned.onnx")))
    return rows


def _save(
    job: RecoverJob,
    path: Path,
    recovered: Recovered,
    model: LoadedModel,
    settings: RecoverSettings,
    answers: Divergence,
) -> None:
    """model: what was retrained."""
    task = {} if answers.kind == "classes" else {"settings": {"task": answers.kind}}
    provenance = {
        **task,
        **model.provenance,
        "recovered": {
            "vitfx": VERSION,
            "from": model.source,
            "from_fingerprint": model.fingerprint,
            **job.teacher_origin,
            "settings": settings.to_json(),
            "steps": recovered.steps,
            "made_by": job.command,
        },
    }
    known = job.inputs.model
    save_artifact(path, recovered.module, known.preprocess, known.classes, known.data, provenance)


def origin_of(model: LoadedModel, teacher: LoadedModel) -> Run | None:
    """The run in whose folder the artifact lies, where that run made it of the teacher; else None.

    Files that were moved apart or overwritten are no reason to fail: the page leaves the circuit out.
    """
    if model.provenance.get("model_fingerprint") != teacher.fingerprint:
        return None
    folder = Path(model.source).parent
    try:
        run = read_run(folder, str(folder))
    except UserError:
        return None
    if run.prune is None or run.circuit is None:
        return None
    return run if run.circuit.fingerprint() == model.provenance.get("circuit_fingerprint") else None
