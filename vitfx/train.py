"""Train a small Vision Transformer on scikit-learn's digits, from nothing.

The demo model in the package was made, on two CPU cores in two minutes, by

    python -m vitfx.train --data digits --out digits.pt

Stochastic depth (Huang et al. 2016) is part of the recipe: a model that has learnt to do without any of its
sublayers has some to spare, as large models do.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from vitfx.checkpoint import save_checkpoint
from vitfx.data import Images, open_data
from vitfx.device import NAMES, pick_device
from vitfx.errors import UserError
from vitfx.models import ViT
from vitfx.preprocess import Preprocess

# Of the calibration split's pixels, scaled to 0..1.
DIGITS = Preprocess(size=(8, 8), mean=(0.305,), std=(0.376,))
_BATCH = 64
_WARM_UP = 0.05
_WEIGHT_DECAY = 0.05
_LABEL_SMOOTHING = 0.1


def train(
    model: nn.Module,
    images: Images,
    *,
    epochs: int,
    learning_rate: float,
    seed: int,
    progress: Callable[[int, float], None] | None = None,
) -> None:
    """Trains `model`, in place and on its own device, on labelled `images`, and leaves it in eval mode.

    AdamW, a linear warm-up and a cosine down to 0, label smoothing, images moved by up to a pixel.
    progress: called after each epoch with how many are done and their mean loss.

    Raises UserError where the loss stops being a number.
    """
    if images.labels is None:
        raise UserError("training needs labels: give images with their classes")
    device = next(model.parameters()).device
    pixels, labels = images.pixels.to(device), images.labels.to(device)
    steps = epochs * math.ceil(len(images) / _BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    # Dropout and stochastic depth draw from torch's own generator.
    torch.manual_seed(seed)
    model.train()
    for epoch in range(epochs):
        total = 0.0
        for batch in torch.randperm(len(images)).to(device).split(_BATCH):
            logits = model(_moved(pixels[batch]))
            loss = F.cross_entropy(logits, labels[batch], label_smoothing=_LABEL_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item() * len(batch)
        if not math.isfinite(total):
            raise UserError(
                f"the loss is {total} after {epoch + 1} epochs: give a learning rate below {learning_rate:g}"
            )
        if progress is not None:
            progress(epoch + 1, total / len(images))
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, images: Images) -> float:
    """The share, 0..1, of labelled `images` that `model` classifies as their labels say."""
    device = next(model.parameters()).device
    right = model(images.pixels.to(device)).argmax(dim=1).cpu() == images.labels
    return right.double().mean().item()


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)
    try:
        _run(options, list(sys.argv[1:] if arguments is None else arguments), console)
    except UserError as error:
        console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vitfx.train",
        description=(__doc__ or "").splitlines()[0],
        epilog="example: python -m vitfx.train --data digits --out digits.pt --epochs 50",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", required=True, help="what to train on: digits")
    parser.add_argument("--out", required=True, type=Path, help="where the checkpoint is written")
    parser.add_argument("--epochs", type=int, default=80, help="passes over the training images")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same weights")
    parser.add_argument("--width", type=int, default=64, help="channels of the residual stream")
    parser.add_argument("--depth", type=int, default=6, help="blocks")
    parser.add_argument("--heads", type=int, default=8, help="attention heads of each block")
    parser.add_argument("--mlp", type=int, default=128, help="hidden neurons of each MLP")
    parser.add_argument("--patch", type=int, default=2, help="side of a patch in pixels")
    parser.add_argument("--dropout", type=float, default=0.0, help="chance that a value is dropped in training")
    parser.add_argument(
        "--drop-path", type=float, default=0.3, help="chance that the last block's sublayers are skipped"
    )
    parser.add_argument("--lr", type=float, default=2e-3, help="the highest learning rate")
    parser.add_argument("--device", default="auto", help=NAMES)
    parser.add_argument("--force", action="store_true", help="overwrite --out")
    return parser


def _run(options: argparse.Namespace, arguments: list[str], console: Console) -> None:
    _check(options)
    device = pick_device(options.device)
    splits = open_data(options.data, DIGITS)
    if splits.classes is None:
        raise UserError(f"{options.data} has no classes: training needs labelled images")
    kwargs = {
        "image_size": DIGITS.size[0],
        "patch_size": options.patch,
        "channels": DIGITS.channels,
        "classes": len(splits.classes),
        "width": options.width,
        "depth": options.depth,
        "heads": options.heads,
        "mlp": options.mlp,
    }
    torch.manual_seed(options.seed)
    model = ViT(**kwargs, dropout=options.dropout, drop_path=options.drop_path).to(device)
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("epochs", total=options.epochs)

        def show(epoch: int, loss: float) -> None:
            bar.update(task, completed=epoch, description=f"epochs, training loss {loss:.3f},")

        images = splits.calibration.load()
        train(model, images, epochs=options.epochs, learning_rate=options.lr, seed=options.seed, progress=show)
    save_checkpoint(
        options.out,
        factory="vitfx.models:ViT",
        kwargs=kwargs,
        state_dict=model.state_dict(),
        preprocess=DIGITS,
        classes=splits.classes,
        data=options.data,
        made_by=shlex.join(["python", "-m", "vitfx.train", *arguments]),
    )
    held_out = splits.evaluation.load()
    console.print(
        f"{options.out}: {accuracy(model, held_out):.2%} of {len(held_out)} held-out images are classified correctly",
        highlight=False,
        soft_wrap=True,
    )


def _check(options: argparse.Namespace) -> None:
    if options.data != "digits":
        raise UserError(f"--data {options.data} cannot be trained on yet: give digits")
    if options.epochs < 1:
        raise UserError(f"--epochs {options.epochs} trains nothing: give 1 or more")
    if not (options.lr > 0 and math.isfinite(options.lr)):
        raise UserError(f"--lr {options.lr} is no learning rate: give a number above 0")
    if not options.out.parent.is_dir():
        raise UserError(f"--out {options.out} is in a folder that does not exist: make {options.out.parent} first")
    if options.out.is_dir():
        raise UserError(f"--out {options.out} is a folder: give the name of a file in it")
    if options.out.exists() and not options.force:
        raise UserError(f"--out {options.out} is there already: give another name, or --force to overwrite it")


def _rate(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine down to 0: the factor of the learning rate at a step."""
    warm_up = max(1, round(_WARM_UP * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def _moved(pixels: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W), each image moved by up to one pixel each way, the border repeated at the edges it leaves."""
    count, _, height, width = pixels.shape
    shift = (2 * torch.rand(count, 2) - 1) * torch.tensor([2 / width, 2 / height])
    move = torch.cat([torch.eye(2).expand(count, 2, 2), shift[:, :, None]], dim=2).to(pixels.device)
    grid = F.affine_grid(move, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)


if __name__ == "__main__":
    sys.exit(main())
