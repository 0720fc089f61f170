"""The steps of pruning in rounds, as they were measured: a record, a table, Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from vitfx.pruning.goal import FLOPS, PARAMETERS, SPEEDUP, Goal
from vitfx.reports.records import ROUNDS_RECORD, Facts
from vitfx.runs.beside_plain import BesidePlain
from vitfx.runs.step_file import StepFile
from vitfx.support.errors import UserError
from vitfx.support.files import ROUNDS
from vitfx.support.tables import Table, markdown_report
from vitfx.support.text import digits, large, percent

PRUNED, RECOVERED = "pruned", "recovered"


@dataclass(frozen=True, kw_only=True)
class Step(BesidePlain):
    """One model."""

    round: int  #: from 1
    kind: str  #: `PRUNED` or `RECOVERED`
    asked: float  #: the round's value of the goal
    params: int
    flops: int
    params_share: float  #: of the original's
    flops_share: float  #: likewise
    said: str | None  #: what the retraining reports of itself
    folder: str  #: of its files, beside rounds.json

    @property
    def name(self) -> str:
        return f"round {self.round}, {self.kind}"

    @staticmethod
    def from_json(record: dict[str, Any]) -> Step:
        """Raises TypeError for anything but what `to_json` makes."""
        return Step(**record)


def missed(last: Step, goal: Goal) -> str | None:
    """How the last step falls short of the goal, in words; None where it meets it."""
    shares = {SPEEDUP: last.speedup, PARAMETERS: last.params_share, FLOPS: last.flops_share}
    shortfall = goal.shortfall(shares[goal.kind])
    return None if shortfall is None else f"asked for {goal}, {shortfall}"


def to_table(steps: Sequence[Step], settings: Facts) -> Table:
    """For a console of 80 characters: of parameters and FLOPs only the share that is left."""
    return _table(steps, settings, counts=False)


def to_markdown(steps: Sequence[Step], settings: Facts, environment: Facts, remarks: Sequence[str] = ()) -> str:
    """rounds.md. remarks: what was inferred of the model and its data."""
    facts = [
        "Each step is measured against the plain export of the original, in turns with it, on "
        f"{settings['target']}; KL, agreement and top-1 are those of the exported files on {steps[0].images} "
        "evaluation images.",
        "The report in a step's own folder compares it with the model that the step was given.",
        f"Each retraining had {settings['minutes']:g} minutes, with the original as teacher.",
        *(f"{step.name}: {step.said}." for step in steps if step.said),
        *remarks,
    ]
    title = f"{settings['model']}: {settings['goal']}, in {settings['rounds']} rounds"
    return markdown_report(title, _table(steps, settings, counts=True), facts, settings, environment)


def _table(steps: Sequence[Step], settings: Facts, *, counts: bool) -> Table:
    def left(count: int, share: float) -> str:
        return f"{large(count)} ({share:.1%})" if counts else f"{share:.1%}"

    def top1(share: float | None) -> str:
        return "" if share is None else f"{share:.2%}"

    first = steps[0]
    whole = (left(settings["original_params"], 1.0), left(settings["original_flops"], 1.0))
    original = ("original", "", "1×", digits(first.plain_ms), "0", "100.00%", top1(first.plain_accuracy), *whole)
    rows = [
        (
            step.name,
            f"{step.asked:.3g}×" if settings["goal_kind"] == SPEEDUP else f"{step.asked:.1%}",
            f"{step.speedup:.3f}×",
            digits(step.ms),
            f"{step.kl:.4f}",
            percent(step.agreement),
            top1(step.accuracy),
            left(step.params, step.params_share),
            left(step.flops, step.flops_share),
        )
        for step in steps
    ]
    columns = ("", "asked", "measured", "ms", "KL", "agreement", "top-1", "parameters" if counts else "params", "FLOPs")
    return Table(columns, [original, *rows])


@dataclass(frozen=True)
class Rounds:
    """How a goal is divided."""

    count: int  #: cuts on the way to the goal
    minutes: float  #: of retraining after each

    def __post_init__(self) -> None:
        """Raises UserError, naming the option and its value."""
        if self.count < 1:
            raise UserError(f"`rounds` is {self.count}: give 1 or more")
        if not (self.minutes > 0 and math.isfinite(self.minutes)):
            raise UserError(f"`recover_minutes` is {self.minutes:g}: give a number above 0")

    def goals(self, goal: Goal, rewritten: float = 1.0) -> list[Goal]:
        """What each round must reach: every round cuts by the same factor, and the last one meets the goal.

        rewritten: the speed-up before anything is cut, from which a speed-up is divided.
        """
        first = min(max(rewritten, 1.0), goal.value) if goal.kind == SPEEDUP else 1.0
        values = [first * (goal.value / first) ** (number / self.count) for number in range(1, self.count)]
        return [Goal(goal.kind, value) for value in (*values, goal.value)]


ARTIFACTS = ("pruned.pt", "pruned.pt2", "pruned.onnx")


_FILE = StepFile(ROUNDS_RECORD, "run", "steps", Step.from_json)


def read_steps(folder: Path, settings: Mapping[str, object], *, force: bool) -> tuple[list[Step], dict[str, Any]]:
    """Steps of an earlier run, up to the first one whose files are gone, and the machine: see `StepFile.read`."""
    steps, machine = _FILE.read(folder / ROUNDS, settings, force=force)
    whole = takewhile(lambda step: all((folder / step.folder / name).is_file() for name in ARTIFACTS), steps)
    return list(whole), machine


def write_steps(
    folder: Path, steps: Sequence[Step], settings: Mapping[str, object], machine: Mapping[str, Any]
) -> None:
    """See `StepFile.write`."""
    _FILE.write(folder / ROUNDS, [step.to_json() for step in steps], settings, machine)
