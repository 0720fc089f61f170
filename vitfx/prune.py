"""Prune a trained ViT: discover its circuit, delete what is dead, prove it, export, measure.

In Python: `vitfx.prune(model, images, tau=0.01)`.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from vitfx.cli.exit_codes import BEGINS_ANEW, GOES_ON, ending
from vitfx.cli.goal_options import add_goal
from vitfx.cli.options import add_discovery, add_inputs, add_loading, add_rewrites
from vitfx.cli.prune_options import COMPENSATE_SAMPLES, open_job, unfinished_file
from vitfx.cli.rounds_options import add_rounds
from vitfx.deploy.precisions import FP32, PRECISIONS
from vitfx.discovery.basis.journal import NoJournal
from vitfx.discovery.basis.settings import RANKING, Settings
from vitfx.images.image_set import Images
from vitfx.pruning.compensation import KINDS
from vitfx.pruning.prune_by_circuit import Compensation, Pruned, compile_model
from vitfx.reports.prune_text import to_table
from vitfx.runs.prune import Job, run_job
from vitfx.runs.rounds import RoundsJob, run_rounds
from vitfx.runs.rounds_steps import Rounds
from vitfx.runs.rounds_steps import missed as rounds_missed
from vitfx.runs.rounds_steps import to_table as rounds_table
from vitfx.runs.sweep import run_sweep
from vitfx.runs.sweep_points import missed as sweep_missed
from vitfx.runs.sweep_points import to_table as sweep_table
from vitfx.support.callable_module import make_callable
from vitfx.support.console import HelpFormatter, entry_point
from vitfx.support.devices import pick_device
from vitfx.support.errors import UserError
from vitfx.support.locks import hold_folder
from vitfx.support.progress import Silent, Watcher, console_watcher
from vitfx.support.tables import Table

_EXAMPLE = """example:
  python -m vitfx.prune demo --tau 0.001
  python -m vitfx.prune vit.pt --data tiny-imagenet-200/ --target-speedup 1.5 --out fast/
  python -m vitfx.prune vit.pt --data tiny-imagenet-200/ --max-drop 0.5
  python -m vitfx.prune vit.pt --data tiny-imagenet-200/ --sweep 1.2:2.0:5
  python -m vitfx.prune vit.pt --data tiny-imagenet-200/ --target-speedup 2 --rounds 2 --recover-minutes 30
  python -m vitfx.prune vit.pt --data tiny-imagenet-200/ --tau 0.02 --out small/
  python -m vitfx.prune vit.pt --circuit circuit.json
  python -m vitfx.prune weights.safetensors --arch timm:vit_small_patch16_224 --data imagenet/

