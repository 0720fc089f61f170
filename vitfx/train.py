"""Train a Vision Transformer on images in class folders, from scratch or from existing weights.

    python -m vitfx.train --data tiny-imagenet-200/

trains the seed project's ViT by its recipe (`vitfx/training/configs/tiny-imagenet.toml`). The demo model in the
package was made by such a command, on two CPU cores in two minutes:

    python -m vitfx.train --data digits --out digits.pt

Stochastic depth (Huang et al. 2016) is part of both recipes: a model that has learnt to do without any one of its
sublayers has some to spare, as large models do.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console

from vitfx.cli.exit_codes import ending, going_on
from vitfx.cli.next_steps import after_train
from vitfx.cli.options import image_size
from vitfx.cli.parser import CommandParser
from vitfx.images.pixel_cache import default_cache
from vitfx.models.state_dicts import WEIGHTS
from vitfx.runs.train import run_training
from vitfx.runs.train_job import TrainJob
from vitfx.runs.train_record import TrainReport
from vitfx.support.console import entry_point
from vitfx.support.devices import NAMES
from vitfx.support.errors import UserError
from vitfx.support.files import check_output
from vitfx.support.locks import hold_folder
from vitfx.support.processes import first_holds, first_says, is_first_process, open_share, share_device
from vitfx.support.progress import Silent, console_watcher
from vitfx.training.config import PACKAGED, PRECISIONS, read_config, sets_image_size
from vitfx.training.loader import pick_workers
from vitfx.training.state import STATE

_FIRST = {
    "input": {
        "--data": "class folders, or train/ and val/ of them, an .npz, or digits",
        "--init": "weights to start from (default: from scratch)",
        "--arch": "vit (vitfx's own), timm:NAME or torchvision:NAME",
    },
    "training": {
        "--config": "the recipe: digits, tiny-imagenet, or a TOML file",
        "--set": "change one value of the recipe; may be repeated",
        "--epochs": "passes over the training images",
        "--batch": "images a step, over all processes",
        "--lr": "the highest learning rate",
        "--image-size": "in pixels, to which images are resized",
    },
    "result": {"--out": "folder for the results (default: trained-DATA), or FILE.pt"},
}
_EXAMPLES = (
    "python -m vitfx.train --data digits --out digits.pt",
    "python -m vitfx.train --data photos/ --epochs 9 --set augmentation.cutmix=0 --out short/",
    "python -m vitfx.train --data photos/ --init vit.pth --arch torchvision:vit_b_16 --epochs 5",
    "torchrun --nproc-per-node=4 -m vitfx.train --data tiny-imagenet-200/",
)
_NOTES = """\
To change a recipe, copy vitfx/training/configs/tiny-imagenet.toml, which explains every key, and pass the copy with
--config; or write a file that begins with base = "tiny-imagenet" and has only what differs.

