"""Arguments that several commands take, and the settings made of them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from vitfx.circuits.edge_graph import GRANULARITIES
from vitfx.deploy.deployment import NAMES
from vitfx.discovery.basis.ablation import ABLATIONS
from vitfx.discovery.basis.corruption import CORRUPTIONS
from vitfx.discovery.basis.metric import METRICS
from vitfx.discovery.basis.settings import METHODS, ORDERS, Settings
from vitfx.models.architectures import KNOWN_ARCHES
from vitfx.support.errors import UserError

_ONLY_FOR = {"order": ("acdc",), "metric": ("eap", "eap-ig"), "steps": ("eap-ig",)}
"""Settings that other methods do not look at."""


def add_inputs(parser: argparse.ArgumentParser) -> None:
    """MODEL and --data."""
    parser.add_argument(
        "model", metavar="MODEL", help="checkpoint, artifact, weights, .pt2, Hugging Face folder, or demo"
    )
    parser.add_argument("--data", help="images: a folder, an .npz, or digits (default: what the checkpoint names)")


def add_discovery(parser: argparse.ArgumentParser) -> None:
    """The fields of `Settings`. What is not given is None, and has the default that the help names."""
    add = parser.add_argument_group("discovery").add_argument
    default = Settings()
    add(
        "--method",
        choices=METHODS,
        help="acdc asks of every edge what removing it costs (exact, slow on graphs of many edges); eap-acdc predicts "
        "that by gradients and asks where it is close (for the edge and the qkv graph); the others rank: eap, eap-ig "
        f"and taylor by gradients, magnitude by weights, random is what any must beat (default {default.method})",
    )
    add(
        "--granularity",
        choices=GRANULARITIES,
        help="what an edge is: block, a whole sublayer's output; head, a head's or MLP path's; edge, who reads whom; "
        "qkv, the same with a head's queries, keys and values apart; 12 layers of 6 heads and 8 paths have 25, 169, "
        f"6,793 and 18,025 edges, and acdc's time goes with them (default {default.granularity})",
    )
    add(
        "--tau",
        type=float,
        help="an edge goes if removing it, on top of those gone before, raises D_KL(model ‖ circuit) by less than τ "
        "nats an image: more τ, smaller circuit, less faithful; for methods that rank, if its score is less than τ, "
        f"in the score's own unit (default {default.tau})",
    )
    add("--max-kl", type=float, help="greatest KL of the whole circuit, nats an image (default: no limit)")
    add(
        "--remove",
        type=float,
        help="for methods that rank, in place of τ: share to remove, 0 to 1, of the model's FLOPs on the block and the "
        "head graph, of the edges on the others",
    )
    add(
        "--order",
        choices=ORDERS,
        help="in which order acdc asks for a reader's edges: attribution, the least attributed first; reverse, from "
        f"the latest writer to the earliest, as the paper's code does; forward (default {default.order})",
    )
    add("--metric", choices=METRICS, help=f"what eap and eap-ig differentiate (default {default.metric})")
    add("--steps", type=int, help=f"eap-ig's points between ablated and clean (default {default.steps})")
    add("--ablation", choices=ABLATIONS, help=f"what stands in for a removed writer (default {default.ablation})")
    add("--corruption", choices=CORRUPTIONS, help=f"how corrupted inputs are made (default {default.corruption})")
    add("--samples", type=int, help=f"calibration images (default {default.samples})")
    add("--paths", type=int, help=f"groups of hidden neurons an MLP, not on block (default {default.paths})")
    add("--seed", type=int, help=f"of the sample, the corruption and all draws (default {default.seed})")


def add_loading(parser: argparse.ArgumentParser) -> None:
    """How the model file is read, and where the model runs."""
    parser.add_argument("--device", default="auto", help="auto, cpu, or a GPU by torch's name (default auto)")
    add_reading(parser)


def add_reading(parser: argparse.ArgumentParser) -> None:
    """How the model file is read."""
    add = parser.add_argument_group("loading").add_argument
    add("--arch", help=f"what bare weights are of: {KNOWN_ARCHES}")
    add("--trust-pickle", action="store_true", help="load a pickled module, which may run any code")
    add("--image-size", type=int, help="pixels, where the file does not say")
    add("--mean", type=float, nargs="+", help="of the channels, values in 0..1 (default ImageNet's)")
    add("--std", type=float, nargs="+", help="of the channels (default ImageNet's)")


def add_rewrites(parser: argparse.ArgumentParser) -> None:
    """What is rewritten before export."""
    add = parser.add_argument_group("exact rewrites").add_argument
    add(
        "--rewrites",
        default="all",
        metavar="all|none|NAME,NAME",
        help=f"rewrites that change no value, on or off by name: {', '.join(NAMES)} (default all)",
    )
    add("--portable", action="store_true", help="standard ONNX operators only, none of ONNX Runtime's own")


def refuse_given(
    parser: argparse.ArgumentParser, options: argparse.Namespace, names: Sequence[str], reason: str
) -> None:
    """Raises UserError for options of these names that the user gave although they would not be looked at."""
    for name in names:
        if getattr(options, name) != parser.get_default(name):
            raise UserError(f"--{name.replace('_', '-')} {reason}: leave it out")


def given_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The discovery arguments that the user gave."""
    found = {one.name: getattr(options, one.name) for one in fields(Settings)}
    return {name: value for name, value in found.items() if value is not None}


def make_settings(given: dict[str, Any]) -> Settings:
    """Raises UserError, also where an argument would not be looked at."""
    settings = Settings(**given)
    if "tau" in given and "remove" in given:
        raise UserError(f"--remove {settings.remove} stands in place of --tau: give one of them")
    for name, methods in _ONLY_FOR.items():
        if name in given and settings.method not in methods:
            raise UserError(f"--{name} is for {' and '.join(methods)}, not {settings.method}: leave it out")
    if "paths" in given and settings.granularity == "block":
        raise UserError(f"--paths {settings.paths} groups neurons of MLPs, which block takes whole: leave it out")
    return settings


def threshold(settings: Settings) -> str:
    """What decided, as a part of a file's name."""
    return f"tau{settings.tau:g}" if settings.remove is None else f"remove{settings.remove:g}"
