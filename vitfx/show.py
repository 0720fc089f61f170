"""Show a circuit: draw it as SVG or PNG, and print what it keeps of each layer."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from vitfx.circuits.circuit import read_circuit
from vitfx.circuits.picture import SUFFIXES, picture_bytes
from vitfx.circuits.summary import summary
from vitfx.cli.exit_codes import ending
from vitfx.support.console import HelpFormatter, entry_point
from vitfx.support.errors import UserError
from vitfx.support.files import check_new_file, write_aside

_EXAMPLE = """example:
  python -m vitfx.show demo-pruned-tau0.001/circuit.json
  python -m vitfx.show circuit.json --out circuit.png --edges 100 --top 20

The picture is a grid with the layers upwards: heads and MLP paths are cells, coloured by score, and the dead are
crossed out. An edge or qkv graph has its strongest kept edges drawn beside it, from the embedding to the logits, by
colour what they feed. PNG files and pictures with edges need matplotlib: pip install 'vitfx[plot]'.

exit code: 0, or 2 when something you gave can't be used; then nothing is written."""


@entry_point
def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    return ending(lambda: _show(options, Console()))


def _show(options: argparse.Namespace, console: Console) -> None:
    for name in ("edges", "top"):
        if getattr(options, name) < 0:
            raise UserError(f"--{name} {getattr(options, name)} is negative: give a number of edges, 0 for none")
    circuit = read_circuit(options.circuit)
    out = options.out or options.circuit.with_name(options.circuit.name.removesuffix(".json") + ".svg")
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vitfx.show",
        description=(__doc__ or "").partition("\n")[0],
        epilog=_EXAMPLE,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("circuit", metavar="CIRCUIT", type=Path, help="a circuit.json that vitfx wrote")
    parser.add_argument("--out", type=Path, help=".svg or .png (default: beside the circuit, as .svg)")
    parser.add_argument("--force", action="store_true", help="overwrite the picture")
    parser.add_argument("--edges", type=int, default=200, help="most edges drawn, the strongest ones (default 200)")
    parser.add_argument("--top", type=int, default=10, help="strongest edges listed (default 10)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
