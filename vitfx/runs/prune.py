"""One run of `vitfx.prune` by a circuit or for a goal, from a model and images that are open to a folder of results."""

from __future__ import annotations

import math
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule

from passes.merge_tokens import schedule_of
from vitfx.deploy.precision_file import Rounding, slower, write_precision
from vitfx.discovery.basis.journal import FileJournal
from vitfx.graph.divergence import Divergence
from vitfx.graph.kinds import WORDS
from vitfx.images.image_set import Images
from vitfx.images.pixel_cache import default_cache
from vitfx.models.chosen import chosen_record
from vitfx.models.graph_json import encode
from vitfx.pruning.goal import DROP, KL, Goal
from vitfx.pruning.healing import Training
from vitfx.pruning.prune_by_circuit import Compensation, Pruned, compile_model
from vitfx.pruning.prune_for_goal import compile_for_goal
from vitfx.pruning.target_bench import GoalRequest
from vitfx.recovery.heal import heal
from vitfx.reports.attention_maps import attention_maps
from vitfx.reports.pages import prune_page
from vitfx.reports.prune_text import to_markdown
from vitfx.reports.records import PRUNE_REPORT, PruneReport
from vitfx.runs.prune_files import RESULTS, measure, write_files
from vitfx.runs.prune_record import make_report
from vitfx.runs.prune_run import BATCHES, CircuitRun, GoalRun
from vitfx.support.errors import UserError
from vitfx.support.files import JOURNAL, UNFINISHED, WriteError, begin_results, remove_results, write_aside
from vitfx.support.json_files import write_json
from vitfx.support.machine import environment
from vitfx.support.progress import Watcher


@dataclass(frozen=True)
class PruneResult:
    """A finished run."""

    report: PruneReport
    missed: str | None = None  #: the goal that was missed and what was measured, in words


def run_circuit(run: CircuitRun, watcher: Watcher) -> PruneResult:
    """Compiles, writes and measures. A journal in the folder keeps the decisions of a discovery until all is written.

    Raises UserError, VerificationError and ExportMismatch.
    """
    run.inputs.tell(watcher, run.device)
    images = run.inputs.calibration(run.settings.samples, run.settings.seed, watcher.bar("loading"))
    journal = _LateJournal(run.out / JOURNAL, run.force, watcher)
    pruned = _by_circuit(run, images, journal, watcher)
    report = _deliver(run, pruned, images, watcher)
    journal.discard()
    return PruneResult(report)


def run_goal(run: GoalRun, watcher: Watcher) -> PruneResult:
    """Searches, writes and measures. Raises UserError, VerificationError and ExportMismatch."""
    images = run.calibration(watcher)
    asked = GoalRequest(
        run.goal,
        run.target,
        run.deployment,
        run.seed,
        fresh=run.force,
        tokens=run.tokens,
        memory=run.memory,
        reference=run.reference,
    )
    pruned = compile_for_goal(
        run.inputs.model.module,
        images,
        asked,
        device=run.device,
        watcher=watcher,
        accept=encode,
        task=run.inputs.task,
        more=partial(further_images, run, watcher) if run.further else None,
        heal=partial(_heal, run, watcher) if run.heal_minutes else None,
    )
    report = _deliver(run, pruned, images, watcher)
    return PruneResult(report, None if pruned.missed is None else f"asked for {run.goal}, {pruned.missed}")


def _heal(
    run: GoalRun,
    watcher: Watcher,
    artifact: GraphModule,
    original: GraphModule,
    held_out: Collection[str],
    measure: Divergence,
) -> Training:
    """On all calibration images but those that judge what is lost."""
    calibration, judging = run.inputs.splits.calibration, set(held_out)
    rest = calibration.subset([index for index, name in enumerate(calibration.names) if name not in judging])
    return heal(
        artifact,
        original,
        rest,
        run.heal_minutes,
        cache=default_cache(),
        device=run.device,
        watcher=watcher,
        measure=measure,
        seed=run.seed,
    )


def further_images(run: GoalRun, watcher: Watcher, count: int) -> Images:
    """Up to so many calibration images behind those of the search."""
    calibration, preprocess = run.inputs.splits.calibration, run.inputs.model.preprocess
    wanted = min(run.samples + count, len(calibration))
    none = torch.empty(0, preprocess.channels, *preprocess.size)
    if wanted > run.samples:
        behind = calibration.sample(wanted, run.seed).subset(range(run.samples, wanted))
        # Where all of them are corrupt, the search's own images will do.
        with suppress(UserError):
            return behind.load(watcher.bar("loading more"))
    return Images(none, None, ())


def _deliver(run: CircuitRun | GoalRun, pruned: Pruned, images: Images, watcher: Watcher) -> PruneReport:
    """Writes the files, measures them and reports."""
    model = run.inputs.model
    begin_results(run.out)
    remove_results(run.out, RESULTS)
    written = write_files(run.out, pruned, model, images, run.deployment, watcher)
    rounding = pruned.rounding or Rounding(images.pixels, pruned.divergence)
    written = replace(written, precision=write_precision(run.out, run.precision, rounding))
    batches = sorted({*BATCHES, run.batch})
    measured = measure(
        run.out, run.evaluation, run.onnx_device, written, watcher, batches, pruned.divergence, run.runtime,
        run.evaluation.half,
    )  # fmt: skip
    report = make_report(pruned, measured, images, _settings(run, pruned, len(images)), environment(), run.batch)
    over = exceeded(run.goal, report, pruned.divergence.kind) if isinstance(run, GoalRun) else []
    report["notes"] += [*over, *run.inputs.remarks]
    for warning in (*over, *slower(report["precision"])):
        watcher.say(warning)
    maps = attention_maps(
        pruned.original, pruned.module, pruned.plan, run.evaluation, run.seed, model.preprocess, model.classes
    )
    write_json(run.out / "report.json", PRUNE_REPORT, report)
    write_aside(run.out / "report.md", to_markdown(report))
    write_aside(run.out / "report.html", prune_page(report, pruned.circuit, pruned.plan, maps))
    remove_results(run.out, [UNFINISHED])
    return report


