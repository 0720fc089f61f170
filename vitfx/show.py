"""Show a model's graph, an ONNX file or a report as text, or draw a circuit and list what it keeps of each layer."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from passes.printer import format_graph
from vitfx.circuits.circuit import read_circuit
from vitfx.circuits.picture import SUFFIXES, picture_bytes
from vitfx.circuits.summary import summary
from vitfx.cli.exit_codes import ending
from vitfx.cli.options import INPUT, OF_IMAGES, add_reading, refuse_given
from vitfx.cli.parser import CommandParser
from vitfx.deploy.onnx_file import describe, read_onnx
from vitfx.graph.trace import to_canonical
from vitfx.images.selection import Selection
from vitfx.models.chosen import CHOSEN
from vitfx.reports.record_text import record_text
from vitfx.runs.inputs import open_model
from vitfx.support.console import entry_point
from vitfx.support.digests import DIGEST
from vitfx.support.errors import UserError, in_a_line
from vitfx.support.files import check_new_file, write_aside
from vitfx.support.json_files import read_sealed

_FIRST = {
    "input": {
        "model": "a model as for vitfx.prune; a circuit.json; an ONNX file; or another JSON file that vitfx wrote",
        "--arch": INPUT["--arch"],
        "--image-size": "in pixels, where the file does not say it",
    },
    "circuits": {
        "--out": ".svg or .png (default: beside the circuit, as .svg)",
        "--force": "overwrite the picture",
        "--edges": "how many edges to draw at most, the strongest ones (default 200)",
        "--top": "how many of the strongest edges to list (default 10)",
    },
}
_EXAMPLES = (
    "python -m vitfx.show demo",
    "python -m vitfx.show weights.safetensors --arch timm:vit_small_patch16_224",
    "python -m vitfx.show demo-pruned-tau0.001/circuit.json",
    "python -m vitfx.show demo-pruned-tau0.001/pruned.onnx",
    "python -m vitfx.show circuit.json --out circuit.png --edges 100 --top 20",
)
_NOTES = """\
Of a model, the canonical graph is printed that all other commands work on, a line for each sublayer: heads and their
widths, MLP neurons, the shape of the stream for one image, parameters and FLOPs. No data is needed. Files that vitfx
wrote are compared with the digests in them, and say what they were made from, ONNX files too.

Reports and all other JSON files that vitfx wrote are compared with their digests and printed: first what they were made
with. A circuit is drawn. Its picture is a grid with the layers upwards: heads and MLP paths are cells, coloured by
score, and the dead are crossed out. An edge or qkv graph has its strongest kept edges drawn beside it, from the
embedding to the logits, by colour what they feed. PNG files and pictures with edges need matplotlib: pip install
'vitfx[plot]'.

exit code: 0, or 2 when something you gave can't be used; then nothing is written."""
_OF_MODELS = ("arch", "weights", "output", "trust_pickle", *OF_IMAGES)
_OF_CIRCUITS = ("out", "force", "edges", "top")


@entry_point
def main(arguments: list[str] | None = None) -> int:
    parser = build_parser()
    options = parser.parse_args(arguments)
    path = Path(options.model)
    show = _show_json if _is_json(path) else _show_onnx if path.suffix == ".onnx" else _show_model
    return ending(lambda: show(options, parser, Console()))


def _is_json(path: Path) -> bool:
    """By name, or by how it begins: no kind of model file begins with a brace and then text."""
    if path.suffix == ".json" or not path.is_file():
        return path.suffix == ".json"
    try:
        with path.open("rb") as file:
            start = file.read(64).lstrip()
    except OSError:  # what reads the model has a sentence for it
        return False
    return start.startswith(b"{") and b"\0" not in start