τ is how much KL divergence (nats an image) one head or MLP path may cost to be deleted: more τ, more speed, less
accuracy. The same command goes on where discovery, a sweep or rounds were stopped. `python -m vitfx.discover` finds a
circuit and stops there, for you to look at; --circuit goes on from it."""


def prune(
    model: nn.Module,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    device: str = "cpu",
    compensate: str = "ridge",
    watcher: Watcher | None = None,
    **settings: Any,
) -> Pruned:
    """Prunes any pre-LN ViT in memory and writes nothing.

    model: maps (B, C, H, W) to logits (B, K), any batch; stays as it is. images: float32 (N, C, H, W), preprocessed as
    the model wants them; all are used for calibration. labels: int64 (N,), for the corruption "swap". compensate: what
    stands in for the dead, "none", "mean" or "ridge" (survivors are refitted, better with 500 images or more).
    settings: fields of `vitfx.discovery.basis.settings.Settings` apart from `samples`. Raises UserError and
    VerificationError.
    """
    if images.dim() != 4 or not images.is_floating_point():
        raise UserError(
            f"images are {tuple(images.shape)} of {images.dtype}: give floats (images, channels, height, width)"
        )
    if labels is not None and labels.shape != images.shape[:1]:
        raise UserError(f"labels are {tuple(labels.shape)} for {len(images)} images: give one for each")
    if not bool(torch.isfinite(images).all()):
        raise UserError("some pixels are NaN or infinite: give finite images")
    if len(images) < 2:
        raise UserError(f"{len(images)} images are too few to calibrate on: give 2 or more")
    if compensate not in KINDS:
        raise UserError(f"compensate is {compensate!r}: choose one of {', '.join(KINDS)}")
    unknown = set(settings) - {one.name for one in fields(Settings)} | settings.keys() & {"samples"}
    if unknown:
        raise UserError(
            f"{min(unknown)} is no setting: give fields of vitfx.discovery.basis.settings.Settings apart from samples"
        )
    names = tuple(str(index) for index in range(len(images)))
    return compile_model(
        model,
        Images(images.cpu(), None if labels is None else labels.cpu(), names),
        Settings(samples=len(images), **settings),
        device=pick_device(device),
        open_journal=lambda key: NoJournal(),
        watcher=watcher or Silent(),
        compensation=Compensation(compensate),
    )


@entry_point
def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    console = Console()
    goes_on = True

    def work() -> int:
        nonlocal goes_on
        with console_watcher(console) as watcher:
            job, rounds = open_job(options)
            decides = job.goal is None and job.circuit is None and job.settings.method not in RANKING
            goes_on = rounds is not None or bool(job.speeds) or decides
            invocation = shlex.join(
                ["python", "-m", "vitfx.prune", *(sys.argv[1:] if arguments is None else arguments)]
            )
            with hold_folder(job.out, force=options.force, unfinished=unfinished_file(options)):
                table, what, missed = _run(job, rounds, invocation, watcher)
        console.print(table)
        console.print(f"{job.out}/ has {what}", highlight=False, markup=False, soft_wrap=True)
        if not missed:
            return 0
        said = f"error: {missed}, but what was made is written; ask for less, or on a quieter machine"
        print(said, file=sys.stderr)
        return 1

    return ending(work, lambda: GOES_ON if goes_on else BEGINS_ANEW)


def _run(job: Job, rounds: Rounds | None, command: str, watcher: Watcher) -> tuple[Table, str, str | None]:
    """What is shown, what the folder has, and which goal was missed, if one was."""
    if rounds is not None:
        steps, settings = run_rounds(RoundsJob(job, rounds, command), watcher)
        short = rounds_missed(steps, settings)
        return rounds_table(steps, settings), "the last round's model, and rounds.md", short
    if job.speeds:
        points = run_sweep(job, watcher)
        return sweep_table(points), "the front and its models", sweep_missed(points)
    report = run_job(job, watcher)
    missed = report["settings"]["missed"]
    what = f"{report['settings']['goal']} was asked for and missed: {missed}" if missed else None
    return to_table(report), "the artifact and the report", what


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vitfx.prune",
        description=__doc__.partition("\n")[0],
        epilog=_EXAMPLE,
        formatter_class=HelpFormatter,
    )
    add_inputs(parser)
    parser.add_argument(
        "--circuit",
        type=Path,
        help="a circuit.json that vitfx.discover wrote for this model and data: what is dead in it is deleted, "
        "without another discovery, whose arguments are the circuit's own",
    )
    parser.add_argument("--out", type=Path, help="folder for the results (default: of MODEL's name and what is asked)")
    parser.add_argument(
        "--force", action="store_true", help="replace earlier results in the folder; for a goal, measure times anew"
    )
    parser.add_argument(
        "--eval-samples", type=int, default=2000, help="evaluation images at most, 0 for all (default 2000)"
    )
    parser.add_argument(
        "--compensate",
        choices=KINDS,
        help="what makes up for the dead: ridge, survivors write with weights that are fitted towards the original's "
        "residual stream, without training; mean, the dead leave their mean behind; none, nothing (default ridge, "
        "which goals always have)",
    )
    parser.add_argument(
        "--compensate-samples",
        type=int,
        help=f"images to fit survivors on, at most (default {COMPENSATE_SAMPLES}; for a goal three quarters of "
        "--samples)",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=FP32,
        help="int8 (CPU) and fp16 (GPU) write pruned.onnx in these numbers as well, pruned-int8.onnx or "
        "pruned-fp16.onnx, with accuracy and time of its own in the report; int8's ranges are calibrated on the "
        "calibration images (default fp32)",
    )
    add_goal(parser)
    add_rounds(parser)
    add_discovery(parser)
    add_rewrites(parser)
    add_loading(parser)
    return parser


make_callable(prune)

if __name__ == "__main__":
    sys.exit(main())
