"""Prune a trained ViT: discover its circuit, delete what is dead, prove it, export, measure.

In Python: `vitfx.prune(model, images, labels, target_speedup=1.5).save("small/")`.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Unpack

from numpy.typing import ArrayLike
from rich.console import Console
from torch import Tensor, nn

from vitfx.circuits.circuit import Circuit
from vitfx.cli.exit_codes import BEGINS_ANEW, GOES_ON, ending, going_on
from vitfx.cli.next_steps import after_prune, after_several
from vitfx.cli.parser import CommandParser
from vitfx.cli.prune_options import open_run, unfinished_file
from vitfx.cli.prune_parser import prune_parser
from vitfx.discovery.basis.settings import MEASURING, Settings
from vitfx.pruning.goal import DROP, FLOPS, KL, PARAMETERS, SPEEDUP, parse_target
from vitfx.pruning.token_merging import AUTO
from vitfx.reports.prune_text import to_table
from vitfx.runs.choose_classes import Asked, own_classes
from vitfx.runs.in_memory import (
    DiscoverySettings,
    PrunedModel,
    asked_task,
    choose_goal,
    make_settings,
    prune_by_circuit,
    prune_for_goal,
    read_limit,
    watching,
)
from vitfx.runs.memory_inputs import open_given
from vitfx.runs.prune import run_circuit, run_goal
from vitfx.runs.prune_run import CircuitRun, GoalRun, PruneRun, RoundsRun, SweepRun
from vitfx.runs.rounds import run_rounds
from vitfx.runs.rounds_steps import to_table as rounds_table
from vitfx.runs.sweep import run_sweep
from vitfx.runs.sweep_points import to_table as sweep_table
from vitfx.support.callable_module import make_callable
from vitfx.support.console import entry_point
from vitfx.support.devices import pick_device
from vitfx.support.files import ROUNDS, SWEEP
from vitfx.support.locks import hold_folder
from vitfx.support.progress import Watcher, console_watcher
from vitfx.support.tables import Table


def prune(
    model: nn.Module,
    images: Tensor | ArrayLike,
    labels: Tensor | ArrayLike | None = None,
    *,
    tau: float | None = None,
    target_speedup: float | None = None,
    target_flops: float | None = None,
    target_params: float | None = None,
    max_drop: float | None = None,
    max_divergence: float | None = None,
    max_kl: float | None = None,
    target: str = "cpu:batch=8",
    task: str | None = None,
    classes: Asked | None = None,
    other: bool = False,
    output: str | None = None,
    circuit: Circuit | None = None,
    compensate: str = "ridge",
    tokens: str | None = None,
    device: str = "auto",
    progress: bool = False,
    **settings: Unpack[DiscoverySettings],
) -> PrunedModel:
    """Prunes any pre-LN ViT in memory: by τ, by a circuit, or for one goal. Raises UserError and VerificationError.

    model: maps (B, C, H, W) to logits (B, K), another answer for each image, or a record with `logits`; stays as it is.
    images: floats (N, C, H, W), a tensor, array or list, preprocessed for the model; all are used for calibration. A
        goal holds a quarter of them out, to say what is lost; give some hundreds.
    labels: integers (N,), for `max_drop` and for corruptions by class; for a multi-label model a 0 or 1 each, (N, K).
    tau: the KL divergence, in nats an image, that deleting one head or MLP path may cost (default 0.05).
    target_speedup, target_flops, target_params: goals; times faster than the plain export, or the share to keep.
    max_drop, max_divergence: goals; points of top-1, or the divergence from the original, in the unit of the task's
        (nats for classes, for which max_kl is another name). Beside `tau`, max_divergence limits the whole circuit.
        Where nothing is asked for, the goal is max_drop=1, or max_divergence=0.02 without labels.
    target: where a speed-up is measured, such as "cpu:batch=8".
    task: what the model answers, one of `vitfx.graph.kinds.KINDS`; by default found by looking at it.
    classes: those that are needed, names or numbers of logits: the others' logits go, and only images of these count.
    other: one more logit, the log-sum-exp of the others', is for images of none of these; then all images count.
    output: the answer's name, for a model that returns several tensors: a key or a position, "hidden_states.3".
    circuit: deletes what is dead in it, in place of discovery; images must be those that it was found on.
    compensate: what makes up for deletions, "none", "mean" or "ridge", which refits survivors and goals always have.
    tokens: how tokens merge: "r=4", "3:8,6:8", "off" or, for a goal, "auto", its default; None is as in the model.
    progress: shows bars on standard error.
    settings: how the circuit is found, see `vitfx.runs.in_memory.DiscoverySettings`.
    """
    own, place, kind = {} if circuit is None else circuit.settings, pick_device(device), asked_task(task)
    given = open_given(model, images, labels, output, *own_classes(own, classes, other=other))
    values = {SPEEDUP: target_speedup, FLOPS: target_flops, PARAMETERS: target_params, DROP: max_drop}
    values[KL] = read_limit(max_divergence, max_kl)
    by_circuit = circuit is not None or compensate != "ridge"
    goal = choose_goal(values, tau=tau, settings=settings, by_circuit=by_circuit, labelled=labels is not None)
    with watching(progress) as watcher:
        if goal is not None:
            asked, seed = (*given, goal, parse_target(target)), settings.get("seed", 0)
            return prune_for_goal(*asked, device=place, seed=seed, watcher=watcher, task=kind, tokens=tokens or AUTO)
        how = Settings.from_json(own) if own else make_settings(given[1], settings, tau=tau, max_kl=values[KL])
        return prune_by_circuit(
            *given, how, device=place, compensate=compensate, circuit=circuit, watcher=watcher, task=kind, tokens=tokens
        )


@entry_point
def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    options = build_parser().parse_args(given)
    console = Console()
    stopped: Callable[[], str] = _begins_anew

    def work() -> int:
        nonlocal stopped
        with console_watcher(console) as watcher:
            run = open_run(options, shlex.join(["python", "-m", "vitfx.prune", *given]))
            stopped = _stopped(run)
            unfinished = unfinished_file(options, discovers=isinstance(run, CircuitRun) and run.circuit is None)
            with hold_folder(run.out, force=options.force, unfinished=unfinished):
                end = _carry_out(run, options, watcher)
        console.print(end.table)
        for line in (f"{run.out}/ has {end.contents}", *end.following):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        if end.missed is None:
            return 0
        print(f"error: the goal was missed ({end.missed}): the results are written all the same", file=sys.stderr)
        return 1

    return ending(work, lambda: stopped())


def _begins_anew() -> str:
    return BEGINS_ANEW


def _stopped(run: PruneRun) -> Callable[[], str]:
    """What is said after Ctrl-C."""
    match run:
        case CircuitRun() if run.circuit is None and run.settings.method in MEASURING:
            return lambda: GOES_ON
        case SweepRun():
            return going_on(run.out / SWEEP, force=run.force)
        case RoundsRun():
            return going_on(run.out / ROUNDS, force=run.force)
        case _:
            return _begins_anew


@dataclass(frozen=True)
class _End:
    """What is said of a finished run."""

    table: Table
    contents: str  #: of its folder
    missed: str | None  #: the goal that was missed, if one was
    following: list[str]  #: lines of what to do next


def _carry_out(run: PruneRun, options: argparse.Namespace, watcher: Watcher) -> _End:
    match run:
        case RoundsRun():
            rounds = run_rounds(run, watcher)
            table = rounds_table(rounds.steps, rounds.settings)
            return _End(table, "the last round's model, and rounds.md", rounds.missed, after_several(run.out))
        case SweepRun():
            sweep = run_sweep(run, watcher)
            table = sweep_table(sweep.points)
            return _End(table, "the front and its models", sweep.missed, after_several(run.out))
        case GoalRun():
            result = run_goal(run, watcher)
        case CircuitRun():
            result = run_circuit(run, watcher)
    report = result.report
    other = [] if (precision := report["precision"]) is None else [precision["file"]]
    files = ", ".join(["pruned.onnx", *other, "pruned.pt"])
    return _End(to_table(report), f"{files} and report.html", result.missed, after_prune(options, run.out, report))


def build_parser() -> CommandParser:
    return prune_parser(__doc__)


make_callable(prune)

if __name__ == "__main__":
    sys.exit(main())
