"""Discover a ViT's circuit: which edges between its parts carry the answer. Nothing is deleted."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Unpack

import torch
from numpy.typing import ArrayLike
from rich.console import Console, RenderableType
from torch import Tensor, nn

from vitfx.circuits.circuit import Circuit
from vitfx.circuits.summary import summary
from vitfx.cli.discover_parser import discover_parser
from vitfx.cli.exit_codes import BEGINS_ANEW, GOES_ON, ending
from vitfx.cli.next_steps import after_discover
from vitfx.cli.options import given_settings, make_settings, threshold
from vitfx.cli.parser import CommandParser
from vitfx.discovery.basis.settings import MEASURING, Settings
from vitfx.discovery.certainty import check_halves
from vitfx.discovery.memory import fit, memory_needed
from vitfx.discovery.run import check_settings
from vitfx.discovery.stability import Outcome
from vitfx.graph.canonical import read_module
from vitfx.graph.kinds import words_of
from vitfx.reports.task_pages import overlap_table, tasks_table
from vitfx.runs.choose_classes import Asked
from vitfx.runs.discover import Discoveries
from vitfx.runs.in_memory import DiscoverySettings, asked_task, find_circuit, read_limit, watching
from vitfx.runs.in_memory import make_settings as settings_in_memory
from vitfx.runs.inputs import open_inputs
from vitfx.runs.memory_inputs import open_given
from vitfx.runs.task_circuits import Tasks, discover_tasks, read_tasks
from vitfx.runs.tau_sweep import circuit_path, read_sweep, record_path, sweep, to_table
from vitfx.support.callable_module import make_callable
from vitfx.support.console import entry_point
from vitfx.support.devices import pick_device
from vitfx.support.errors import UserError
from vitfx.support.files import check_new_file
from vitfx.support.locks import hold_file
from vitfx.support.processes import Share, first_holds, first_says, is_first_process, on_each, open_share, share_device
from vitfx.support.progress import Silent, Watcher, console_watcher
from vitfx.support.text import percent


@dataclass(frozen=True)
class _Task:
    """A checked command line."""

    options: argparse.Namespace
    settings: Settings
    taus: tuple[float, ...] | None  #: of a sweep
    tasks: Tasks | None  #: by name, see `vitfx.runs.task_circuits`
    out: Path  #: the circuit, or what the circuits of a sweep are named after
    device: torch.device


def discover(
    model: nn.Module,
    images: Tensor | ArrayLike,
    labels: Tensor | ArrayLike | None = None,
    *,
    tau: float | None = None,
    max_divergence: float | None = None,
    max_kl: float | None = None,
    task: str | None = None,
    classes: Asked | None = None,
    other: bool = False,
    output: str | None = None,
    device: str = "auto",
    progress: bool = False,
    **settings: Unpack[DiscoverySettings],
) -> Circuit:
    """Finds the circuit of any pre-LN ViT in memory. Raises UserError.

    model: maps (B, C, H, W) to logits (B, K), to another answer for each image, or to a record with `logits`; it is
        left as it is.
    images: floats (N, C, H, W), a tensor, array or list, preprocessed for the model; all are used for calibration.
    labels: integers (N,), for the corruptions "swap" and "same-class"; for a multi-label model a 0 or 1 each, (N, K).
    tau: the KL divergence, in nats an image, that removing an edge may cost (default 0.05).
    max_divergence: what all removals together may cost, in the unit of the task's divergence; also called max_kl.
    task: what the model answers, one of `vitfx.graph.kinds.KINDS`; by default found by looking at it.
    classes: those that are needed, names or numbers of logits: the others' logits go, and only images of these count.
    other: one more logit, the log-sum-exp of the others', is for images of none of these; then all images count.
    output: the answer's name, for a model that returns several tensors: a key or a position, "hidden_states.3".
    progress: shows bars on standard error.
    settings: method, granularity and more, see `vitfx.runs.in_memory.DiscoverySettings`.

    `circuit.to_json()` is what the command writes; `vitfx.prune(…, circuit=circuit)` deletes what is dead in it.
    """
    module, calibration = open_given(model, images, labels, output, classes, other)
    chosen = settings_in_memory(calibration, settings, tau=tau, max_kl=read_limit(max_divergence, max_kl))
    with watching(progress) as watcher:
        return find_circuit(
            module, calibration, chosen, device=pick_device(device), watcher=watcher, task=asked_task(task)
        )


@entry_point
def main(arguments: list[str] | None = None) -> int:
    options = build_parser().parse_args(arguments)
    first = is_first_process()
    console = Console(quiet=not first)

    def work() -> None:
        with first_says(first):
            task = _check(options)
        with (
            open_share(task.device) as share,
            first_holds(share, hold_file(task.out)),
            console_watcher(console) if first else nullcontext(Silent()) as watcher,
            first_says(first),
        ):
            shown = _run(task, share, watcher)
        console.print(*shown, highlight=False, markup=False, soft_wrap=True, sep="\n")

    # Other methods keep nothing but the circuits of a sweep.
    goes_on = options.method in (None, *MEASURING) or options.tau_sweep is not None
    return ending(work, lambda: (GOES_ON if goes_on else BEGINS_ANEW) if first else "")


def _check(options: argparse.Namespace) -> _Task:
    """Raises UserError for what is wrong even without a look at the model."""
    given = given_settings(options)
    taus = None
    if options.tau_sweep is not None:
        for name in ("tau", "remove"):
            if name in given:
                raise UserError(f"--tau-sweep sets the thresholds: leave out --{name}")
        taus = read_sweep(options.tau_sweep)
        given["tau"] = taus[0]
    settings = make_settings(given)
    if options.repeats < 1:
        raise UserError(f"--repeats {options.repeats} is too small: give 1 or more")
    for name in ("eval_samples", "top"):
        if getattr(options, name) < 0:
            raise UserError(
                f"--{name.replace('_', '-')} {getattr(options, name)} is negative: give a number, 0 for none"
            )
    check_halves(options.stability, options.certain)
    several = [name for name in ("tau_sweep", "tasks") if getattr(options, name) is not None]
    if several and options.stability:
        raise UserError(f"--stability is for one circuit: leave it out, or --{several[0].replace('_', '-')}")
    tasks = None if options.tasks is None else read_tasks(options.tasks)
    for name in ("classes", "other", "tau_sweep") if tasks else ():
        if getattr(options, name):
            raise UserError(
                f"--tasks names the classes of each task, at one threshold: leave out --{name.replace('_', '-')}"
            )
    base = f"{Path(options.model).stem}-{settings.granularity}-{settings.method}"
    base = f"{Path(options.model).stem}-tasks" if tasks else base
    out = options.out or Path(f"{base}.json" if taus or tasks else f"{base}-{threshold(settings)}.json")
    _check_out(out, overwrites=taus is None and tasks is None and not options.force)
    return _Task(options, settings, taus, tasks, out, share_device(options.device))


def _check_out(out: Path, *, overwrites: bool) -> None:
    """Raises UserError where a circuit can't go there. overwrites: whether writing one would replace a file."""
    check_new_file(out, force=not overwrites)
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise UserError(f"{out.parent} is not writable: name another place with --out")


