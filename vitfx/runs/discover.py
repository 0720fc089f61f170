"""Discoveries of one command, from a canonical graph to circuit files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.fx import GraphModule

from vitfx.circuits.circuit import Circuit
from vitfx.circuits.details import Abstention, Fidelity
from vitfx.discovery.basis.fidelity import fidelity
from vitfx.discovery.basis.journal import FileJournal, SharedJournal
from vitfx.discovery.basis.settings import Settings
from vitfx.discovery.certainty import random_half, settle
from vitfx.discovery.run import Discovery, discover, journal_key, origins
from vitfx.discovery.stability import Outcome, stability
from vitfx.images.image_set import Images, ImageSet
from vitfx.images.shifts import AS_THEY_ARE, SHIFTS
from vitfx.runs.inputs import Inputs
from vitfx.support.errors import UserError
from vitfx.support.files import WriteError, write_aside
from vitfx.support.processes import OwnFailure, Share, ToldElsewhere, on_each, on_first
from vitfx.support.progress import Watcher


@dataclass(frozen=True)
class Discoveries:
    """What all discoveries of a command have in common."""

    inputs: Inputs
    graph_module: GraphModule  #: canonical, on its device
    images: Images  #: calibration images of the settings' seed
    evaluated: int  #: held-out images that circuits are run on, at most
    repeats: int  #: runs of each circuit, with this seed and those that follow
    force: bool
    share: Share
    watcher: Watcher
    mapped: bool = False  #: whether most of what is kept in memory goes to a file beside the circuit
    halves: int = 0  #: random halves of the images that each circuit is held against
    certain: float | None = None  #: see `vitfx.discovery.certainty.settle`

    @property
    def facts(self) -> dict[str, str]:
        return origins(self.graph_module, self.images)

    def begun(self, out: Path) -> bool:
        """Whether an earlier run was stopped before it had written its circuit there."""
        suffixes = [*map(_repeat, range(self.repeats)), *map(_half, range(self.halves))]
        return any(self._journal_path(out, suffix).exists() for suffix in suffixes)

    def run(self, settings: Settings, out: Path) -> Outcome:
        """The first of `run_all`."""
        return self.run_all(settings, out)[0]

    def run_all(self, settings: Settings, out: Path) -> list[Outcome]:
        """Discovers, as often as asked, and writes the first run's circuit, with how far the others agree with it.

        Journals beside the file keep all decisions until then, except after a UserError of a discovery, in which the
        same command would end again. Raises UserError, also where a journal is of another run.
        """
        evaluated = self._held_out(settings)
        found, journal = self._discover(settings, self.images, self._journal_path(out, _repeat(0)))
        journals = [journal]
        discovery = settle(found, self._on_halves(settings, out, journals), self.certain) if self.halves else found
        details = discovery.circuit.details.copy()
        if evaluated is not None:
            images = on_each(self.share, lambda: evaluated.load(self.watcher.bar("loading")))
            details["evaluation"] = self._evaluation(discovery, images)
            if self.certain is not None:
                details["abstention"] = self._abstention(found, discovery, images, settings.seed)
        outcomes = [Outcome.of(discovery)]
        for repeat in range(1, self.repeats):
            again = replace(settings, seed=settings.seed + repeat)
            self.watcher.say(f"repeat {repeat + 1} of {self.repeats}, seed {again.seed}")
            images = on_each(self.share, lambda again=again: self._images(again))  # type: ignore[misc]
            repeated, journal = self._discover(again, images, self._journal_path(out, _repeat(repeat)))
            outcomes.append(Outcome.of(repeated))
            journals.append(journal)
        if self.repeats > 1:
            details["stability"] = stability(outcomes)
            details["stability"]["other_images"] = settings.samples < len(self.inputs.splits.calibration)
        circuit = replace(discovery.circuit, details=details)
        if self.share.rank == 0:
            write_aside(out, circuit.to_json())
        self._discard(journals)
        return [replace(outcomes[0], circuit=circuit), *outcomes[1:]]

    def _on_halves(self, settings: Settings, out: Path, journals: list[FileJournal]) -> list[Outcome]:
        """What discovery comes to on each half of the images. journals: theirs are added."""
        outcomes = []
        for number in range(self.halves):
            self.watcher.say(f"half {number + 1} of {self.halves}")
            half = random_half(self.images, settings.seed, number)
            own = replace(settings, samples=len(half))
            discovery, journal = self._discover(own, half, self._journal_path(out, _half(number)))
            outcomes.append(Outcome.of(discovery))
            journals.append(journal)
        return outcomes

    def _discover(self, settings: Settings, images: Images, path: Path) -> tuple[Discovery, FileJournal]:
        facts = origins(self.graph_module, images)
        key = journal_key(settings, facts, self._device)
        own = on_first(self.share, lambda: FileJournal(path, key, force=self.force))
        if len(own):
            self.watcher.say(f"going on after {len(own):,} decisions of an earlier run")
        journal = SharedJournal(own, self.share)
        try:
            folder = path.parent if self.mapped else None
            discovery = discover(self.graph_module, images, settings, facts, journal, self.watcher, self.share, folder)
        except (WriteError, ToldElsewhere, OwnFailure):
            raise
        except UserError:
            self._discard([own])
            raise
        return discovery, own

    def _images(self, settings: Settings) -> Images:
        return self.inputs.calibration(settings.samples, settings.seed, self.watcher.bar("loading"))

    def _held_out(self, settings: Settings) -> ImageSet | None:
        """This process's part of the held-out images that the circuit is run on; None for none. Raises UserError."""
        held_out = self.inputs.splits.evaluation
        if not self.evaluated or settings.ablation == "resample":
            return None
        chosen = held_out.sample(min(self.evaluated, len(held_out)), settings.seed)
        if len(chosen) < self.share.world:
            raise UserError(
                f"{len(chosen)} evaluation images are too few for {self.share.world} processes: give more, or "
                "`eval_samples` 0"
            )
        return chosen.subset(range(self.share.rank, len(chosen), self.share.world))

    def _evaluation(self, discovery: Discovery, images: Images) -> Fidelity:
        """How faithful the circuit is on images that discovery did not see; images: this process's part of them."""
        return fidelity(
            discovery.graph,
            discovery.circuit.removed,
            discovery.reference,
            images.pixels.to(self._device),
            None if images.labels is None else images.labels.to(self._device),
            self.share,
            self.watcher.bar("evaluating"),
            discovery.calibration.divergence,
        )

    def _abstention(self, found: Discovery, settled: Discovery, images: Images, seed: int) -> dict[str, Abstention]:
        """The circuit with and without its abstentions, on held-out images as they are and shifted."""
        numbers = range(self.share.rank, self.share.rank + self.share.world * len(images), self.share.world)
        compared = {}
        for name, shift in {AS_THEY_ARE: None, **SHIFTS}.items():
            pixels = images.pixels if shift is None else shift(images.pixels, numbers, seed)
            abstaining, removing = (
                self._evaluation(discovery, replace(images, pixels=pixels)) for discovery in (settled, found)
            )
            compared[name] = Abstention(abstaining=abstaining, removing=removing)
        return compared

    @property
    def _device(self) -> torch.device:
        return next(self.graph_module.parameters()).device

    @staticmethod
    def _journal_path(out: Path, suffix: str) -> Path:
        return out.with_name(f".{out.name}{suffix}.journal")

    def _discard(self, journals: Sequence[FileJournal]) -> None:
        if self.share.rank == 0:
            for journal in journals:
                journal.discard()


def _repeat(number: int) -> str:
    return f".{number}" if number else ""


def _half(number: int) -> str:
    return f".half{number}"


def matches(circuit: Circuit, settings: Settings, facts: dict[str, str], repeats: int) -> bool:
    """Whether a discovery with these settings would give the same circuit."""
    runs = circuit.details["stability"]["repeats"] if "stability" in circuit.details else 1
    return dict(circuit.settings) == settings.to_json() and dict(circuit.origins) == facts and runs == repeats
