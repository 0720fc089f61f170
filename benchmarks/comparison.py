"""Methods of discovery one by one: circuits for given shares of FLOPs, and how good the smaller models are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

from benchmarks.candidates import Candidate, Workshop, score
from benchmarks.measure import timed
from benchmarks.subject import Subject
from benchmarks.thresholds import ThresholdRun, at_share, runner
from benchmarks.workloads import run_on
from vitfx.deploy.evaluate import Scores, evaluate
from vitfx.discovery.basis.settings import RANKING, Settings
from vitfx.images.image_set import ImageSet
from vitfx.support.progress import Watcher

RANDOM_SEEDS = 3
WHOLE = "whole"
BATCH = 64
Remember = Callable[[Sequence[ThresholdRun]], None]


class Comparison:
    """Finds each method's circuits and evaluates the models that they leave."""

    def __init__(
        self, subject: Subject, settings: Settings, shares: Sequence[float], evaluation: ImageSet, watcher: Watcher
    ) -> None:
        """shares: of the FLOPs. evaluation: the images that the smaller models are evaluated on."""
        self.subject, self.settings, self.shares = subject, settings, shares
        self.evaluation, self.watcher = evaluation, watcher
        self.device = subject.setup.calibration.clean.device
        self.workshop = Workshop(subject, settings)

    def measure(self, method: str, known: Sequence[ThresholdRun], remember: Remember) -> dict[str, Any]:
        """A method's circuits and scores, ready for JSON. seconds: of one discovery, the median over the runs.

        known: the runs of an interrupted search for τ, which are not repeated
        remember: is given all runs after each one, to keep them
        """
        runs: list[ThresholdRun] = []
        if method in RANKING:
            candidates, seconds = self._ranked(method)
        else:
            candidates, runs = self._searched(method, known, remember)
            seconds = [run.seconds for run in runs]
        searched = [run.summary() for run in runs]
        return {"seconds": median(seconds), "runs": len(seconds), "searched": searched, **self._rows(candidates)}

    def _ranked(self, method: str) -> tuple[list[Candidate], list[float]]:
        settings = self.settings
        candidates: list[Candidate] = []
        seconds = []
        seeds = range(settings.seed, settings.seed + RANDOM_SEEDS) if method == "random" else [settings.seed]
        for seed in seeds:
            find = partial(score, self.subject, settings, method, seed, self.watcher.bar(method))
            elapsed, scores = timed(find, self.device)
            seconds.append(elapsed)
            shown = seed if method == "random" else None
            candidates += [self.workshop.ranked(scores, share, shown) for share in self.shares]
        return candidates, seconds

    def _searched(
        self, method: str, known: Sequence[ThresholdRun], remember: Remember
    ) -> tuple[list[Candidate], list[ThresholdRun]]:
        find = runner(self.workshop, method, self.watcher.bar(method))
        recalled = {run.tau: run for run in known}
        runs: list[ThresholdRun] = []
        candidates = []

        def run(tau: float) -> ThresholdRun:
            if tau not in recalled:
                recalled[tau] = find(tau)
                remember(list(recalled.values()))
            return recalled[tau]

        for share in self.shares:
            candidate, added = at_share(self.workshop, runs, run, share)
            self.watcher.say(f"{method} at {share:.0%}: τ = {candidate.tau:.3g} after {added} more runs")
            candidates.append(candidate)
        return candidates, runs

    def _rows(self, candidates: Sequence[Candidate]) -> dict[str, Any]:
        """The models take turns on each batch of images; the first is the whole one."""
        models = {WHOLE: run_on(self.device, self.workshop.whole)}
        rows = []
        for number, candidate in enumerate(candidates):
            artifact, deleted = self.workshop.build(candidate.decisions)
            models[str(number)] = run_on(self.device, artifact)
            plan = self.workshop.plan(candidate.decisions)
            rows.append(
                {
                    "share": candidate.share,
                    "deleted": deleted,
                    "seed": candidate.seed,
                    "tau": candidate.tau,
                    "trimmed": candidate.trimmed,
                    "removed_edges": sum(not decision.kept for decision in candidate.decisions),
                    "units": {deletion.name: list(deletion.units) for deletion in plan.deletions},
                }
            )
        calibration = evaluate(
            models, self.subject.opened.sample, batch=BATCH, progress=self.watcher.bar("calibration")
        )
        scores = evaluate(models, self.evaluation, batch=BATCH, progress=self.watcher.bar("evaluation"))
        for number, row in enumerate(rows):
            row |= scored(scores[str(number)]) | {"calibration_kl": calibration[str(number)].kl}
        return {WHOLE: scored(scores[WHOLE]), "rows": rows}


def scored(scores: Scores) -> dict[str, Any]:
    """Ready for JSON. standard_error: of the accuracy, as a share of independent images."""
    accuracy = scores.accuracy
    error = None if accuracy is None else math.sqrt(accuracy * (1 - accuracy) / scores.images)
    return {
        "images": scores.images,
        "kl": scores.kl,
        "agreement": scores.agreement,
        "accuracy": accuracy,
        "standard_error": error,
        "evaluation_seconds": scores.seconds,
    }
