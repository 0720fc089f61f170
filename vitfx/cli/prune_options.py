"""What `vitfx.prune` was asked for: its arguments, checked together, as a run."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

import torch

from vitfx.circuits.circuit import Circuit, read_circuit
from vitfx.cli.goal_options import SAMPLES, GoalOptions, read_goal, settle_goal
from vitfx.cli.options import given_settings, make_settings, threshold
from vitfx.cli.rounds_options import read_rounds
from vitfx.deploy.deployment import Deployment, default_deployment, read_rewrites
from vitfx.deploy.precision_file import check_precision
from vitfx.deploy.precisions import FP32, ONNX_RUNTIME
from vitfx.deploy.runtimes import check_runtime
from vitfx.discovery.basis.settings import Settings
from vitfx.discovery.memory import check_memory
from vitfx.images.image_set import ImageSet
from vitfx.pruning.goal import Target
from vitfx.pruning.token_merging import AUTO
from vitfx.recovery.heal import MINUTES
from vitfx.runs.choose_classes import own_classes
from vitfx.runs.inputs import Inputs, open_inputs
from vitfx.runs.prune_run import CircuitRun, GoalRun, PruneRun, RoundsRun, SweepRun
from vitfx.support.devices import pick_device
from vitfx.support.errors import UserError
from vitfx.support.files import JOURNAL, ROUNDS, SWEEP, UNFINISHED, check_output

COMPENSATE_SAMPLES = 512


class _Shared(TypedDict):
    """What all runs have."""

    inputs: Inputs
    evaluation: ImageSet
    device: torch.device
    out: Path
    force: bool
    deployment: Deployment
    tokens: str | None


class _Timed(_Shared):
    """What all runs with a target have."""

    target: Target
    samples: int
    seed: int
    memory: float | None


def open_run(options: argparse.Namespace, command: str) -> PruneRun:
    """Everything that can be wrong with what the user gave is found here or while tracing: nothing is written yet.

    command: as the user typed it. Raises UserError.
    """
    given = given_settings(options)
    rewrites = read_rewrites(options.rewrites)
    asked = read_goal(options, given)
    goal = None if asked is None else asked.goal
    rounds = read_rounds(options, goal)
    circuit, settings = _settings(options, given, asked)
    _check_numbers(options)
    precision = _precision(options, asked)
    _check_of_one_model(options)
    out = _out(options, settings, asked)
    unfinished = unfinished_file(options, discovers=asked is None and circuit is None)
    check_output(out, force=options.force, unfinished=unfinished)
    device = pick_device(options.device)
    onnx_device = device if asked is None else pick_device(asked.target.device)
    runtime = ONNX_RUNTIME if asked is None else asked.target.runtime
    check_runtime(runtime, onnx_device)
    check_precision(precision, onnx_device, runtime)
    inputs = open_inputs(_with_classes(options, circuit))
    if asked is not None:
        asked, inputs = settle_goal(asked, inputs)
    if circuit is None and "samples" not in given:
        settings = replace(settings, samples=inputs.available(settings.samples))
    evaluation = inputs.splits.evaluation
    if 0 < options.eval_samples < len(evaluation):
        evaluation = evaluation.sample(options.eval_samples, settings.seed)
    shared: _Shared = {
        "inputs": inputs,
        "evaluation": evaluation,
        "device": device,
        "out": out,
        "force": options.force,
        "deployment": default_deployment(rewrites, onnx_device, portable=options.portable, opset=options.opset),
        "tokens": options.tokens,
    }
    if asked is None:
        return CircuitRun(
            **shared,
            settings=settings,
            circuit=circuit,
            circuit_file=options.circuit,
            compensate=options.compensate or "ridge",
            compensate_samples=options.compensate_samples or COMPENSATE_SAMPLES,
            precision=precision,
        )
    timed = _Timed(**shared, target=asked.target, samples=settings.samples, seed=settings.seed, memory=options.memory)
    if rounds is not None:
        return RoundsRun(**timed, goal=asked.goal, rounds=rounds, command=command)
    if asked.speedups:
        return SweepRun(**timed, speedups=asked.speedups)
    minutes = options.heal_minutes
    if minutes is None:
        minutes = MINUTES if asked.goal.priced else 0.0
    timed["tokens"] = options.tokens or AUTO
    return GoalRun(**timed, goal=asked.goal, precision=precision, heal_minutes=minutes, further="samples" not in given)


def _check_numbers(options: argparse.Namespace) -> None:
    if options.eval_samples < 0:
        raise UserError(f"--eval-samples {options.eval_samples} is negative: give a number of images, 0 for all")
    if options.compensate_samples is not None and options.compensate_samples < 2:
        raise UserError(f"--compensate-samples {options.compensate_samples} is too small: give 2 or more")
    if options.memory is not None:
        check_memory(options.memory)
    minutes = options.heal_minutes
    if minutes is not None and not (minutes >= 0 and math.isfinite(minutes)):
        raise UserError(f"--heal-minutes {minutes:g} is no length of time: give a number of minutes, 0 for none")


def _check_of_one_model(options: argparse.Namespace) -> None:
    """Refuses beside a sweep or rounds what is not for several models."""
    for name in ("tokens", "heal_minutes"):
        value = getattr(options, name)
        if value is not None and (several := options.sweep or options.rounds):
            other = "--sweep" if several is options.sweep else "--rounds"
            raise UserError(f"--{name.replace('_', '-')} {value} is for one model: leave out {other}")


def unfinished_file(options: argparse.Namespace, *, discovers: bool) -> str:
    """The file in the folder of results that a run which was stopped goes on from, or the one that any run leaves.

    discovers: whether the run makes a circuit, which has a journal.
    """
    if options.rounds is not None:
        return ROUNDS
    if options.sweep is not None:
        return SWEEP
    return JOURNAL if discovers else UNFINISHED


def _settings(
    options: argparse.Namespace, given: Mapping[str, Any], asked: GoalOptions | None
) -> tuple[Circuit | None, Settings]:
    """The settings of a discovery, with the circuit that replaces it, if one does; of a goal images and seed alone."""
    if asked is not None:
        return None, Settings(**{"samples": SAMPLES, **{name: given[name] for name in given if name != "max_kl"}})
    if options.circuit is None:
        return None, make_settings(dict(given))
    if given:
        name = min(given).replace("_", "-")
        raise UserError(f"--circuit {options.circuit} brings its own settings: leave out --{name}, or discover again")
    circuit = read_circuit(options.circuit)
    return circuit, Settings.from_json(circuit.settings)


def _with_classes(options: argparse.Namespace, circuit: Circuit | None) -> argparse.Namespace:
    """The options, with a circuit's own classes where it was found for some."""
    if circuit is None:
        return options
    classes, other = own_classes(circuit.settings, options.classes, other=options.other)
    return argparse.Namespace(**{**vars(options), "classes": classes, "other": other})