def exceeded(goal: Goal, report: PruneReport, task: str) -> list[str]:
    """A sentence where the evaluation images, by which nothing was chosen, show more loss than a limit allows."""
    third = report["precision"]
    before, after = report["baseline"]["accuracy"], (third or report["pruned"])["accuracy"]
    divergence = (third or report)["kl"]
    if goal.kind == DROP and before is not None and after is not None and 100 * (before - after) > goal.value:
        drop, error = 100 * (before - after), _counting_error(report, task)
        lost = f"{drop:.2f} points of {WORDS[task].metric} lost"
        if drop - error <= goal.value:
            return [
                f"on the evaluation images: {lost}, where {goal.words(task)} was asked for; the counts of "
                f"{report['images']['evaluation']:,} images have a standard error of {error:.2f}, so that the limit "
                "may be kept; evaluate on more images to know"
            ]
    elif goal.kind == KL and divergence > goal.value:
        lost = WORDS[task].amount(f"{divergence:.4f}") + " from the original"
    else:
        return []
    return [
        f"on the evaluation images the limit is not kept: {lost}, where {goal.words(task)} was asked for; it was "
        "judged on calibration images, which are easier for a model that was trained on them: ask for less, or "
        "calibrate on images that it has not seen"
    ]


def _counting_error(report: PruneReport, task: str) -> float:
    """The standard error of a drop in top-1, in points, at most: each image whose class changes counts once. Zero for
    other answers than classes."""
    agreement = (report["precision"] or report)["agreement"]
    if task != "classes" or agreement is None:
        return 0.0
    return 100 * math.sqrt((1 - agreement) / report["images"]["evaluation"])


def _settings(run: CircuitRun | GoalRun, pruned: Pruned, samples: int) -> dict[str, Any]:
    """For the report. samples: calibration images that are whole."""
    circuit_file, goal, target = None, None, None
    if isinstance(run, CircuitRun):
        own = {**run.settings.to_json(), **_task(pruned), **chosen_record(run.inputs.model)}
        circuit_file = None if run.circuit_file is None else str(run.circuit_file)
    else:
        own = {"samples": samples, "seed": run.seed, **_task(pruned), **chosen_record(run.inputs.model)}
        goal, target = run.goal.words(pruned.divergence.kind), str(run.target)
    return {
        "model": run.inputs.model.source,
        "arch": run.inputs.arch,
        **({"weights": run.inputs.weights} if run.inputs.weights else {}),
        **({"output": run.inputs.output} if run.inputs.output else {}),
        "data": run.inputs.data,
        **({"labels": str(run.inputs.labels)} if run.inputs.labels else {}),
        "circuit": circuit_file,
        "data_fingerprint": run.evaluation.fingerprint(),
        "preprocess": run.inputs.model.preprocess.to_json(),
        **own,
        "goal": goal,
        "target": target,
        **({"tokens": str(schedule)} if (schedule := schedule_of(pruned.module)) else {}),
        "missed": pruned.missed,
        "compensate": pruned.compensation.kind,
        "compensate_samples": pruned.compensation.images,
        "precision": run.precision,
        "device": str(run.device),
    }


def _task(pruned: Pruned) -> dict[str, Any]:
    """The kind of answers, where they are not classes."""
    task = pruned.circuit.settings.get("task")
    return {} if task is None else {"task": task}


class _LateJournal:
    """The journal of a run's discovery, which is opened when the discovery knows its key."""

    def __init__(self, path: Path, force: bool, watcher: Watcher) -> None:
        self._path, self._force, self._watcher = path, force, watcher
        self._journal: FileJournal | None = None

    def open(self, key: str) -> FileJournal:
        self._journal = FileJournal(self._path, key, force=self._force)
        if len(self._journal):
            self._watcher.say(f"going on after {len(self._journal)} decisions of an earlier run")
        return self._journal

    def discard(self) -> None:
        if self._journal is not None:
            self._journal.discard()


def _by_circuit(run: CircuitRun, images: Images, journal: _LateJournal, watcher: Watcher) -> Pruned:
    compensation = _compensation(run, watcher)
    try:
        return compile_model(
            run.inputs.model.module,
            images,
            run.settings,
            device=run.device,
            open_journal=journal.open,
            watcher=watcher,
            # What no artifact can hold is refused before discovery, not after hours of it.
            accept=encode,
            circuit=run.circuit,
            compensation=compensation,
            task=run.inputs.task,
            tokens=run.tokens,
        )
    except WriteError:
        raise
    except UserError:
        # The same command would fail again: its decisions are worthless and would be in the way of another τ.
        journal.discard()
        raise


def _compensation(run: CircuitRun, watcher: Watcher) -> Compensation:
    """Refitting survivors takes more images than discovery, whose images come first among them."""
    if run.compensate != "ridge":
        return Compensation(run.compensate)
    count = min(run.compensate_samples, len(run.inputs.splits.calibration))
    return Compensation(run.compensate, run.inputs.calibration(count, run.seed, watcher.bar("loading")).pixels)
