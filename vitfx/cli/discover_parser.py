"""The arguments of `vitfx.discover`."""

from __future__ import annotations

from pathlib import Path

from vitfx.cli.options import INPUT, add_discovery, add_inputs, add_loading, add_task
from vitfx.cli.parser import CommandParser

_FIRST = {
    "input": {
        **INPUT,
        "--classes": "find what carries the answers of these classes alone (default: all)",
    },
    "circuit": {
        "--granularity": "what an edge is, from 25 of them to 18,025 in a ViT-S (default head)",
        "--method": "how edges are decided: eap-acdc is fast on edge and qkv (default acdc)",
        "--tau": "what removing an edge may cost, in nats an image (default 0.05)",
        "--samples": "calibration images (default 128)",
        "--repeats": "runs with other images and seeds, and how much they agree on",
    },
    "result": {"--out": "the circuit's file (default: MODEL-GRANULARITY-METHOD-tauτ.json)"},
}
_EXAMPLES = (
    "python -m vitfx.discover demo --granularity qkv --method eap-acdc --tau 0.001 --out circuit.json",
    "python -m vitfx.show circuit.json",
    "python -m vitfx.prune demo --circuit circuit.json",
    "python -m vitfx.discover vit.pt --tau-sweep 1e-5:1e-1:9   # a circuit for each τ, and a table",
    "python -m vitfx.discover vit.pt --tasks tasks.toml --repeats 3   # which heads serve which task",
    "torchrun --nproc-per-node=4 -m vitfx.discover vit.pt   # four processes share the images",
)
_NOTES = """If it is stopped, the same command goes on; methods that rank or learn begin anew.
exit code: 0; 2 when something you gave can't be used; 130 after Ctrl-C, 143 after SIGTERM.
"""
_MEMORY = "memory for activations, at most; an edge or qkv graph that needs more keeps a part in a file beside --out"


def discover_parser(doc: str | None) -> CommandParser:
    """doc: of the command, its first line in the help."""
    parser = CommandParser("discover", doc, usage="MODEL [options]", first=_FIRST, examples=_EXAMPLES, notes=_NOTES)
    add_inputs(parser)
    add_task(parser)
    add = parser.add_argument
    add("--out", type=Path, help="the circuit's file (default: MODEL-GRANULARITY-METHOD-tauτ.json)")
    add("--force", action="store_true", help="replace an existing circuit")
    add(
        "--tau-sweep",
        metavar="LOW:HIGH:COUNT",
        help="a circuit for each of COUNT thresholds from LOW to HIGH, in equal ratios, each in its own file named "
        "after --out, and a table of what they cost",
    )
    add(
        "--repeats",
        type=int,
        default=1,
        help="run with other calibration images and seeds as well, seed, seed + 1, …, and tell how much of the circuit "
        "they agree on; the circuit written is the first run's (default 1)",
    )
    add(
        "--stability",
        type=int,
        default=0,
        metavar="N",
        help="run on N random halves of the calibration images as well, and mark the edges, heads and paths that they "
        "do not agree on (default 0)",
    )
    add(
        "--certain",
        type=float,
        metavar="P",
        help="with --stability: keep what fewer than a share P of the halves removed, 1 for all of them, and tell "
        "what that is worth on held-out images, also blurred and noisy ones (default: keep nothing more)",
    )
    add(
        "--tasks",
        type=Path,
        metavar="FILE",
        help='a circuit for each task in this TOML file, in which a line such as cats = ["tabby", "lynx"] names some '
        'of the classes, and "all" all of them, and how much of it each task shares with the others; --repeats says '
        "how much of that is chance",
    )
    add("--eval-samples", type=int, default=500, help="held-out images to run the circuit on, 0 for none (default 500)")
    add("--memory", type=float, metavar="GIB", help=_MEMORY)
    add("--top", type=int, default=10, help="how many of the strongest edges to list (default 10)")
    add_discovery(parser)
    add_loading(parser)
    return parser