def _show_model(options: argparse.Namespace, parser: argparse.ArgumentParser, console: Console) -> None:
    refuse_given(parser, options, _OF_CIRCUITS, f"is for a circuit, and {options.model} is a model")
    model = open_model(options)
    size = (2, model.preprocess.channels, *model.preprocess.size)
    pixels = torch.randn(size, generator=torch.Generator().manual_seed(0))
    traced = to_canonical(model.module, pixels)
    notes = (f"note: {note}" for note in traced.notes)
    origin = _origin(model.provenance)
    for text in (*model.first_lines, *origin, format_graph(traced.graph_module, pixels), *notes):
        console.print(text, highlight=False, markup=False, soft_wrap=True)


def _origin(provenance: Mapping[str, Any]) -> tuple[str, ...]:
    """Of an artifact, whose digest was checked when it was loaded."""
    facts = {name: value for name, value in provenance.items() if value not in (None, {}, "")}
    if CHOSEN in facts:
        facts[CHOSEN] = list(Selection.from_json(facts[CHOSEN]).names)
    return (f"made from: {json.dumps(facts, ensure_ascii=False)}",) if facts else ()


def _show_onnx(options: argparse.Namespace, parser: argparse.ArgumentParser, console: Console) -> None:
    refuse_given(parser, options, (*_OF_CIRCUITS, *_OF_MODELS), f"does not apply: {options.model} is an ONNX file")
    console.print(describe(read_onnx(Path(options.model))), highlight=False, markup=False, soft_wrap=True)


def _show_json(options: argparse.Namespace, parser: argparse.ArgumentParser, console: Console) -> None:
    format, record = read_sealed(Path(options.model), "give a file that vitfx wrote")
    if format is None or not format.startswith("vitfx-") or format.startswith("vitfx-circuit/"):
        _show_circuit(options, parser, console)
        return
    given = (*_OF_CIRCUITS, *_OF_MODELS)
    refuse_given(parser, options, given, f"does not apply: {options.model} is a {in_a_line(format)}")
    sealed = record.pop(DIGEST, None) is not None
    console.print(record_text(format, record, sealed=sealed), highlight=False, markup=False, soft_wrap=True)


def _show_circuit(options: argparse.Namespace, parser: argparse.ArgumentParser, console: Console) -> None:
    refuse_given(parser, options, _OF_MODELS, f"is for a model, and {options.model} is a circuit")
    path = Path(options.model)
    for name in ("edges", "top"):
        if getattr(options, name) < 0:
            raise UserError(f"--{name} {getattr(options, name)} is negative: give a number of edges, 0 for none")
    circuit = read_circuit(path)
    out = options.out or path.with_name(path.name.removesuffix(".json") + ".svg")
    _check_out(out, force=options.force)
    tables = summary(circuit, options.top)
    write_aside(out, picture_bytes(circuit, out.suffix.lower(), options.edges))
    console.print(tables)
    console.print(f"{out} has the picture", highlight=False, markup=False, soft_wrap=True)


def _check_out(out: Path, *, force: bool) -> None:
    """Raises UserError where the picture can't go there."""
    if out.suffix.lower() not in SUFFIXES:
        raise UserError(f"--out {out} is neither .svg nor .png: give a name that ends in one of them")
    check_new_file(out, force=force)


def build_parser() -> CommandParser:
    parser = CommandParser("show", __doc__, usage="FILE [options]", first=_FIRST, examples=_EXAMPLES, notes=_NOTES)
    parser.add_argument(
        "model",
        metavar="MODEL|CIRCUIT|ONNX|REPORT",
        help="checkpoint, artifact, weights, .pt2, Hugging Face folder, or demo; a circuit.json; an ONNX file; or any "
        "other JSON file that vitfx wrote",
    )
    add = parser.add_argument_group("circuits").add_argument
    add("--out", type=Path, help=".svg or .png (default: beside the circuit, as .svg)")
    add("--force", action="store_true", help="overwrite the picture")
    add("--edges", type=int, default=200, help="how many edges to draw at most, the strongest ones (default 200)")
    add("--top", type=int, default=10, help="how many of the strongest edges to list (default 10)")
    add_reading(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
