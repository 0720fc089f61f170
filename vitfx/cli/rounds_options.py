"""The arguments for pruning in rounds, each retrained before the next."""

from __future__ import annotations

import argparse

from vitfx.pruning.goal import PRICED, Goal
from vitfx.runs.rounds_steps import Rounds
from vitfx.support.errors import UserError

_GOALS = ", ".join(f"--{kind}" for kind in PRICED)


def add_rounds(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group(
        "rounds",
        "a model that is cut in steps and retrained behind each loses less than one that is cut in one go: prune, "
        f"recover, prune, recover, with one of {_GOALS}; the folder has round-1/pruned, round-1/recovered, round-2/… "
        "and rounds.md, which measures every step against the original",
    ).add_argument
    add("--rounds", type=int, metavar="R", help="steps to the goal, each cutting by the same factor; 2 or 3 are usual")
    add(
        "--recover-minutes",
        type=float,
        metavar="M",
        help="retraining behind each step, as `python -m vitfx.recover --minutes M` does it: the original teaches, "
        "labels are not needed; all R steps take R times M minutes and what pruning and measuring take",
    )


def read_rounds(options: argparse.Namespace, goal: Goal | None) -> Rounds | None:
    """goal: what `vitfx.cli.goal_options.read_goal` found, also for a sweep. Raises UserError."""
    count, minutes = options.rounds, options.recover_minutes
    if count is None and minutes is None:
        return None
    if minutes is None:
        raise UserError(f"--rounds {count} does not say how long to retrain behind each: add --recover-minutes")
    if count is None:
        raise UserError(f"--recover-minutes {minutes:g} does not say in how many steps to prune: add --rounds")
    rounds = Rounds(count, minutes)
    if options.sweep is not None:
        raise UserError(f"--rounds {count} goes to one goal and --sweep {options.sweep} to several: give one of them")
    if goal is None or goal.kind not in PRICED:
        found = "without a goal there are no steps to it" if goal is None else f"--{goal.kind} {goal.value:g} is none"
        raise UserError(f"--rounds {count} needs a goal that can be divided, and {found}: give one of {_GOALS}")
    return rounds
