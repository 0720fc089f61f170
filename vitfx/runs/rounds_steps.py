"""The steps of pruning in rounds, as they were measured: a record, a table, Markdown.

`rounds.json` is written before the first step and after every one, so that a run that was stopped goes on behind the
last one."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from vitfx.pruning.goal import SPEEDUP, Goal, reaches
from vitfx.reports.records import ROUNDS_RECORD, Facts
from vitfx.runs.beside_plain import BesidePlain
from vitfx.support.errors import UserError
from vitfx.support.files import ROUNDS, check_same
from vitfx.support.json_files import write_json
from vitfx.support.tables import Table, markdown_report
from vitfx.support.text import digits, large

PRUNED, RECOVERED = "pruned", "recovered"


@dataclass(frozen=True, kw_only=True)
class Step(BesidePlain):
    """One model. round: from 1. kind: what was done, `PRUNED` or `RECOVERED`. asked: the round's value of the goal.
    params, flops: what is left; params_share, flops_share: of the original's. said: what the retraining says of itself.
    folder: where its files are, beside rounds.json."""

    round: int
    kind: str
    asked: float
    params: int
    flops: int
    params_share: float
    flops_share: float
    said: str | None
    folder: str

    @property
    def name(self) -> str:
        return f"round {self.round}, {self.kind}"

    @staticmethod
    def from_json(record: dict[str, Any]) -> Step:
        """Raises TypeError for anything but what `to_json` makes."""
        return Step(**record)


def missed(steps: Sequence[Step], settings: Mapping[str, Any]) -> str | None:
    """What the last step fell short of, in words; None where it is what was asked for."""
    last = steps[-1]
    if settings["goal_kind"] != SPEEDUP or reaches(last.speedup, last.asked):
        return None
    return f"{last.asked:g}× faster was asked for and missed: measured {last.speedup:.2f}×"


def to_table(steps: Sequence[Step], settings: Facts) -> Table:
    """For a console of 80 characters: of parameters and FLOPs only the share that is left."""
    return _table(steps, settings, counts=False)


def to_markdown(steps: Sequence[Step], settings: Facts, environment: Facts) -> str:
    """rounds.md."""
    facts = [
        "Each step is measured against the plain export of the original, in turns with it, on "
        f"{settings['target']}; KL, agreement and top-1 are those of the exported files on {steps[0].images} "
        "evaluation images.",
        "The report in a step's own folder compares it with the model that the step was given.",
        f"Each retraining had {settings['minutes']:g} minutes, with the original as teacher.",
        *(f"{step.name}: {step.said}." for step in steps if step.said),
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
            f"{step.agreement:.2%}",
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
    """count: cuts on the way to the goal. minutes: of retraining behind each."""

    count: int
    minutes: float

    def __post_init__(self) -> None:
        """Raises UserError, naming the option and its value."""
        if self.count < 1:
            raise UserError(f"--rounds is {self.count}: give 1 or more")
        if not (self.minutes > 0 and math.isfinite(self.minutes)):
            raise UserError(f"--recover-minutes is {self.minutes:g}: give a number above 0")

    def goals(self, goal: Goal, rewritten: float = 1.0) -> list[Goal]:
        """What each round is to reach: every round cuts by the same factor, and the last one meets the goal. rewritten:
        the speed-up before anything is cut, from which a speed-up is divided."""
        first = min(max(rewritten, 1.0), goal.value) if goal.kind == SPEEDUP else 1.0
        values = [first * (goal.value / first) ** (number / self.count) for number in range(1, self.count)]
        return [Goal(goal.kind, value) for value in (*values, goal.value)]


ARTIFACTS = ("pruned.pt", "pruned.onnx")


def read_steps(folder: Path, settings: Mapping[str, Any], *, force: bool) -> tuple[list[Step], dict[str, Any]]:
    """Steps of an earlier run with the same settings, up to the first one whose files are gone, and the environment
    that they were recorded with; nothing with force.

    settings: all that a step depends on, fingerprints included, JSON-ready. Raises UserError where the file has rounds
    of other settings, or is no such file.
    """
    path = folder / ROUNDS
    if force or not path.exists():
        return [], {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        earlier: dict[str, Any] = record["settings"]
        environment: dict[str, Any] = record["environment"]
        steps = [Step.from_json(one) for one in record["steps"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is no record of rounds ({error!r}): name another folder with --out, or pass --force"
        ) from error
    check_same(path, "run", earlier, settings)
    whole = takewhile(lambda one: all((folder / one.folder / name).is_file() for name in ARTIFACTS), steps)
    return list(whole), environment


def write_steps(
    folder: Path, steps: Sequence[Step], settings: Mapping[str, Any], environment: Mapping[str, Any]
) -> None:
    """environment: of the machine that measured last, empty before the first step. Raises WriteError."""
    record = {
        "settings": dict(settings),
        "environment": dict(environment),
        "steps": [one.to_json() for one in steps],
    }
    write_json(folder / ROUNDS, ROUNDS_RECORD, record)