The folder gets best.pt (highest validation accuracy) and last.pt, which every other command of vitfx takes as MODEL;
history.json, curves.png and gradient_flow.png, updated as it goes; at the end confusion.csv, confusion.png, classes.csv
and report.json. Ctrl-C, a crash or kill -9 loses at most --save-seconds: the same command, without --force, goes on,
with the same batches and the same curve. With several nodes, all must see the folders --out and --cache.
"""

# Options that stand for a key of the configuration.
_KEYS: dict[str, tuple[str, Callable[[str], Any], str]] = {
    "epochs": ("training.epochs", int, "passes over the training images"),
    "batch": ("training.batch", int, "images a step, over all processes"),
    "lr": ("training.lr", float, "the highest learning rate"),
    "seed": ("training.seed", int, "same seed, same weights"),
    "precision": ("training.precision", str, ", ".join(PRECISIONS)),
    "width": ("model.width", int, "channels of the residual stream"),
    "depth": ("model.depth", int, "blocks"),
    "heads": ("model.heads", int, "attention heads of each block"),
    "mlp": ("model.mlp", int, "hidden neurons of each MLP"),
    "patch": ("model.patch", int, "side of a patch in pixels"),
    "dropout": ("model.dropout", float, "chance that a value is dropped in training"),
    "drop_path": ("model.drop_path", float, "chance that the last block's sublayers are skipped in training"),
    "arch": ("model.arch", str, "vit (vitfx's own), timm:NAME or torchvision:NAME"),
    "image_size": (
        "model.image_size",
        image_size,
        "side in pixels to which images are resized, or HEIGHTxWIDTH; by default that of --init",
    ),
}
_SIZES = ("width", "depth", "heads", "mlp", "patch")


@entry_point
def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = build_parser().parse_args(given)
    stopped = going_on(_folder(options) / STATE, force=options.force)
    first = is_first_process()
    console = Console(quiet=not first)

    def work() -> None:
        with first_says(first):
            job = _check(options, shlex.join(["python", "-m", "vitfx.train", *given]))
        with (
            open_share(job.device) as share,
            first_holds(share, hold_folder(job.out, force=job.force, unfinished=STATE)),
            console_watcher(console) if first else nullcontext(Silent()) as watcher,
        ):
            report = run_training(job, share, watcher)
        for line in (_summary(job, report), *after_train(job.model_file or job.out / "last.pt")):
            console.print(line, highlight=False, markup=False, soft_wrap=True)

    return ending(work, stopped if first else str)


def build_parser() -> CommandParser:
    usage = "--data DATA [options]"
    parser = CommandParser("train", __doc__, usage=usage, first=_FIRST, examples=_EXAMPLES, notes=_NOTES)
    parser.add_argument(
        "--data",
        required=True,
        help="Tiny ImageNet (folders or tar files), train/ and val/ with class folders, class folders alone, "
        "an .npz with images and labels, or digits",
    )
    parser.add_argument(
        "--config", help=f"{', '.join(PACKAGED)} or FILE.toml (default: digits for digits, else tiny-imagenet)"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change one value; may be repeated"
    )
    for name, (key, kind, text) in _KEYS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=f"{text} ({key})")
    parser.add_argument(
        "--init",
        help="weights to start from: a vitfx checkpoint, or bare weights with --arch; images get the size and "
        "normalisation that these were trained with, and other classes a new classifier",
    )
    parser.add_argument("--weights", choices=WEIGHTS, help="of bare weights with both: ema, the moving average, or raw")
    parser.add_argument(
        "--out",
        help="folder for the results (default: trained-DATA); or FILE.pt for the last weights, with a folder FILE",
    )
    parser.add_argument("--force", action="store_true", help="replace earlier results, or a run that was stopped")
    parser.add_argument("--device", default="auto", help=f"{NAMES} (default auto)")
    parser.add_argument(
        "--workers", type=int, help="processes that augment (default: 0 on a CPU, one for each core with a GPU)"
    )
    parser.add_argument(
        "--cache", type=Path, help="folder for decoded images (default ~/.cache/vitfx, or in $XDG_CACHE_HOME)"
    )
    parser.add_argument("--save-seconds", type=float, default=120, help="seconds between saved states (default 120)")
    parser.add_argument("--tensorboard", action="store_true", help="also log for TensorBoard, in OUT/tensorboard")
    return parser


def _check(options: argparse.Namespace, command: str) -> TrainJob:
    """Raises UserError for what is wrong even without a look at the data."""
    given = {name: getattr(options, name) for name in _KEYS if getattr(options, name) is not None}
    name = options.config or ("digits" if options.data == "digits" else "tiny-imagenet")
    config = read_config(name, options.set, {_KEYS[key][0]: value for key, value in given.items()})
    arch = None if config.model.arch == "vit" else config.model.arch
    if (options.init or arch) and (sizes := [key for key in _SIZES if key in given]):
        raise UserError(
            f"--{sizes[0]} is for vitfx's own ViT, trained from scratch: leave it out with --arch and --init"
        )
    if options.weights and options.init is None:
        raise UserError(f"--weights {options.weights} chooses among those of --init: leave it out or name a file there")
    if not options.save_seconds >= 0:
        raise UserError(f"--save-seconds {options.save_seconds:g} is not a time: give 0 or more")
    if options.data != "digits" and not Path(options.data).exists():
        raise UserError(f"--data {options.data} does not exist: give a folder of images, an .npz file, or digits")
    own_size = options.image_size is not None or sets_image_size(name, options.set)
    out, model_file = _out(options)
    check_output(out, force=options.force, unfinished=STATE)
    if model_file and model_file.exists() and not options.force and not (out / STATE).exists():
        raise UserError(f"{model_file} exists already: give another --out, or --force to overwrite it")
    device = share_device(options.device)
    return TrainJob(
        config=config,
        data=options.data,
        out=out,
        model_file=model_file,
        cache=options.cache or default_cache(),
        device=device,
        workers=pick_workers(options.workers, device),
        save_seconds=options.save_seconds,
        init=options.init,
        weights=options.weights,
        arch=arch,
        image_size=config.model.size if own_size else None,
        tensorboard=options.tensorboard,
        force=options.force,
        command=command,
    )


def _out(options: argparse.Namespace) -> tuple[Path, Path | None]:
    """The folder, and the file that --out may name instead."""
    folder = _folder(options)
    if options.out is None or Path(options.out) == folder:
        return folder, None
    if Path(options.out).is_dir():
        raise UserError(f"--out {options.out} is a folder: give the name of a file in it, or one without .pt")
    return folder, Path(options.out)


def _folder(options: argparse.Namespace) -> Path:
    out = Path(options.out or f"trained-{Path(options.data).resolve().stem}")
    return out.with_suffix("") if out.suffix == ".pt" else out


def _summary(job: TrainJob, report: TrainReport) -> str:
    last, best = report["last"], report["best"]
    return (
        f"{last['accuracy']:.2%} of {last['images']} held-out images are classified correctly by the last weights, "
        f"{best['accuracy']:.2%} after the best epoch ({best['epoch']}): {job.model_file or job.out}"
    )


if __name__ == "__main__":
    sys.exit(main())