def _run(task: _Task, share: Share, watcher: Watcher) -> list[RenderableType]:
    """What to print. Raises UserError."""
    if task.tasks is not None:
        record = discover_tasks(task.tasks, lambda classes: _open(task, share, watcher, classes), task.out, watcher)
        tables = [tasks_table(record), *(overlap_table(record, kind) for kind in record["overlap"])]
        contents = f"{task.out.with_suffix('.html')} has the page, beside it are the picture and all circuits"
        return [*tables, contents, *after_discover(task.options, task.out.with_name(record["tasks"][0]["file"]))]
    job, settings = _open(task, share, watcher, task.options.classes)
    if task.taus is None:
        return _shown(job.run(settings, task.out), task)
    rows = sweep(job, settings, task.taus, task.out)
    example = circuit_path(task.out, task.taus[0])
    return [to_table(rows), f"{record_path(task.out)} has the table", *after_discover(task.options, example)]


def _open(task: _Task, share: Share, watcher: Watcher, classes: Asked | None) -> tuple[Discoveries, Settings]:
    """The model of these classes, and the settings with what it showed. Raises UserError."""
    options, settings = argparse.Namespace(**{**vars(task.options), "classes": classes}), task.settings
    inputs = on_each(share, lambda: open_inputs(options))
    if options.samples is None:
        settings = replace(settings, samples=inputs.available(settings.samples))
    inputs.tell(watcher, task.device)
    images = on_each(share, lambda: inputs.calibration(settings.samples, settings.seed, watcher.bar("loading")))
    front = read_module(inputs.model.module, images.pixels, watcher)
    kind = front.kind(images.labels, inputs.task, watcher)
    settings = replace(settings, task=kind.name, classes=front.classes, other=front.other)
    check_settings(settings)
    graph_module = front.graph_module.to(task.device)
    needed = memory_needed(graph_module, images, settings, share.world)
    sentence, in_file = fit(needed, options.memory, share.world)
    watcher.say(sentence)
    job = Discoveries(
        inputs,
        graph_module,
        images,
        evaluated=options.eval_samples,
        repeats=options.repeats,
        force=options.force,
        share=share,
        watcher=watcher,
        mapped=in_file,
        halves=options.stability,
        certain=options.certain,
    )
    return job, settings


