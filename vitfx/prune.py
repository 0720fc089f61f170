"""Prune a trained ViT: discover its circuit, delete what is dead, prove it, export, measure.

In Python: `vitfx.prune(model, images, tau=0.01)`.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from vitfx.ablation import ABLATIONS
from vitfx.arch import KNOWN_ARCHES
from vitfx.checkpoint import load_model
from vitfx.compile import Pruned, compile_model
from vitfx.corruption import CORRUPTIONS
from vitfx.data import open_data
from vitfx.device import pick_device
from vitfx.errors import UserError
from vitfx.export import ExportMismatch
from vitfx.files import check_output
from vitfx.image_set import Images
from vitfx.job import Job, check_labels, run_job
from vitfx.journal import NoJournal
from vitfx.preprocess import Preprocess
from vitfx.progress import Silent, Watcher, console_watcher
from vitfx.report import to_table
from vitfx.settings import METHODS, Settings
from vitfx.verify import VerificationError

_EXAMPLE = """example:
  python -m vitfx.prune demo --tau 0.001
  python -m vitfx.prune vit.pt --data tiny-imagenet-200/ --tau 0.02 --out small/
  python -m vitfx.prune weights.safetensors --arch timm:vit_small_patch16_224 --data imagenet/

τ is how much KL divergence (nats an image) one head or MLP path may cost to be deleted: more τ, more speed, less
accuracy. The same command goes on where it was stopped."""


def prune(
    model: nn.Module,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    device: str = "cpu",
    watcher: Watcher | None = None,
    **settings: Any,
) -> Pruned:
    """Prunes any pre-LN ViT in memory and writes nothing.

    model: maps (B, C, H, W) to logits (B, K), any batch; stays as it is. images: float32 (N, C, H, W), preprocessed as
    the model wants them; all are used for calibration. labels: int64 (N,), for the corruption "swap". settings: fields
    of `vitfx.settings.Settings` apart from `samples`. Raises UserError and VerificationError.
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
    unknown = set(settings) - {one.name for one in fields(Settings)} | settings.keys() & {"samples"}
    if unknown:
        raise UserError(f"{min(unknown)} is no setting: give fields of vitfx.settings.Settings apart from samples")
    names = tuple(str(index) for index in range(len(images)))
    return compile_model(
        model,
        Images(images.cpu(), None if labels is None else labels.cpu(), names),
        Settings(samples=len(images), **settings),
        device=pick_device(device),
        open_journal=lambda key: NoJournal(),
        watcher=watcher or Silent(),
    )


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    console = Console()
    try:
        with console_watcher(console) as watcher:
            report = run_job(_open(options), watcher)
        console.print(to_table(report))
        out = options.out or _default_out(options)
        console.print(f"{out}/ has the artifact and the report", highlight=False, markup=False, soft_wrap=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except VerificationError as error:
        print(f"error: verification failed, nothing was exported: {error}", file=sys.stderr)
        return 1
    except ExportMismatch as error:
        print(f"error: the exported file failed its check and was removed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on where it stopped", file=sys.stderr)
        return 130
    return 0


def _open(options: argparse.Namespace) -> Job:
    """Everything that can be wrong with what the user gave is found here or while tracing: nothing is written yet."""
    settings = Settings(
        tau=options.tau,
        method=options.method,
        ablation=options.ablation,
        corruption=options.corruption,
        samples=options.samples,
        paths=options.paths,
        max_kl=options.max_kl,
        seed=options.seed,
    )
    if options.eval_samples < 0:
        raise UserError(f"--eval-samples {options.eval_samples} is negative: give a number of images, 0 for all")
    out = options.out or _default_out(options)
    check_output(out, force=options.force)
    device = pick_device(options.device)
    model = load_model(
        options.model, arch=options.arch, trust_pickle=options.trust_pickle, preprocess=_preprocess(options)
    )
    data = options.data or model.data
    if data is None:
        raise UserError(f"{options.model} does not name its data: pass images with --data, a folder, .npz or digits")
    splits = open_data(data, model.preprocess, model.classes)
    for part in (splits.calibration, splits.evaluation):
        check_labels(model, part, data)
    evaluation = splits.evaluation
    if 0 < options.eval_samples < len(evaluation):
        evaluation = evaluation.sample(options.eval_samples, settings.seed)
    return Job(model, splits, evaluation, settings, device, out, options.force, data, options.arch)


def _preprocess(options: argparse.Namespace) -> Preprocess | None:
    if options.image_size is None:
        if options.mean or options.std:
            raise UserError("--mean and --std need --image-size: give the size that the model was trained with")
        return None
    size = (options.image_size, options.image_size)
    default = Preprocess(size)
    return Preprocess(size, mean=tuple(options.mean or default.mean), std=tuple(options.std or default.std))


def _default_out(options: argparse.Namespace) -> Path:
    return Path(f"{Path(options.model).stem}-pruned-tau{options.tau:g}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vitfx.prune",
        description=__doc__.partition("\n")[0],
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model", metavar="MODEL", help="checkpoint, artifact, weights, .pt2, Hugging Face folder, or demo"
    )
    parser.add_argument("--tau", type=float, default=0.05, help="greatest KL cost of one edge, nats (default 0.05)")
    parser.add_argument("--max-kl", type=float, default=math.inf, help="greatest KL in all, nats (default: no limit)")
    parser.add_argument("--data", help="images: a folder, an .npz, or digits (default: what the checkpoint names)")
    parser.add_argument("--out", type=Path, help="folder for the results (default: MODEL-pruned-tauτ)")
    parser.add_argument("--force", action="store_true", help="replace earlier results in the folder")
    search = parser.add_argument_group("discovery")
    search.add_argument("--method", choices=METHODS, default="acdc", help="the scorer (default acdc)")
    search.add_argument(
        "--ablation", choices=ABLATIONS, default="mean", help="what stands in for a removed writer (default mean)"
    )
    search.add_argument(
        "--corruption", choices=CORRUPTIONS, default="swap", help="how corrupted inputs are made (default swap)"
    )
    search.add_argument("--samples", type=int, default=128, help="calibration images (default 128)")
    search.add_argument("--paths", type=int, default=8, help="groups of hidden neurons an MLP (default 8)")
    search.add_argument("--seed", type=int, default=0, help="of the sample and the corruption (default 0)")
    search.add_argument("--device", default="auto", help="auto, cpu, or a GPU by torch's name (default auto)")
    search.add_argument(
        "--eval-samples", type=int, default=2000, help="evaluation images at most, 0 for all (default 2000)"
    )
    loading = parser.add_argument_group("loading")
    loading.add_argument("--arch", help=f"what bare weights are of: {KNOWN_ARCHES}")
    loading.add_argument("--trust-pickle", action="store_true", help="load a pickled module, which may run any code")
    loading.add_argument("--image-size", type=int, help="pixels, where the file does not say")
    loading.add_argument("--mean", type=float, nargs="+", help="of the channels, values in 0..1 (default ImageNet's)")
    loading.add_argument("--std", type=float, nargs="+", help="of the channels (default ImageNet's)")
    return parser


class _CallableModule(ModuleType):
    """`vitfx.prune` is the command's module and, for Python, the function in it."""

    def __call__(self, *args: Any, **kwargs: Any) -> Pruned:
        return prune(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule

if __name__ == "__main__":
    sys.exit(main())
