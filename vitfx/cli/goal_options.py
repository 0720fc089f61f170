"""The arguments that say what a pruned model must reach, in place of τ."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vitfx.pruning.goal import DROP, FLOPS, GOALS, KL, PARAMETERS, SPEEDUP, Goal, Target, parse_target
from vitfx.runs.sweep_points import read_speeds
from vitfx.support.errors import UserError

SAMPLES = 1024
"""Calibration images of a run for a goal: survivors are refitted on three quarters, one is held out."""
_SHARED = {"seed", "samples", "max_kl"}
"""Discovery's arguments that a goal has a use for."""


def add_goal(parser: argparse.ArgumentParser) -> None:
    """`--max-kl` is among discovery's arguments: without --tau and --method it is a goal."""
    add = parser.add_argument_group(
        "goals",
        "in place of --tau: what is asked for is searched for and measured; --max-kl alone is one too "
        f"(calibration on {SAMPLES} images, or all that there are, if --samples does not say)",
    ).add_argument
    add(f"--{SPEEDUP}", type=float, metavar="X", help="X times as fast as the plain export, on the target")
    add(
        "--sweep",
        metavar="LOW:HIGH:COUNT",
        help="models of several speed-ups, each reached from the one before, such as 1.2:2.0:5: what is lost against "
        "time, as a table, JSON and a picture, with each model's plan and file",
    )
    add(f"--{DROP}", type=float, metavar="POINTS", help="as fast as may be for so many points of top-1 at most")
    add(f"--{PARAMETERS}", type=float, metavar="SHARE", help="so much of the parameters, 0 to 1, losing least")
    add(f"--{FLOPS}", type=float, metavar="SHARE", help="so much of the FLOPs, 0 to 1, losing least")
    add(
        "--target",
        default=str(Target()),
        metavar="DEVICE[:fp16]:batch=N",
        help="where and at which batch times are measured, of pruned model and plain export alike; with fp16 both are "
        f"in float16, which GPUs are fast in (default {Target()})",
    )
    add(
        "--align",
        type=int,
        metavar="N",
        help="MLPs that are cut keep a multiple of N neurons (default 8 with fp16, which tensor cores want, else 1)",
    )


def read_goal(options: argparse.Namespace, given: Mapping[str, Any]) -> tuple[Goal, Target] | None:
    """given: what `vitfx.cli.options.given_settings` found. Raises UserError where goals or other arguments exclude
    each other."""
    values = {kind: getattr(options, kind.replace("-", "_")) for kind in GOALS}
    named = "sweep" if options.sweep is not None else None
    if named:
        if clash := next((kind for kind, value in values.items() if value is not None), None):
            raise UserError(f"--sweep and --{clash} are goals of their own: give one")
        values[SPEEDUP] = read_speeds(options.sweep)[-1]
    found = [Goal(kind, value) for kind, value in values.items() if value is not None and kind != KL]
    others = sorted(given.keys() - _SHARED)
    if not found and values[KL] is not None and not others and options.circuit is None:
        found = [Goal(KL, values[KL])]
    if not found:
        for name, default in (("target", str(Target())), ("align", None)):
            if (value := getattr(options, name)) != default:
                raise UserError(f"--{name} {value} is for a goal: give one, such as --target-speedup 1.5")
        return None
    if len(found) > 1 or (values[KL] is not None and found[0].kind != KL):
        names = " and ".join(f"--{kind}" for kind, value in values.items() if value is not None)
        raise UserError(f"{names} are goals of their own: give one")
    if options.circuit is not None:
        raise UserError(f"--{named or found[0].kind} looks for its own deletions: leave out --circuit")
    ignored = [name for name in ("compensate", "compensate_samples") if getattr(options, name) is not None]
    if ignored:
        name = ignored[0].replace("_", "-")
        raise UserError(f"--{named or found[0].kind} refits survivors by ridge regression: leave out --{name}")
    if others:
        name = others[0].replace("_", "-")
        raise UserError(f"--{named or found[0].kind} stands in place of discovery: leave out --{name}")
    target = parse_target(options.target)
    return found[0], target if options.align is None else replace(target, align=options.align)