def _precision(options: argparse.Namespace, asked: GoalOptions | None) -> str:
    """Of the third file: what the user gave, or what the target measures."""
    given: str = options.precision
    target = None if asked is None else asked.target
    wanted = FP32 if target is None else target.precision
    several = "sweep" if options.sweep is not None else "rounds"
    if getattr(options, several) is not None and {given, wanted} != {FP32}:
        cause = f"--precision {given}" if given != FP32 else f"{wanted} in --target {target}"
        raise UserError(f"--{several} measures float32 alone: leave out {cause}")
    if wanted == FP32:
        return given
    if given not in (FP32, wanted):
        raise UserError(f"--precision {given} is not what --target {target} measures: leave one out")
    return wanted


def _out(options: argparse.Namespace, settings: Settings, asked: GoalOptions | None) -> Path:
    stem = Path(options.model).stem
    default = f"{stem}-{options.circuit.stem}" if options.circuit else f"{stem}-pruned-{threshold(settings)}"
    if options.sweep is not None:
        default = f"{stem}-sweep"
    elif asked is not None:
        goal = asked.goal
        default = f"{stem}-pruned" + ("" if asked.assumed else f"-{goal.kind.partition('-')[2]}{goal.value:g}")
    if options.rounds is not None:
        default += f"-rounds{options.rounds}"
    return options.out or Path(default)
