"""One method of discovery after the other: circuits for given shares of FLOPs, and what the smaller models reach."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.candidates import Candidate, Workshop, score
from benchmarks.opening import Subject
from benchmarks.thresholds import Run, at_share, runner
from vitfx.deploy.evaluate import Scores, evaluate
from vitfx.discovery.basis.settings import RANKING, Settings
from vitfx.images.image_set import ImageSet
from vitfx.support.devices import synchronize
from vitfx.support.progress import Watcher

RANDOM_SEEDS = 3
WHOLE = "whole"
BATCH = 64


class Comparison:
    """Finds each method's circuits and evaluates what they leave."""

    def __init__(
        self, subject: Subject, settings: Settings, shares: Sequence[float], evaluation: ImageSet, watcher: Watcher
    ) -> None:
        """shares: of the FLOPs. evaluation: the images that the smaller models are evaluated on."""
        self.subject, self.settings, self.shares = subject, settings, shares
        self.evaluation, self.watcher = evaluation, watcher
        self.device = subject.setup.calibration.clean.device
        self.workshop = Workshop(subject, settings)

    def measure(self, method: str, known: Sequence[Run], remember: Callable[[Sequence[Run]], None]) -> dict[str, Any]:
        """A method's circuits and scores, ready for JSON. seconds: of one discovery, the median over the runs.

        known: the runs of a search for τ that was stopped, which are not run again. remember: given all of them after
        each, to keep them.
        """
        runs: list[Run] = []
        if method in RANKING:
            found, seconds = self._ranked(method)
        else:
            found, runs = self._searched(method, known, remember)
            seconds = [one.seconds for one in runs]
        searched = [one.summary() for one in runs]
        return {"seconds": median(seconds), "runs": len(seconds), "searched": searched, **self._rows(found)}

    def _ranked(self, method: str) -> tuple[list[Candidate], list[float]]:
        settings, shares = self.settings, self.shares
        found, seconds = [], []
        seeds = range(settings.seed, settings.seed + RANDOM_SEEDS) if method == "random" else [settings.seed]
        for seed in seeds:
            begin = time.perf_counter()
            scores = score(self.subject, settings, method, seed, self.watcher.bar(method))
            synchronize(self.device)
            seconds.append(time.perf_counter() - begin)
            found += [self.workshop.ranked(scores, share, seed if method == "random" else None) for share in shares]
        return found, seconds

    def _searched(
        self, method: str, known: Sequence[Run], remember: Callable[[Sequence[Run]], None]
    ) -> tuple[list[Candidate], list[Run]]:
        find = runner(self.workshop, method, self.watcher.bar(method))
        recalled = {one.tau: one for one in known}
        runs: list[Run] = []
        found = []

        def run(tau: float) -> Run:
            if tau not in recalled:
                recalled[tau] = find(tau)
                remember(list(recalled.values()))
            return recalled[tau]

        for share in self.shares:
            candidate, added = at_share(self.workshop, runs, run, share)
            self.watcher.say(f"{method} at {share:.0%}: τ = {candidate.tau:.3g} after {added} more runs")
            found.append(candidate)
        return found, runs

    def _rows(self, found: Sequence[Candidate]) -> dict[str, Any]:
        """The models take turns on each batch of images; the first is the whole one."""
        models: dict[str, Callable[[Tensor], Tensor]] = {WHOLE: self._call(self.workshop.whole)}
        rows = []
        for number, one in enumerate(found):
            artifact, deleted = self.workshop.build(one.decisions)
            models[str(number)] = self._call(artifact)
            plan = self.workshop.plan(one.decisions)
            rows.append(
                {
                    "share": one.share,
                    "deleted": deleted,
                    "seed": one.seed,
                    "tau": one.tau,
                    "trimmed": one.trimmed,
                    "removed_edges": sum(not decision.kept for decision in one.decisions),
                    "units": {deletion.name: list(deletion.units) for deletion in plan.deletions},
                }
            )
        calibration = evaluate(models, self.subject.sample, batch=BATCH, progress=self.watcher.bar("calibration"))
        scores = evaluate(models, self.evaluation, batch=BATCH, progress=self.watcher.bar("evaluation"))
        for number, row in enumerate(rows):
            row |= scored(scores[str(number)]) | {"calibration_kl": calibration[str(number)].kl}
        return {WHOLE: scored(scores[WHOLE]), "rows": rows}

    def _call(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        module = module.to(self.device)

        def call(pixels: Tensor) -> Tensor:
            with torch.inference_mode():
                return module(pixels.to(self.device)).cpu()

        return call


def scored(one: Scores) -> dict[str, Any]:
    """Ready for JSON. standard_error: of the accuracy, a share of independent images."""
    accuracy = one.accuracy
    error = None if accuracy is None else math.sqrt(accuracy * (1 - accuracy) / one.images)
    return {
        "images": one.images,
        "kl": one.kl,
        "agreement": one.agreement,
        "accuracy": accuracy,
        "standard_error": error,
        "evaluation_seconds": one.seconds,
    }
