"""Make a trained ViT faster without changing what it computes: exact rewrites, proved, and the fastest ONNX form."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from vitfx.cli.exit_codes import BEGINS_ANEW, ending
from vitfx.cli.options import add_inputs, add_loading, add_rewrites
from vitfx.deploy.deployment import read_rewrites
from vitfx.deploy.onnx_forms import FORMS, Form
from vitfx.models.checkpoint import LoadedModel
from vitfx.runs.inputs import open_inputs, open_model
from vitfx.runs.optimize import OptimizeJob, run_optimize
from vitfx.runs.optimize_text import to_table
from vitfx.support.console import HelpFormatter, entry_point
from vitfx.support.devices import pick_device
from vitfx.support.errors import UserError
from vitfx.support.files import check_output
from vitfx.support.locks import hold_folder
from vitfx.support.progress import Watcher, console_watcher

_IMAGES = 16

_EXAMPLE = """example:
  python -m vitfx.optimize demo
  python -m vitfx.optimize vit.pt --data tiny-imagenet-200/ --batch 8 --out fast/
  python -m vitfx.optimize weights.safetensors --arch timm:vit_small_patch16_224 --portable

Nothing is pruned: the logits are the same to rounding. `python -m vitfx.prune` makes the same rewrites after it deleted
what is dead."""


@entry_point
def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    console = Console()

    def work() -> None:
        with console_watcher(console) as watcher:
            job = _open(options, watcher)
            with hold_folder(job.out, force=options.force):
                report = run_optimize(job, watcher)
        console.print(to_table(report))
        console.print(f"{job.out}/ has optimized.onnx and the report", highlight=False, markup=False, soft_wrap=True)

    return ending(work, lambda: BEGINS_ANEW)


def _open(options: argparse.Namespace, watcher: Watcher) -> OptimizeJob:
    """Everything that can be wrong with what the user gave is found here or while tracing: nothing is written yet."""
    rewrites = read_rewrites(options.rewrites)
    forms = _forms(options.form, options.portable, rewrites)
    batches = _batches(options.batch)
    out = options.out or Path(f"{Path(options.model).stem}-optimized")
    check_output(out, force=options.force)
    device = pick_device(options.device)
    model = open_model(options)
    pixels, images = _images(options, model, watcher)
    alone = not options.quick
    return OptimizeJob(model, pixels, images, rewrites, forms, options.plain_pixels, batches, alone, device, out)


def _images(options: argparse.Namespace, model: LoadedModel, watcher: Watcher) -> tuple[Tensor, str]:
    """What proofs and times are taken on. Without data, or without those that the model names, noise: the rewrites are
    exact for any image."""
    if options.data or model.data:
        try:
            inputs = open_inputs(options)
            return inputs.calibration(inputs.to_be_had(_IMAGES), 0, watcher.bar("loading")).pixels, inputs.data
        except UserError as error:
            if options.data:
                raise
            watcher.say(f"{error}; until then proofs and times are taken on noise")
    shape = (_IMAGES, model.preprocess.channels, *model.preprocess.size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)), "noise"


def _forms(name: str, portable: bool, rewrites: tuple[str, ...]) -> tuple[Form, ...]:
    """Those to choose from. Raises UserError where the options leave none."""
    if name != "auto":
        form = FORMS[name]
        if portable and not form.portable:
            raise UserError(
                f"--form {name} has operators of ONNX Runtime's own: leave --portable out, or choose another"
            )
        if form.packed and "pack_qkv" not in rewrites:
            raise UserError(f"--form {name} needs the rewrite pack_qkv: name it with --rewrites")
        return (form,)
    if not rewrites:
        return (FORMS["exported"],)
    return tuple(
        form
        for form in FORMS.values()
        if form.attention is not None
        and (form.portable or not portable)
        and (not form.packed or "pack_qkv" in rewrites)
    )


def _batches(text: str) -> tuple[int, ...]:
    try:
        found = tuple(dict.fromkeys(int(size) for size in text.split(",")))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise UserError(f"--batch {text} is no list of batch sizes: give numbers of 1 or more, such as 1,8,64")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vitfx.optimize",
        description=(__doc__ or "").partition("\n")[0],
        epilog=_EXAMPLE,
        formatter_class=HelpFormatter,
    )
    add_inputs(parser)
    add = parser.add_argument
    add("--out", type=Path, help="folder for the results (default: MODEL-optimized)")
    add("--force", action="store_true", help="replace earlier results in the folder")
    add("--batch", default="1,8,64", metavar="N,N", help="batch sizes to measure (default 1,8,64)")
    add("--quick", action="store_true", help="do not measure each rewrite by itself")
    add(
        "--form",
        default="auto",
        choices=("auto", *FORMS),
        help="which operators do attention; auto measures what --rewrites allows, keeps the fastest (default auto)",
    )
    add(
        "--plain-pixels",
        action="store_true",
        help="the file takes pixels of 0 to 1 and does mean and standard deviation itself, at no cost",
    )
    add_rewrites(parser)
    add_loading(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