def _shown(outcome: Outcome, task: _Task) -> list[RenderableType]:
    circuit = outcome.circuit
    shown: list[RenderableType] = [summary(circuit, task.options.top)]
    details, words = circuit.details, words_of(circuit.settings)
    for scores, where in ((details.get("fidelity"), "calibration"), (details.get("evaluation"), "held-out")):
        if scores:
            accuracy = ""
            if scores["accuracy"] is not None:
                accuracy = f", {words.metric} {scores['accuracy']:.2%} (whole model {scores['whole_accuracy']:.2%})"
            amount = words.amount(f"{scores['kl']:.4f}")
            shown.append(
                f"the circuit on {scores['images']:,} {where} images: {amount}, "
                f"agreement with the whole model {percent(scores['agreement'])}{accuracy}"
            )
    if steady := details.get("stability"):
        others = "images and seeds" if steady["other_images"] else "seeds (all calibration images in each)"
        shown.append(
            f"{steady['repeats']} runs with other {others}; of what either of two keeps, both keep on average "
            + ", ".join(f"{share:.0%} of the {name}" for name, share in steady["overlap"].items())
        )
    if halves := details.get("halves"):
        sentence = f"{halves['runs']} random halves of the images: some removed and others kept "
        sentence += f"{len(halves['unsure']):,} of {len(circuit.decisions):,} edges"
        if (least := halves["certain"]) is not None:
            sentence += f"; {halves['kept_after_all']:,} edges that fewer than {least:.0%} removed are kept"
        shown.append(sentence)
    if task.settings.ablation == "resample":
        shown.append("a resampled circuit has values for its calibration images only, so it is not run on others")
    (heads, all_heads), (paths, all_paths) = outcome.dead_of("a"), outcome.dead_of("m")
    names = ("attentions", "MLPs") if task.settings.granularity == "block" else ("heads", "MLP paths")
    shown.append(f"dead: {heads} of {all_heads} {names[0]}, {paths} of {all_paths} {names[1]}")
    if len(outcome.dead) == len(outcome.writers):
        threshold_name = "τ" if task.settings.remove is None else "--remove"
        shown.append(f"nothing of the image reaches the logits any more: choose a smaller {threshold_name}")
        return [*shown, f"{task.out} has the circuit"]
    return [*shown, f"{task.out} has the circuit", *after_discover(task.options, task.out)]


def build_parser() -> CommandParser:
    return discover_parser(__doc__)


make_callable(discover)

if __name__ == "__main__":
    sys.exit(main())
