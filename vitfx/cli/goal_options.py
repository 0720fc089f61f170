"""The arguments that say what a pruned model must reach, in place of τ."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vitfx.deploy.precisions import FP32
from vitfx.pruning.goal import DROP, FLOPS, GOALS, KL, PARAMETERS, SPEEDUP, Goal, Target, default_goal, parse_target
from vitfx.recovery.heal import MINUTES
from vitfx.runs.inputs import Inputs
from vitfx.runs.sweep_points import read_speeds
from vitfx.support.errors import UserError

SAMPLES = 1024
"""Calibration images of a run for a goal: survivors are refitted on three quarters, one is held out."""
_SHARED = {"seed", "samples", "max_kl"}
"""Discovery's arguments that goals take as well."""


@dataclass(frozen=True)
class GoalOptions:
    """A goal and where it is measured."""

    goal: Goal  #: of a sweep the fastest
    target: Target
    speedups: tuple[float, ...] = ()  #: of a sweep, rising
    assumed: bool = False  #: whether the user asked for nothing


def add_goal(parser: argparse.ArgumentParser) -> None:
    """`--max-kl` is among discovery's arguments: without --tau and --method it is a goal."""
    add = parser.add_argument_group(
        "goals",
        "give one in place of --tau: vitfx searches for a model that meets it and measures that; without either, and "
        f"without discovery's other arguments, it is {_option(labelled=True)}, or {_option(labelled=False)} where "
        "images have no labels; --max-kl without "
        f"discovery's other arguments is a goal too (calibration takes {SAMPLES} images, or all that there are, unless "
        "--samples says otherwise)",
    ).add_argument
    add(f"--{SPEEDUP}", type=float, metavar="X", help="X times as fast as the plain export, on the target")
    add(
        "--sweep",
        metavar="LOW:HIGH:COUNT",
        help="models of several speed-ups, such as 1.2:2.0:5, each made from the one before: a table, JSON and a "
        "picture of what is lost against time, and the plan and the file of each model",
    )
    add(f"--{DROP}", type=float, metavar="POINTS", help="as fast as possible, losing at most so many points of top-1")
    add(f"--{PARAMETERS}", type=float, metavar="SHARE", help="this share of the parameters, 0 to 1, losing least")
    add(f"--{FLOPS}", type=float, metavar="SHARE", help="this share of the FLOPs, 0 to 1, losing least")
    add(
        "--target",
        default=str(Target()),
        metavar="DEVICE[:fp16|:bf16|:int8]:batch=N",
        help="the device, or openvino, which is the CPU with OpenVINO in place of ONNX Runtime, and the batch at which "
        "the pruned model and the plain export are timed; with fp16 both run in float16, which GPUs are fast in, with "
        "bf16 in bfloat16, by OpenVINO; with "
        "int8 the pruned model is quantized, for CPUs, and the plain export is "
        f"not; --precision says the same (default {Target()})",
    )
    add(
        "--heal-minutes",
        type=float,
        metavar="MIN",
        help="train what is left towards the original for so long by the clock, without labels, and keep that where "
        f"held-out images say that it helps; 0 for not at all (default {MINUTES:g}, and 0 for a limit)",
    )
    add(
        "--memory",
        type=float,
        metavar="GIB",
        help="memory at most for the original's streams, which are kept from one cut to the next and, where they need "
        "more, computed again for each (default: kept)",
    )
    add(
        "--align",
        type=int,
        metavar="N",
        help="pruned MLPs keep a multiple of N neurons (default 8 with fp16, as tensor cores prefer, else 1)",
    )


def read_goal(options: argparse.Namespace, given: Mapping[str, Any]) -> GoalOptions | None:
    """given: what `vitfx.cli.options.given_settings` returned. Raises UserError where goals or other arguments exclude
    each other."""
    values = {kind: getattr(options, kind.replace("-", "_")) for kind in GOALS}
    speedups: tuple[float, ...] = ()
    if options.sweep is not None:
        if clash := next((kind for kind, value in values.items() if value is not None), None):
            raise UserError(f"--sweep and --{clash} are both goals: give one of them")
        speedups = read_speeds(options.sweep)
        values[SPEEDUP] = speedups[-1]
    goals = [Goal(kind, value) for kind, value in values.items() if value is not None and kind != KL]
    others = sorted(given.keys() - _SHARED)
    if not goals and values[KL] is not None and not others and options.circuit is None:
        goals = [Goal(KL, values[KL])]
    assumed = not goals and values[KL] is None and not others and not _by_circuit(options)
    if assumed:
        goals = [default_goal(labelled=True)]
    if not goals:
        for name, default in (("target", str(Target())), ("align", None), ("heal_minutes", None), ("memory", None)):
            if (value := getattr(options, name)) != default:
                raise UserError(
                    f"--{name.replace('_', '-')} {value} is for a goal: give one, such as --target-speedup 1.5"
                )
        return None
    if len(goals) > 1 or (values[KL] is not None and goals[0].kind != KL):
        names = " and ".join(f"--{kind}" for kind, value in values.items() if value is not None)
        raise UserError(f"{names} are all goals: give one of them")
    _check_clashes(options, "sweep" if speedups else goals[0].kind, others)
    target = parse_target(options.target)
    if target.precision == FP32:
        target = target.in_precision(options.precision)
    target = target if options.align is None else replace(target, align=options.align)
    return GoalOptions(goals[0], target, speedups, assumed)


def settle_goal(asked: GoalOptions, inputs: Inputs) -> tuple[GoalOptions, Inputs]:
    """Where the user asked for nothing: a goal that the data can judge, which is said. Else what was given."""
    if not asked.assumed:
        return asked, inputs
    splits = inputs.splits
    goal = default_goal(labelled=splits.calibration.has_labels)
    option = _option(labelled=splits.calibration.has_labels)
    remark = f"neither --tau nor a goal was given: as fast as possible, with {goal} ({option})"
    description, remarks = f"{splits.description}; {remark}", (*splits.remarks, remark)
    return replace(asked, goal=goal), replace(inputs, splits=replace(splits, description=description, remarks=remarks))


def _option(*, labelled: bool) -> str:
    goal = default_goal(labelled=labelled)
    return f"--{goal.kind} {goal.value:g}"


def _by_circuit(options: argparse.Namespace) -> bool:
    """Whether the user gave what only a circuit has, or rounds, which want a goal of their own."""
    given = (options.circuit, options.compensate, options.compensate_samples, options.rounds)
    return any(value is not None for value in given)


def _check_clashes(options: argparse.Namespace, goal: str, others: list[str]) -> None:
    """goal: the option's name. others: discovery's arguments that were given and do not go with a goal."""
    if options.circuit is not None:
        raise UserError(f"--{goal} chooses its own deletions: leave out --circuit")
    for name in ("compensate", "compensate_samples"):
        if getattr(options, name) is not None:
            raise UserError(f"--{goal} refits survivors by ridge regression: leave out --{name.replace('_', '-')}")
    if others:
        raise UserError(f"--{goal} replaces discovery: leave out --{others[0].replace('_', '-')}")
