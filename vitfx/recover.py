"""Retrain a pruned model: it learns from the unpruned one, from labels, or both, and never ends up worse."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path

import torch
from rich.console import Console

from vitfx.cli.exit_codes import ending, going_on
from vitfx.cli.next_steps import after_recover
from vitfx.cli.options import OF_IMAGES, add_images, add_rewrites, add_runtime, add_task
from vitfx.cli.parser import CommandParser
from vitfx.deploy.deployment import default_deployment, read_rewrites
from vitfx.deploy.openvino_runtime import require_openvino
from vitfx.deploy.precisions import OPENVINO
from vitfx.images.pixel_cache import default_cache
from vitfx.models.architectures import KNOWN_ARCHES
from vitfx.models.checkpoint import load_model
from vitfx.models.chosen import chosen_of, keep_same
from vitfx.models.state_dicts import WEIGHTS
from vitfx.recovery.distill import LOSSES
from vitfx.recovery.settings import AUGMENTS, HIDDEN, SAMPLES, SAVE_SECONDS, RecoverSettings
from vitfx.recovery.trainable import ONLY
from vitfx.reports.recover_text import to_table
from vitfx.runs.inputs import count_logits, open_inputs
from vitfx.runs.recover import STATE, run_recover
from vitfx.runs.recover_job import RecoverJob
from vitfx.support.console import entry_point
from vitfx.support.devices import NAMES
from vitfx.support.errors import UserError
from vitfx.support.files import check_output
from vitfx.support.locks import hold_folder
from vitfx.support.processes import first_holds, first_says, is_first_process, on_each, open_share, share_device
from vitfx.support.progress import Silent, console_watcher
from vitfx.training.config import PRECISIONS

_FIRST = {
    "input": {
        "model": "pruned.pt of vitfx.prune, or of an earlier run of this command",
        "--teacher": "the model that it was pruned from: checkpoint, weights, folder, demo",
        "--data": "images, labelled or not (default: what the artifact names)",
    },
    "training": {
        "--minutes": "retrain for so long by the clock …",
        "--epochs": "… or for so many passes over the training images",
        "--loss": "what teaches: the teacher (kd), labels (ce), or both (default kd)",
        "--only": "what is trained (default all)",
    },
    "result": {
        "--also-baseline": "for comparison, retrain the unpruned model too, by labels",
        "--out": "folder for the results (default: PRUNED's folder with -recovered)",
    },
}
_EXAMPLES = (
    "python -m vitfx.recover demo-pruned-tau0.001/pruned.pt --teacher demo --minutes 0.5",
    "python -m vitfx.recover small/pruned.pt --teacher vit.pt --data photos/ --epochs 5 --loss both",
    "python -m vitfx.recover small/pruned.pt --teacher vit.pt --minutes 30 --only lora",
    "torchrun --nproc-per-node=4 -m vitfx.recover small/pruned.pt --teacher vit.pt --minutes 30   # four processes",
)
_NOTES = """\
Held-out training images decide which weights are kept. They are checked before the first step and several times
after it, and the check that comes closest to what is taught wins, if it gets no fewer images right than the first.
The folder has pruned.pt, which can be pruned and retrained again, pruned.onnx, pruned.pt2 for torch alone,
baseline.onnx and the report. If it is stopped, the same command without --force goes on."""


@entry_point
def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = build_parser().parse_args(given)
    first = is_first_process()
    console = Console(quiet=not first)
    stopped = going_on(_out(options) / STATE, force=options.force)

    def work() -> None:
        with console_watcher(console) if first else nullcontext(Silent()) as watcher:
            with first_says(first):
                settings, device = _check(options), share_device(options.device)
            with open_share(device) as share:
                command = shlex.join(["python", "-m", "vitfx.recover", *given])
                job = on_each(share, lambda: _open(options, settings, device, command))
                with first_holds(share, hold_folder(job.out, force=job.force, unfinished=STATE)):
                    report = run_recover(job, share, watcher)
        console.print(to_table(report))
        contents = f"{job.out}/ has the retrained model and the report"
        for line in (report["recovery"]["sentence"], contents, *after_recover(options, job.out)):
            console.print(line, highlight=False, markup=False, soft_wrap=True)

    return ending(work, stopped if first else str)


def build_parser() -> CommandParser:
    usage = "PRUNED --teacher MODEL [options]"
    parser = CommandParser("recover", __doc__, usage=usage, first=_FIRST, examples=_EXAMPLES, notes=_NOTES)
    add = parser.add_argument
    add("model", metavar="PRUNED", help="pruned.pt of vitfx.prune, or of an earlier run of this command")
    add("--teacher", required=True, help="the model that it was pruned from: checkpoint, weights, .pt2, folder, demo")
    add_images(parser, "images, labelled or not: a folder, an .npz, or digits (default: what the artifact names)")
    add_task(parser)
    add("--epochs", type=float, help="passes over the training images")
    add(
        "--minutes",
        type=float,
        help="in place of epochs: retrain for so long by the clock, which the learning rate then follows",
    )
    add("--out", type=Path, help="folder for the results (default: PRUNED's folder with -recovered)")
    add("--force", action="store_true", help="replace earlier results, or a run that was stopped")
    add(
        "--also-baseline",
        action="store_true",
        help="for comparison, retrain the unpruned model too, by labels",
    )
    _add_training(parser)
    add = parser.add_argument_group("running").add_argument
    add("--device", default="auto", help=f"{NAMES} (default auto)")
    add_runtime(add, "times the models on the CPU")
    add("--precision", choices=PRECISIONS, help="auto measures on a CPU whether bf16 is faster (default auto)")
    add("--samples", type=int, default=SAMPLES, help=f"training images, at most (default {SAMPLES:,})")
    add("--eval-samples", type=int, default=2000, help="test images, at most; 0 for all (default 2000)")
    add(
        "--save-seconds", type=float, default=SAVE_SECONDS,
        help=f"seconds between saved states (default {SAVE_SECONDS:g})",
    )  # fmt: skip
    add("--cache", type=Path, help="folder for decoded images (default ~/.cache/vitfx, or in $XDG_CACHE_HOME)")
    add("--arch", help=f"the architecture of a teacher given as bare weights: {KNOWN_ARCHES}")
    add("--weights", choices=WEIGHTS, help="a teacher's, if its file has both: ema, the moving average, or raw")
    add("--output", metavar="NAME", help="which tensor is a teacher's answer, where it returns several")
    add("--trust-pickle", action="store_true", help="load a pickled teacher, which can run any code")
    add_rewrites(parser)
    return parser


def _add_training(parser: argparse.ArgumentParser) -> None:
    """Fields of `RecoverSettings`; what is not given is None."""
    add = parser.add_argument_group("training").add_argument
    default = RecoverSettings(epochs=1)
    add(
        "--loss",
        choices=LOSSES,
        help="kd learns the teacher's answers, by the divergence of their task, without labels; ce labels, by "
        "cross-entropy, of classes and of several labels; both (default kd)",
    )
    add("--temperature", type=float, help=f"softens the logits of kd (default {default.temperature:g})")
    add(
        "--ce-share", type=float, help=f"share of cross-entropy with --loss both, 0 to 1 (default {default.ce_share:g})"
    )
    add(
        "--hidden",
        type=float,
        metavar="WEIGHT",
        help="also teach the residual stream after each surviving sublayer, with this weight; 0 teaches logits alone, "
        f"which are kept and cheaper over many epochs (default {HIDDEN:g} with kd and both)",
    )
    add(
        "--only",
        choices=ONLY,
        help="what is trained: all; compensating, survivors' output projections; norms-and-biases; neighbours, the "
        "sublayers next to deletions; lora, low-rank adapters that are merged at the end (default all)",
    )
    add("--rank", type=int, help=f"of the adapters (default {default.rank})")
    add(
        "--lr",
        type=float,
        help="highest learning rate (default 5e-5; 3e-4 with compensating; 1e-3 with lora, norms-and-biases; less near "
        "to the teacher; a fifth of these with --hidden 0)",
    )
    add("--batch", type=int, help=f"images a step, over all processes (default {default.batch})")
    add(
        "--augment",
        choices=AUGMENTS,
        help="none; flip, images and their mirror images in turn, the teacher's logits kept; crop, random crops, each "
        "shown to the teacher; auto, flip if the teacher answers mirror images alike, else none (default auto)",
    )
    add("--checks", type=int, help=f"checks on held-out images, fewer in a short run (default {default.checks})")
    add("--held-out", type=int, help=f"training images held out for checks, at most (default {default.held_out})")
    add("--patience", type=int, help=f"stop after so many checks without improvement (default {default.patience})")
    add("--seed", type=int, help="of all random draws (default 0)")


def _check(options: argparse.Namespace) -> RecoverSettings:
    """Raises UserError for what is wrong even without a look at models and data."""
    given = {
        field.name: getattr(options, field.name) for field in fields(RecoverSettings) if hasattr(options, field.name)
    }
    settings = RecoverSettings(**{name: value for name, value in given.items() if value is not None})
    for name, least in (("eval_samples", 0), ("samples", 1), ("save_seconds", 0)):
        if not getattr(options, name) >= least:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(options, name):g}: give {least} or more")
    check_output(_out(options), force=options.force, unfinished=STATE)
    if options.runtime == OPENVINO:
        require_openvino()
    return settings


def _open(options: argparse.Namespace, settings: RecoverSettings, device: torch.device, command: str) -> RecoverJob:
    """Everything that can be wrong with what the user gave is found here or while tracing: nothing is written yet."""
    rewrites = read_rewrites(options.rewrites)
    # The loading options are for the teacher: an artifact says itself how to load it.
    given = {"arch": None, "weights": None, "output": None, "trust_pickle": False, **dict.fromkeys(OF_IMAGES)}
    own = argparse.Namespace(**{**vars(options), **given})
    inputs = open_inputs(own)
    teacher = load_model(
        options.teacher,
        arch=options.arch,
        trust_pickle=options.trust_pickle,
        preprocess=inputs.model.preprocess,
        weights=options.weights,
        output=options.output,
    )
    if (chosen := chosen_of(inputs.model)) is not None:
        teacher = keep_same(teacher, chosen, count_logits(teacher))
    named = options.class_names is None and inputs.model.classes and teacher.classes
    if named and inputs.model.classes != teacher.classes:
        raise UserError(
            f"{options.teacher} and {options.model} have different classes: give the model that it was pruned from, or "
            "their names with --class-names"
        )
    evaluation = inputs.splits.evaluation
    if 0 < options.eval_samples < len(evaluation):
        evaluation = evaluation.sample(options.eval_samples, settings.seed)
    return RecoverJob(
        inputs=inputs,
        teacher=teacher,
        evaluation=evaluation,
        settings=settings,
        also_baseline=options.also_baseline,
        deployment=default_deployment(
            rewrites, device, portable=options.portable or options.runtime == OPENVINO, opset=options.opset
        ),
        device=device,
        out=_out(options),
        cache=options.cache or default_cache(),
        samples=options.samples,
        save_seconds=options.save_seconds,
        force=options.force,
        command=command,
        teacher_arch=options.arch,
        teacher_weights=options.weights,
        runtime=options.runtime,
    )


def _out(options: argparse.Namespace) -> Path:
    """By default named after the folder of a run, or after a file that is not named like a run's artifact."""
    model = Path(options.model)
    return options.out or Path(f"{model.resolve().parent.name if model.name == 'pruned.pt' else model.stem}-recovered")


if __name__ == "__main__":
    sys.exit(main())
