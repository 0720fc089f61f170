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
        "a model loses less when it is pruned in several steps and retrained after each than in one go: prune, "
        f"recover, prune, recover, with one of {_GOALS}; the folder gets round-1/pruned, round-1/recovered, round-2/… "
        "and rounds.md, which compares every step with the original",
    ).add_argument
    add("--rounds", type=int, metavar="R", help="steps to the goal, each by the same factor; 2 or 3 are usual")
    add(
        "--recover-minutes",
        type=float,
        metavar="M",
        help="minutes of retraining after each step, as `python -m vitfx.recover --minutes M` does it: the original "
        "is the teacher, labels are not needed; pruning and measuring come on top of these R times M minutes",
    )


def read_rounds(options: argparse.Namespace, goal: Goal | None) -> Rounds | None:
    """goal: of `vitfx.cli.goal_options.read_goal`, also for a sweep. Raises UserError."""
    count, minutes = options.rounds, options.recover_minutes
    if count is None and minutes is None:
        return None
    if minutes is None:
        raise UserError(f"--rounds {count} does not say how long to retrain after each: add --recover-minutes")
    if count is None:
        raise UserError(f"--recover-minutes {minutes:g} does not say in how many steps to prune: add --rounds")
    rounds = Rounds(count, minutes)
    if options.sweep is not None:
        raise UserError(f"--rounds {count} is for one goal and --sweep {options.sweep} has several: leave one out")
    if goal is None:
        raise UserError(f"--rounds {count} needs a goal: give one of {_GOALS}")
    if not goal.priced:
        raise UserError(f"--rounds {count} can't divide --{goal.kind} {goal.value:g} into steps: give one of {_GOALS}")
    return rounds
