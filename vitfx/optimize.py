"""Make a trained ViT faster without changing what it computes: exact rewrites, proved, and the fastest ONNX form."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from numpy.typing import ArrayLike
from rich.console import Console
from torch import Tensor, nn

from vitfx.cli.exit_codes import BEGINS_ANEW, ending
from vitfx.cli.next_steps import after_optimize
from vitfx.cli.optimize_parser import optimize_parser
from vitfx.cli.options import refuse_given
from vitfx.cli.parser import CommandParser
from vitfx.deploy.deployment import read_rewrites
from vitfx.deploy.export import OPSET
from vitfx.deploy.onnx_forms import FORMS, Form
from vitfx.deploy.precision_file import check_precision
from vitfx.deploy.precisions import BF16, FP32, INT8, ONNX_RUNTIME, OPENVINO
from vitfx.deploy.runtimes import check_runtime
from vitfx.models.checkpoint import LoadedModel
from vitfx.models.chosen import chosen_of
from vitfx.runs.choose_classes import Asked, choose
from vitfx.runs.in_memory import watching
from vitfx.runs.inputs import count_logits, open_inputs, open_model
from vitfx.runs.memory_inputs import open_given
from vitfx.runs.optimize import OptimizeJob, run_optimize
from vitfx.runs.optimize_in_memory import OptimizedModel, rewrite_exactly
from vitfx.runs.optimize_int8 import INT8_IMAGES
from vitfx.runs.optimize_passes import PassesRun, passes_table, read_passes, run_named_passes
from vitfx.runs.optimize_text import to_table
from vitfx.runs.tasks import known_task
from vitfx.support.callable_module import make_callable
from vitfx.support.console import entry_point
from vitfx.support.devices import pick_device
from vitfx.support.errors import UserError, as_options
from vitfx.support.files import check_output
from vitfx.support.locks import hold_folder
from vitfx.support.progress import Watcher, console_watcher

_IMAGES, _NOISE = 16, "noise"

_FOR_FILES = (
    "out",
    "force",
    "batch",
    "quick",
    "form",
    "plain_pixels",
    "rewrites",
    "portable",
    "opset",
    "precision",
    "runtime",
)
"""Options that --passes does not look at."""


def optimize(
    model: nn.Module,
    images: Tensor | ArrayLike,
    *,
    rewrites: str = "all",
    portable: bool = False,
    classes: Asked | None = None,
    other: bool = False,
    precision: str = FP32,
    output: str | None = None,
    device: str = "auto",
    progress: bool = False,
) -> OptimizedModel:
    """Makes any pre-LN ViT faster in memory without changing what it computes. Raises UserError and VerificationError.

    model: maps (B, C, H, W) to logits (B, K), or to a record that has them, any batch; it is left as it is.
    images: floats (N, C, H, W), a tensor, array or list, preprocessed for the model, on which every rewrite is proved
        in float64.
    rewrites: "all", "none", or names separated by commas, as the command's --rewrites.
    portable: ONNX files use only standard operators.
    classes: those that are needed, names or numbers of logits: the others' logits go.
    other: one more logit, the log-sum-exp of the others', is for images of none of these.
    precision: of ONNX files, "fp32"; "int8" (CPU), whose ranges come from three quarters of the images, while the
        others say what it costs, in `divergence`: give some hundreds; or "bf16", for OpenVINO on CPUs that have it.
    output: the answer's name, for a model that returns several tensors: a key or a position, "hidden_states.3".
    device: where ONNX files are to run.
    progress: shows bars on standard error.
    """
    names = read_rewrites(rewrites)
    place = pick_device(device)
    if precision not in (FP32, BF16, INT8):
        raise UserError(f"precision is {precision!r}: give {FP32}, {BF16} or {INT8}")
    check_precision(precision, place, OPENVINO if precision == BF16 else ONNX_RUNTIME)
    module, calibration = open_given(model, images, None, output, classes, other)
    with watching(progress) as watcher:
        given = (module, calibration, names)
        return rewrite_exactly(*given, portable=portable, device=place, watcher=watcher, precision=precision)


@entry_point
def main(arguments: list[str] | None = None) -> int:
    parser = build_parser()
    options = parser.parse_args(arguments)
    console = Console()

    def work() -> None:
        if options.passes is not None:
            return _look(options, parser, console)
        refuse_given(parser, options, ("print_after",), "prints what --passes names, and none are given")
        with console_watcher(console) as watcher:
            job = _open(options, watcher)
            with hold_folder(job.out, force=options.force):
                report = run_optimize(job, watcher)
        console.print(to_table(report))
        following = [] if job.images == _NOISE else after_optimize(options)
        for line in (f"{job.out}/ has optimized.onnx, optimized.pt2 and the report", *following):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        return None

    return ending(work, lambda: BEGINS_ANEW)


def _look(options: argparse.Namespace, parser: argparse.ArgumentParser, console: Console) -> None:
    """Runs --passes and prints."""
    names, printed = read_passes(options.passes, options.print_after)
    refuse_given(parser, options, _FOR_FILES, "is for a run that writes files, and --passes writes none")

    def show(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    with console_watcher(console) as watcher:
        model, pixels, _ = _images(options, open_model(options), watcher)
        lowered = run_named_passes(PassesRun(model, pixels, names, printed), show, watcher)
    console.print(passes_table(lowered))


def _open(options: argparse.Namespace, watcher: Watcher) -> OptimizeJob:
    """Finds everything that can be wrong with what the user gave, but for tracing, before anything is written."""
    rewrites = read_rewrites(options.rewrites)
    forms = _forms(options.form, options.portable or options.runtime == OPENVINO, rewrites, options.opset)
    batches = _batches(options.batch)
    out = options.out or Path(f"{Path(options.model).stem}-optimized")
    check_output(out, force=options.force)
    device = pick_device(options.device)
    check_runtime(options.runtime, device)
    check_precision(options.precision, device, options.runtime)
    model, pixels, images = _images(options, open_model(options), watcher)
    return OptimizeJob(
        model=model,
        pixels=pixels,
        images=images,
        rewrites=rewrites,
        forms=forms,
        plain=options.plain_pixels,
        batches=batches,
        alone=not options.quick,
        device=device,
        out=out,
        opset=options.opset,
        precision=options.precision,
        runtime=options.runtime,
        task=known_task(options, model),
    )


def _images(options: argparse.Namespace, model: LoadedModel, watcher: Watcher) -> tuple[LoadedModel, Tensor, str]:
    """The model of the classes that were asked for, the images of proofs and timings, and where they come from. Without
    data it is noise: the rewrites are exact for any image."""
    for line in model.first_lines:
        watcher.say(line)
    narrow = options.precision != FP32
    if options.data or model.data:
        try:
            inputs = open_inputs(options, model)
            count = inputs.available(INT8_IMAGES if narrow else _IMAGES)
            for line in inputs.splits.remarks if options.classes else ():
                watcher.say(line)
            return inputs.model, inputs.calibration(count, 0, watcher.bar("loading")).pixels, inputs.data
        except UserError as error:
            if options.data or narrow or options.classes or options.other:
                raise
            watcher.say(f"{as_options(str(error))}; until then proofs and timings run on noise")
    if narrow:
        why = "takes its ranges from" if options.precision == INT8 else "is compared with fp32 on"
        raise UserError(f"{options.precision} {why} images, and none are given: give --data, or leave out --precision")
    shape = (_IMAGES, model.preprocess.channels, *model.preprocess.size)
    if options.classes is not None:
        model = choose(model, options.classes, model.classes, count_logits(model), other=options.other)
        if (chosen := chosen_of(model)) is not None:
            watcher.say(chosen.sentence)
    return model, torch.randn(shape, generator=torch.Generator().manual_seed(0)), _NOISE


def _forms(name: str, portable: bool, rewrites: tuple[str, ...], opset: int) -> tuple[Form, ...]:
    """The forms to choose from. Raises UserError where the options leave none."""
    if name != "auto":
        form = FORMS[name]
        if form.attention is not None and opset < OPSET:
            raise UserError(f"--form {name} needs opset {OPSET}: leave out --opset {opset}, or give --form exported")
        if portable and not form.portable:
            raise UserError(
                f"--form {name} has operators of ONNX Runtime's own: leave out --portable, or choose another form"
            )
        if form.packed and "pack_qkv" not in rewrites:
            raise UserError(f"--form {name} needs the rewrite pack_qkv: name it with --rewrites")
        return (form,)
    if not rewrites or opset < OPSET:
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
        sizes = tuple(dict.fromkeys(int(size) for size in text.split(",")))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise UserError(f"--batch {text} is not a list of batch sizes: give numbers of 1 or more, such as 1,8,64")
    return sizes


def build_parser() -> CommandParser:
    return optimize_parser(__doc__)


make_callable(optimize)

if __name__ == "__main__":
    sys.exit(main())
