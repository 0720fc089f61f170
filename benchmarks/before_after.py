"""Draws the canonical graph of a pruned model before and after, for a light and for a dark page.

Layers go upwards from the pixels to the answer. Along the residual stream stand the sublayers: an attention is a row of
cells, one for each head, an MLP a bar as long as it has neurons.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as Xml

from benchmarks import command
from vitfx.circuits.circuit import EMBED, read_circuit
from vitfx.cli.exit_codes import ending
from vitfx.pruning.plan_file import read_plan
from vitfx.reports.records import PRUNE_REPORT, Side
from vitfx.support.console import entry_point
from vitfx.support.files import write_aside
from vitfx.support.json_files import read_json
from vitfx.support.text import large, percent

THEMES: Mapping[str, Mapping[str, str]] = {
    "light": {
        "back": "#ffffff",
        "ink": "#1b1f24",
        "soft": "#59616b",
        "line": "#87919c",
        "heads": "#2f66b0",
        "neurons": "#2a8f7c",
    },
    "dark": {
        "back": "#0d1117",
        "ink": "#e6edf3",
        "soft": "#9aa5b1",
        "line": "#6b7682",
        "heads": "#6ea8fe",
        "neurons": "#56c2a8",
    },
}
_WIDTH, _COLUMN, _ROW, _BAR, _TOP = 720, 340, 22, 240, 74
_EXAMPLE = """example:
  python -m vitfx.prune demo --tau 0.001
  python -m benchmarks.before_after demo-pruned-tau0.001/ --out docs/before-after

writes docs/before-after-light.svg and docs/before-after-dark.svg."""


@dataclass(frozen=True)
class Sublayer:
    """An attention or an MLP."""

    name: str
    units: int  #: heads or neurons before
    kept: frozenset[int]  #: those that are left

    @property
    def attends(self) -> bool:
        return self.name.startswith("a")


def read_sublayers(folder: Path) -> list[Sublayer]:
    """From the image to the answer. Raises UserError for anything but the folder of a run of `vitfx.prune`."""
    writers = {decision.edge.writer for decision in read_circuit(folder / "circuit.json").decisions}
    units = Counter[str]()
    for writer in writers:
        units[writer.sublayer] += len(writer.units)
    gone = {deletion.name: frozenset(deletion.units) for deletion in read_plan(folder).deletions}
    names = sorted(units.keys() - {EMBED}, key=lambda name: (int(name[1:]), name))
    return [Sublayer(name, units[name], frozenset(range(units[name])) - gone.get(name, frozenset())) for name in names]


def draw(sublayers: Sequence[Sublayer], before: Side, after: Side, theme: Mapping[str, str]) -> str:
    """SVG, the same for the same run."""
    height = _TOP + _ROW * (len(sublayers) + 3)
    total, left = (sum(part) for part in zip(*((each.units, len(each.kept)) for each in sublayers), strict=True))
    name = f"The canonical graph before and after pruning: {left} of {total} heads and neurons are left."
    root = Xml.Element("svg", xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {_WIDTH} {height}", role="img")
    root.set("aria-label", name)
    Xml.SubElement(root, "title").text = name
    Xml.SubElement(root, "style").text = (
        f"text {{ font: 12px sans-serif; fill: {theme['ink']}; }} .soft {{ fill: {theme['soft']}; font-size: 11px; }} "
        f".title {{ font-size: 15px; font-weight: bold; }} .stream {{ stroke: {theme['soft']}; stroke-width: 2; }} "
        f".gone {{ fill: none; stroke: {theme['line']}; }} .heads {{ fill: {theme['heads']}; }} "
        f".neurons {{ fill: {theme['neurons']}; }}"
    )
    Xml.SubElement(root, "rect", width="100%", height="100%", fill=theme["back"])
    whole = [Sublayer(each.name, each.units, frozenset(range(each.units))) for each in sublayers]
    for place, (title, side, graph) in enumerate((("before", before, whole), ("after", after, sublayers))):
        column = Xml.SubElement(root, "g", transform=f"translate({24 + place * _COLUMN} 0)")
        facts = f"{large(side['params'])} parameters · {large(side['flops'])} FLOPs · top-1 {percent(side['accuracy'])}"
        _text(column, 0, 28, title, "title")
        _text(column, 0, 48, facts, "soft")
        column.extend(_graph(graph))
    root.append(_legend(height - 14))
    return Xml.tostring(root, encoding="unicode") + "\n"


def _graph(sublayers: Sequence[Sublayer]) -> Iterator[Xml.Element]:
    bottom, most = _TOP + _ROW * (len(sublayers) + 1), max(each.units for each in sublayers if not each.attends)
    yield Xml.Element("line", {"class": "stream"}, x1="40", y1=str(bottom), x2="40", y2=str(_TOP))
    holder = Xml.Element("g")
    _text(holder, 48, _TOP + 4, "norm → head → answer", "soft")
    _text(holder, 48, bottom + 4, "pixels → embed", "soft")
    yield holder
    for index, each in enumerate(sublayers):
        y = bottom - _ROW * (index + 1)
        row = Xml.Element("g")
        _text(row, 0, y + 4, each.name, "soft")
        if each.kept:
            Xml.SubElement(row, "line", {"class": "stream"}, x1="40", y1=str(y), x2="48", y2=str(y))
        count = each.units if each.attends else 1
        width = _BAR * (1 if each.attends else each.units / most) / count
        for unit in range(count):
            share = (unit in each.kept) if each.attends else len(each.kept) / each.units
            box = {"x": f"{50 + unit * width:.1f}", "y": str(y - 7), "height": "14"}
            Xml.SubElement(row, "rect", {**box, "class": "gone", "width": f"{width - 2:.1f}"})
            if share:
                kind = "heads" if each.attends else "neurons"
                Xml.SubElement(row, "rect", {**box, "class": kind, "width": f"{share * (width - 2):.1f}"})
        yield row


def _legend(y: int) -> Xml.Element:
    legend, x = Xml.Element("g"), 74
    for kind, text in (
        ("heads", "heads of an attention (a)"),
        ("neurons", "neurons of an MLP (m)"),
        ("gone", "deleted"),
    ):
        Xml.SubElement(legend, "rect", {"class": kind}, x=str(x), y=str(y - 9), width="10", height="10")
        _text(legend, x + 16, y, text, "soft")
        x += 40 + 6 * len(text)
    return legend


def _text(parent: Xml.Element, x: int, y: int, text: str, kind: str) -> None:
    Xml.SubElement(parent, "text", {"x": str(x), "y": str(y), "class": kind}).text = text


@entry_point
def main(arguments: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(arguments)

    def work() -> None:
        report = read_json(options.run / "report.json", PRUNE_REPORT, "give the folder of a run of vitfx.prune")
        sublayers = read_sublayers(options.run)
        for name, theme in THEMES.items():
            path = options.out.with_name(f"{options.out.name}-{name}.svg")
            command.check_out("out", path)
            write_aside(path, draw(sublayers, report["baseline"], report["pruned"], theme))
            print(f"{path} has the picture")

    return ending(work)


def build_parser() -> argparse.ArgumentParser:
    parser = command.make_parser("before_after", (__doc__ or "").partition("\n")[0], _EXAMPLE)
    parser.add_argument("run", metavar="RUN", type=Path, help="the folder of a run of vitfx.prune")
    parser.add_argument(
        "--out", type=Path, default=Path("before-after"), help="the pictures' names begin so (default: %(default)s)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
