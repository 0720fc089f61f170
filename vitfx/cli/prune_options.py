"""What `vitfx.prune` was asked for: its arguments, checked together, as a job."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitfx.circuits.circuit import Circuit, read_circuit
from vitfx.cli.goal_options import SAMPLES, read_goal
from vitfx.cli.options import given_settings, make_settings, threshold
from vitfx.cli.rounds_options import read_rounds
from vitfx.deploy.deployment import default_deployment, read_rewrites
from vitfx.deploy.precision_file import check_precision
from vitfx.deploy.precisions import FP32
from vitfx.discovery.basis.settings import Settings
from vitfx.pruning.goal import Goal, Target
from vitfx.runs.inputs import open_inputs
from vitfx.runs.prune import Job
from vitfx.runs.rounds_steps import Rounds
from vitfx.runs.sweep_points import read_speeds
from vitfx.support.devices import pick_device
from vitfx.support.errors import UserError
from vitfx.support.files import JOURNAL, ROUNDS, SWEEP, check_output

COMPENSATE_SAMPLES = 512


def open_job(options: argparse.Namespace) -> tuple[Job, Rounds | None]:
    """Everything that can be wrong with what the user gave is found here or while tracing: nothing is written yet.

    Raises UserError.
    """
    given = given_settings(options)
    rewrites = read_rewrites(options.rewrites)
    asked = read_goal(options, given)
    goal = asked and asked[0]
    rounds = read_rounds(options, goal)
    circuit, settings = _settings(options, given, goal)
    if options.eval_samples < 0:
        raise UserError(f"--eval-samples {options.eval_samples} is negative: give a number of images, 0 for all")
    if options.compensate_samples is not None and options.compensate_samples < 2:
        raise UserError(f"--compensate-samples {options.compensate_samples} is too small: give 2 or more")
    speeds = () if options.sweep is None else read_speeds(options.sweep)
    precision = _precision(options, asked and asked[1])
    out = _out(options, settings, goal)
    check_output(out, force=options.force, unfinished=unfinished_file(options))
    device = pick_device(options.device)
    runs_on = device if asked is None else pick_device(asked[1].device)
    check_precision(precision, runs_on)
    inputs = open_inputs(options)
    if circuit is None and "samples" not in given:
        settings = replace(settings, samples=inputs.to_be_had(settings.samples))
    evaluation = inputs.splits.evaluation
    if 0 < options.eval_samples < len(evaluation):
        evaluation = evaluation.sample(options.eval_samples, settings.seed)
    job = Job(
        inputs=inputs,
        evaluation=evaluation,
        settings=settings,
        device=device,
        out=out,
        force=options.force,
        compensate=options.compensate or "ridge",
        compensate_samples=options.compensate_samples or COMPENSATE_SAMPLES,
        deployment=default_deployment(rewrites, runs_on, portable=options.portable),
        circuit=circuit,
        circuit_file=options.circuit,
        goal=asked,
        precision=precision,
        speeds=speeds,
    )
    return job, rounds


def _settings(
    options: argparse.Namespace, given: Mapping[str, Any], goal: Goal | None
) -> tuple[Circuit | None, Settings]:
    """Of discovery; of a goal the images and the seed alone. With the circuit that stands in its place, if one does."""
    if goal is not None:
        known = {name: given[name] for name in ("samples", "seed") if name in given}
        return None, Settings(**{"samples": SAMPLES, **known})
    if options.circuit is None:
        return None, make_settings(dict(given))
    if given:
        name = min(given).replace("_", "-")
        raise UserError(f"--circuit {options.circuit} brings its own settings: leave out --{name}, or discover again")
    circuit = read_circuit(options.circuit)
    return circuit, Settings.from_json(circuit.settings)


def _precision(options: argparse.Namespace, target: Target | None) -> str:
    """Of the third file: what was asked for, and what runs on the target."""
    asked: str = options.precision
    wanted = FP32 if target is None else target.precision
    many = "sweep" if options.sweep is not None else "rounds"
    if getattr(options, many) is not None and {asked, wanted} != {FP32}:
        told = f"--precision {asked}" if asked != FP32 else f"{wanted} in --target {target}"
        raise UserError(f"--{many} measures float32 alone: leave out {told}")
    if wanted == FP32:
        return asked
    if asked not in (FP32, wanted):
        raise UserError(f"--precision {asked} is not what --target {target} measures: leave one out")
    return wanted


def unfinished_file(options: argparse.Namespace) -> str:
    """The file by which a run that was broken off is known."""
    if options.rounds is not None:
        return ROUNDS
    return JOURNAL if options.sweep is None else SWEEP


def _out(options: argparse.Namespace, settings: Settings, goal: Goal | None) -> Path:
    stem = Path(options.model).stem
    default = f"{stem}-{options.circuit.stem}" if options.circuit else f"{stem}-pruned-{threshold(settings)}"
    if options.sweep is not None:
        default = f"{stem}-sweep"
    elif goal is not None:
        default = f"{stem}-pruned-{goal.kind.partition('-')[2]}{goal.value:g}"
    if options.rounds is not None:
        default += f"-rounds{options.rounds}"
    return options.out or Path(default)
