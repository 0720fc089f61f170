"""The arguments of `vitfx.prune`."""

from __future__ import annotations

from pathlib import Path

from vitfx.cli.goal_options import add_goal
from vitfx.cli.options import INPUT, add_discovery, add_inputs, add_loading, add_rewrites, add_task
from vitfx.cli.parser import CommandParser
from vitfx.cli.prune_options import COMPENSATE_SAMPLES
from vitfx.cli.rounds_options import add_rounds
from vitfx.deploy.precisions import FP32, PRECISIONS
from vitfx.pruning.compensation import KINDS
from vitfx.pruning.prune_for_goal import MOST_IMAGES

_FIRST = {
    "input": {
        **INPUT,
        "--classes": "keep these classes alone (default: all)",
    },
    "goal, one of these": {
        "--max-drop": "as fast as so many lost points of top-1 allow (default 1)",
        "--target-speedup": "X times as fast as the plain export",
        "--target-flops": "keep this share of the FLOPs, losing least",
        "--tau": "delete what costs less than τ nats an image, head by head",
    },
    "result": {
        "--target": "where it is to be fast (default cpu:batch=8)",
        "--precision": "int8, fp16 and bf16 also write a file in these numbers",
        "--tokens": "merge alike tokens: r=4 in every block, auto, or off",
        "--out": "folder for the results",
    },
}
_EXAMPLES = (
    "python -m vitfx.prune demo --tau 0.001",
    "python -m vitfx.prune vit.pt --data photos/ --max-drop 0.5",
    "python -m vitfx.prune vit.pth --arch timm:vit_base_patch16_224 --data photos/ --target-speedup 1.5",
    "python -m vitfx.prune vit.pt --data photos/ --classes tabby,lynx --precision int8 --out cats/",
    "python -m vitfx.prune vit.pt --data photos/ --sweep 1.2:2.0:5   # five models",
    "python -m vitfx.prune vit.pt --data photos/ --target-speedup 2 --rounds 2 --recover-minutes 30",
    "python -m vitfx.prune vit.pt --circuit circuit.json",
)
_NOTES = """\
A head or MLP path is deleted if that costs less than τ of KL divergence (nats an image): more τ, more speed, less
accuracy. If discovery, a sweep or rounds are stopped, the same command goes on (a sweep or rounds without --force).
`python -m vitfx.discover` finds a circuit and stops there, for you to look at; --circuit goes on from it."""


def prune_parser(doc: str | None) -> CommandParser:
    """doc: of the command, its first line in the help."""
    parser = CommandParser("prune", doc, usage="MODEL [options]", first=_FIRST, examples=_EXAMPLES, notes=_NOTES)
    add_inputs(parser)
    add_task(parser)
    parser.add_argument(
        "--circuit",
        type=Path,
        help="a circuit.json that vitfx.discover wrote for this model and data: what is dead in it is deleted, and "
        "nothing is discovered; leave out discovery's arguments",
    )
    parser.add_argument("--out", type=Path, help="folder for the results (default: named after MODEL and the request)")
    parser.add_argument(
        "--force",
        action="store_true",
        help="replace earlier results in the folder; for a goal, time the model's parts anew",
    )
    parser.add_argument(
        "--eval-samples", type=int, default=2000, help="evaluation images, at most; 0 for all (default 2000)"
    )
    parser.add_argument(
        "--compensate",
        choices=KINDS,
        help="what makes up for deletions: ridge, survivors' output weights are refitted, without training, so that "
        "the residual stream stays near the original's; mean, each deletion leaves its mean behind; none (default "
        "ridge, which goals always use)",
    )
    parser.add_argument(
        "--compensate-samples",
        type=int,
        help=f"images to refit survivors on, at most (default {COMPENSATE_SAMPLES}; for a goal three quarters of "
        f"--samples, or, where that is left out, of up to {MOST_IMAGES} that a small model has time for)",
    )
    parser.add_argument(
        "--tokens",
        metavar="SCHEDULE",
        help="merge alike tokens between attention and MLP (ToMe), on top of what is deleted: r=4, so many in every "
        "block; 3:8,6:8, block:tokens, blocks from 0; auto, for a goal, where that loses least; off (default auto for "
        "a goal; otherwise, and where tokens merge already, as in the model given)",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=FP32,
        help="int8 (CPU), fp16 (GPU) and bf16 (CPU, by OpenVINO) also write pruned-int8.onnx, pruned-fp16.onnx or "
        "pruned-bf16.onnx, with its own accuracy and time in the report; int8 takes its ranges from the calibration "
        "images (default fp32)",
    )
    add_goal(parser)
    add_rounds(parser)
    add_discovery(parser)
    add_rewrites(parser)
    add_loading(parser)
    return parser
