"""Arguments that several commands take, and the settings made of them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from vitfx.circuits.circuit import GRANULARITIES
from vitfx.deploy.deployment import NAMES
from vitfx.deploy.export import OLDEST_OPSET, OPSET
from vitfx.deploy.precisions import ONNX_RUNTIME, RUNTIMES
from vitfx.discovery.basis.settings import (
    ABLATIONS,
    CORRUPTIONS,
    DIFFERENTIATING,
    EDGE_PRUNING,
    INTEGRATING,
    METHODS,
    METRICS,
    OF_EDGE_PRUNING,
    ORDERS,
    STARTS,
    Settings,
    check_threshold,
)
from vitfx.graph.kinds import KINDS
from vitfx.models.architectures import KNOWN_ARCHES
from vitfx.models.state_dicts import WEIGHTS
from vitfx.support.errors import UserError

OF_IMAGES = ("image_size", "mean", "std", "interpolation", "resize", "crop_pct")
"""What `add_reading` adds that changes how images are prepared."""
_ONLY_FOR = {
    "order": ("acdc",),
    "metric": DIFFERENTIATING,
    "steps": INTEGRATING,
    "ensemble": ("ensemble",),
    **dict.fromkeys(OF_EDGE_PRUNING, (EDGE_PRUNING,)),
}
"""The methods that read a setting, where the others ignore it."""


INPUT = {
    "model": "checkpoint, artifact, weights with --arch, .pt2, HF folder, or demo",
    "--arch": "the model of bare weights: timm:NAME, torchvision:NAME or hf:DIR",
    "--data": "images: a folder, an .npz or digits (default: the checkpoint's)",
}
"""What the short help has on a model and its images."""


def add_inputs(parser: argparse.ArgumentParser) -> None:
    """MODEL and `add_images`."""
    parser.add_argument(
        "model", metavar="MODEL", help="checkpoint, artifact, weights, .pt2, Hugging Face folder, or demo"
    )
    add_images(parser, "images: a folder, an .npz file, or digits (default: the checkpoint's data set)")


def add_images(parser: argparse.ArgumentParser, data: str) -> None:
    """Images, their labels, and which of the classes count. data: the help of --data."""
    add = parser.add_argument_group("images and classes").add_argument
    add("--data", help=data)
    add(
        "--labels",
        type=Path,
        metavar="FILE",
        help="labels of the images, several each if need be, in place of folders' names: a CSV with lines of "
        "file,label,label… or with a header that names the labels and a 0 or 1 for each",
    )
    add(
        "--class-names",
        type=Path,
        metavar="FILE",
        help="names of the model's classes, one a line in the order of its logits, where the model has none or others "
        "than the data",
    )
    add(
        "--classes",
        metavar="FILE|NAME,NAME",
        help="the classes that are needed: the others' logits go, and only images of these count; names, WordNet ids, "
        "words for them, or numbers of logits from 0, between commas or in a file, one a line (default: all)",
    )
    add(
        "--other",
        action="store_true",
        help='with --classes: one more class for "none of these", whose logit is the log-sum-exp of the others\'; as '
        "many images of the others then calibrate and evaluate as of the chosen classes",
    )


def add_task(parser: argparse.ArgumentParser) -> None:
    """--task, of every command that compares answers."""
    parser.add_argument(
        "--task",
        choices=KINDS,
        help="what the model answers: classes (softmax, compared by KL divergence), labels (a sigmoid each, by "
        "Bernoulli KL; one logit is this), embedding (by cosine distance), values, or dense, which is values of each "
        "token or pixel (both by relative squared error) (default: found by looking, and said)",
    )


def add_discovery(parser: argparse.ArgumentParser) -> None:
    """The fields of `Settings`. An argument that is not given is None; its default is the one that the help names."""
    add = parser.add_argument_group("discovery").add_argument
    default = Settings()
    add(
        "--method",
        choices=METHODS,
        help="acdc measures what removing each edge costs (exact, but slow on graphs with many edges); eap-acdc "
        "predicts this from gradients and measures only close calls (for the edge and qkv graphs); edge-pruning "
        "trains a gate for each edge until a given share is closed; the others rank edges: eap, eap-ig, "
        "eap-ig-activations and taylor by gradients, relp by relevance, magnitude by weights, random as the baseline, "
        "ensemble by the mean of several "
        f"(default {default.method})",
    )
    add(
        "--granularity",
        choices=GRANULARITIES,
        help="what an edge is: block, a whole sublayer's output; head, the output of a head or MLP path; edge, a "
        "connection from a writer to a reader; qkv, the same with separate queries, keys and values; 12 layers of 6 "
        "heads and 8 paths have 25, 169, 6,793 and 18,025 edges, and acdc's time grows with them "
        f"(default {default.granularity})",
    )
    add(
        "--tau",
        type=float,
        help="remove an edge if that raises D_KL(model ‖ circuit), with all edges removed so far, by less than τ nats "
        "per image: a larger τ gives a smaller, less faithful circuit; for methods that rank, remove an edge if its "
        f"score is below τ, in the score's own unit (default {default.tau})",
    )
    add(
        "--max-divergence",
        "--max-kl",
        dest="max_kl",
        type=float,
        metavar="D",
        help="largest divergence of the whole circuit: KL in nats per image, or that of the model's task in its own "
        "unit (default: no limit)",
    )
    add(
        "--remove",
        type=float,
        help="for methods that rank, instead of --tau, and for edge-pruning (default 0.5): the fraction to remove, 0 "
        "to 1, of the model's FLOPs on the block and head graphs, and of the edges on the others",
    )
    _add_of_methods(add, default)
    _add_calibration(add, default)


def _add_of_methods(add: Callable[..., argparse.Action], default: Settings) -> None:
    """What only some methods read, see `_ONLY_FOR`."""
    add(
        "--order",
        choices=ORDERS,
        help="the order in which acdc visits a reader's edges: attribution, from the lowest attribution up; reverse, "
        f"from the last writer to the first, as in the paper's code; forward (default {default.order})",
    )
    add("--metric", choices=METRICS, help=f"what gradients and relevance are of (default {default.metric})")
    add("--steps", type=int, help=f"eap-ig's steps between ablated and clean (default {default.steps})")
    add(
        "--ensemble",
        type=lambda text: tuple(text.split(",")),
        metavar="METHOD,METHOD",
        help="the methods whose ranks --method ensemble averages, which this stands for "
        f"(default {','.join(default.ensemble)})",
    )
    add("--gate-steps", type=int, help=f"edge-pruning's training steps (default {default.gate_steps})")
    add("--learning-rate", type=float, help=f"of edge-pruning's gates (default {default.learning_rate})")
    add(
        "--gate-start",
        choices=STARTS,
        help="what edge-pruning's gates start from: an attribution, or equal, all alike as in the paper (default "
        f"{default.gate_start})",
    )


def _add_calibration(add: Callable[..., argparse.Action], default: Settings) -> None:
    """What edges are judged on."""
    add("--ablation", choices=ABLATIONS, help=f"what replaces a removed writer's output (default {default.ablation})")
    add("--corruption", choices=CORRUPTIONS, help=f"how inputs are corrupted (default {default.corruption})")
    add("--samples", type=int, help=f"number of calibration images (default {default.samples})")
    add(
        "--paths",
        type=int,
        help=f"groups of hidden neurons per MLP, except on the block graph (default {default.paths})",
    )
    add("--seed", type=int, help=f"seed of the sample, the corruption and all draws (default {default.seed})")


def add_loading(parser: argparse.ArgumentParser) -> None:
    """How the model file is read, and where the model runs."""
    parser.add_argument("--device", default="auto", help="auto, cpu, or torch's name of a GPU (default auto)")
    add_reading(parser)


def add_reading(parser: argparse.ArgumentParser) -> None:
    """How the model file is read."""
    group = parser.add_argument_group("loading")
    add = group.add_argument
    add(
        "--arch",
        help=f"the model that bare weights belong to: {KNOWN_ARCHES}; with arguments as in timm:NAME,in_chans=1",
    )
    add("--weights", choices=WEIGHTS, help="for files that have both: ema, the moving average of the weights, or raw")
    add("--trust-pickle", action="store_true", help="load pickled modules, which can run any code")
    add("--output", metavar="NAME", help="which tensor is the answer, where the model returns several (default logits)")
    own = "as the file or its library says"
    add(
        "--image-size", type=image_size, metavar="SIDE|HEIGHTxWIDTH",
        help=f"in pixels, of the images that the model takes (default: {own})",
    )  # fmt: skip
    add("--mean", type=float, nargs="+", help=f"of each channel, on a scale of 0 to 1 (default: {own})")
    add("--std", type=float, nargs="+", help=f"of each channel (default: {own})")
    add("--interpolation", help=f"how images are resized, such as bicubic (default: {own})")
    crop = group.add_mutually_exclusive_group().add_argument
    crop("--resize", type=int, metavar="EDGE", help="pixels of the shortest edge before the centre is cut out")
    crop("--crop-pct", type=float, help="the share of that edge that is cut out, such as 0.875")


def image_size(text: str) -> tuple[int, int]:
    """(height, width) of 224 or 256x128; raises ArgumentTypeError."""
    sides = re.fullmatch(r"(\d{1,6})(?:[xX×](\d{1,6}))?", text, re.ASCII)
    if sides is None or min(size := (int(sides[1]), int(sides[2] or sides[1]))) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: give a side, or height and width as 256x128")
    return size


def add_runtime(add: Callable[..., argparse.Action], what: str) -> None:
    """--runtime. what: it does."""
    add(
        "--runtime",
        choices=RUNTIMES,
        default=ONNX_RUNTIME,
        help=f"what {what}; openvino (CPU, vitfx[openvino]) takes files of standard operators alone (default "
        f"{ONNX_RUNTIME})",
    )


def add_rewrites(parser: argparse.ArgumentParser) -> None:
    """What is rewritten before export."""
    add = parser.add_argument_group("exact rewrites").add_argument
    add(
        "--rewrites",
        default="all",
        metavar="all|none|NAME,NAME",
        help=f"the exact rewrites to apply, by name: {', '.join(NAMES)} (default all)",
    )
    add("--portable", action="store_true", help="use only standard ONNX operators, none of ONNX Runtime's own")
    add(
        "--opset", type=int, choices=range(OLDEST_OPSET, OPSET + 1), default=OPSET, metavar="N",
        help=f"of the ONNX files, {OLDEST_OPSET} to {OPSET} (default {OPSET}, the first with an Attention operator)",
    )  # fmt: skip


def refuse_given(
    parser: argparse.ArgumentParser, options: argparse.Namespace, names: Sequence[str], reason: str
) -> None:
    """Raises UserError for options of these names that the user gave although they would not be looked at."""
    for name in names:
        if getattr(options, name) != parser.get_default(name):
            raise UserError(f"--{name.replace('_', '-')} {reason}: leave it out")


def given_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The discovery arguments that the user gave."""
    # The task and the names of classes are found when the model has been seen.
    later = ("task", "classes", "other")
    values = {field.name: getattr(options, field.name) for field in fields(Settings) if field.name not in later}
    if values["ensemble"] is not None and values["method"] is None:
        values["method"] = "ensemble"
    return {name: value for name, value in values.items() if value is not None}


def make_settings(given: dict[str, Any]) -> Settings:
    """Raises UserError, also for an argument that would be ignored."""
    settings = Settings(**given)
    if "tau" in given:
        check_threshold(settings.method)
    if "tau" in given and "remove" in given:
        raise UserError(f"--remove {settings.remove} replaces --tau: give only one of them")
    for name, methods in _ONLY_FOR.items():
        if name in given and settings.method not in methods:
            option = name.replace("_", "-")
            raise UserError(f"--{option} is for {', '.join(methods)}, not {settings.method}: leave it out")
    if "paths" in given and settings.granularity == "block":
        raise UserError(f"--paths {settings.paths} splits MLPs, which the block graph keeps whole: leave it out")
    return settings


def threshold(settings: Settings) -> str:
    """The threshold as a part of a file's name."""
    return f"tau{settings.tau:g}" if settings.remove is None else f"remove{settings.remove:g}"
