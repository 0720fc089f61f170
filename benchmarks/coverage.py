"""Which of timm's ViT-like models the compiler takes, and what of it works on them.

Each is built small, with random weights, traced, pruned, proved, lowered, exported and pruned again. Names whose small
models have one and the same canonical graph are one case, which is carried through once.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from benchmarks import command
from benchmarks.coverage_models import build, image_shape, model_names
from passes.plan import DeletionPlan
from passes.stream import read_sites
from vitfx.deploy.export import compare_onnx, export_onnx
from vitfx.deploy.lowering import REWRITES, lower
from vitfx.graph.trace import to_canonical
from vitfx.graph.verify import rewrite, verify
from vitfx.models.graph_json import decode, encode
from vitfx.support.console import entry_point
from vitfx.support.errors import UserError, in_a_line
from vitfx.support.files import check_new_file, write_aside
from vitfx.support.json_files import write_json
from vitfx.support.machine import environment
from vitfx.support.progress import Watcher
from vitfx.support.tables import Table

FORMAT = "vitfx-coverage/2"
FULL, PARTIAL, REFUSED, NOT_BUILT = "full", "partial", "refused", "not built"
_IMAGES = 6
_EXAMPLE = """example:
  python -m benchmarks.coverage --out docs/families.json --markdown docs/families.md

An interrupted run resumes: what is finished stands in OUT.part."""


@dataclass(frozen=True)
class Works:
    """What of the compiler works on a canonical graph."""

    rewrites: bool = False  #: a pruned model is proved, and all exact rewrites of it
    narrowed: bool = False  #: behind the last attention some tokens alone are computed
    onnx: bool = False  #: ONNX Runtime gives the pruned model's answers
    again: bool = False  #: the artifact, written and read back, is pruned once more and proved
    failure: str = ""  #: what does not work


@dataclass(frozen=True)
class Coverage:
    """One model name."""

    name: str
    kind: str  #: its class
    state: (
        str  #: FULL where every sublayer is prunable, the logits are the model's own, and all of `Works` but narrowing
    )
    heads: bool = False  #: whether heads are prunable
    paths: bool = False  #: whether MLP paths are
    error: float | None = None  #: of the canonical graph's logits, relative to the greatest
    rewrites: bool = False
    narrowed: bool = False
    onnx: bool = False
    again: bool = False
    reason: str = ""  #: why it is not FULL


@dataclass(frozen=True)
class CoverageOptions:
    out: Path
    markdown: Path | None
    names: str
    force: bool

    def __post_init__(self) -> None:
        """Raises UserError."""
        for path in (self.out, self.markdown):
            if path is not None:
                check_new_file(path, force=self.force)

    @property
    def part(self) -> Path:
        """The finished rows of an unfinished run, a line each."""
        return self.out.with_name(f"{self.out.name}.part")


def look_at(name: str, kind: str, known: dict[str, Works] | None = None) -> Coverage:
    """Builds, traces and compares the model, and prunes it. known: what works on graphs seen before, to be added to."""
    known = {} if known is None else known
    try:
        torch.manual_seed(0)
        model = build(name)
    except UserError as error:
        return Coverage(name, kind, NOT_BUILT, reason=in_a_line(error))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    pixels = torch.randn(_IMAGES, *image_shape(model))
    try:
        traced = to_canonical(model, pixels[:2])
        with torch.no_grad():
            expected, logits = model(pixels), traced.graph_module(pixels)
    except Exception as error:  # A refusal is a row, whatever raised it.
        return Coverage(name, kind, REFUSED, reason=in_a_line(error))
    units = {site.module.kind for site in read_sites(traced.graph_module)}
    graph = encode(traced.graph_module)
    if graph not in known:
        known[graph] = carry_through(traced.graph_module, pixels)
    works = known[graph]
    full = not traced.notes and not works.failure and units == {"head", "neuron"}
    return Coverage(
        name,
        kind,
        FULL if full else PARTIAL,
        "head" in units,
        "neuron" in units,
        float((logits - expected).abs().max() / expected.abs().max()),
        *(works.rewrites, works.narrowed, works.onnx, works.again),
        reason="; ".join([*traced.notes[:2], *([works.failure] if works.failure else [])]),
    )


def carry_through(graph_module: GraphModule, pixels: Tensor) -> Works:
    """Prunes the graph, proves it, lowers and exports the artifact, reads it back and prunes it again."""
    done: dict[str, Any] = {}
    try:
        artifact = _pruned(graph_module, pixels)
        lowered = lower(artifact, REWRITES, pixels)
        done |= {"rewrites": True, "narrowed": "narrow_to_cls" in lowered.applied}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "pruned.onnx"
            export_onnx(lowered.graph_module, path, pixels[:2], {})
            compare_onnx(path, artifact, pixels[:5])
        done["onnx"] = True
        back = decode(encode(artifact))
        back.load_state_dict(artifact.state_dict())
        _pruned(back.eval(), pixels)
        done["again"] = True
    except Exception as error:  # What fails is a cell of the table, whatever raised it.
        done["failure"] = in_a_line(error)
    return Works(**done)


def _pruned(graph_module: GraphModule, pixels: Tensor) -> GraphModule:
    """Every third unit goes. Raises VerificationError."""
    units = {site.name: range(0, site.module.units, 3) for site in read_sites(graph_module) if site.module.units > 1}
    plan = DeletionPlan.deleting(graph_module, units)
    artifact = rewrite(graph_module, plan).graph_module.eval()
    verify(graph_module, artifact, plan, pixels)
    return artifact


def table_of(rows: Sequence[Coverage]) -> Table:
    """How many names of each class have what."""
    features = ("heads", "paths", "rewrites", "narrowed", "onnx", "again")
    columns = ("class", "names", FULL, "traces", "heads", "MLP paths", "every sublayer", "exact rewrites")
    cells = []
    for kind in (*dict.fromkeys(row.kind for row in rows), "all"):
        own = [row for row in rows if kind in (row.kind, "all")]
        full = sum(row.state == FULL for row in own)
        traced = [row for row in own if row.error is not None]
        counts = [sum(getattr(row, feature) for row in own) for feature in features]
        whole = sum(not row.reason for row in traced)
        numbers = (len(own), full, len(traced), counts[0], counts[1], whole, *counts[2:])
        cells.append((kind, *map(str, numbers)))
    return Table((*columns, "narrowing", "ONNX", "prune again"), cells)


def _rows(options: CoverageOptions, names: Sequence[tuple[str, str]], watcher: Watcher) -> list[Coverage]:
    """Looks at each name, but for those that an interrupted run has finished."""
    lines = options.part.read_text().splitlines() if options.part.exists() else []
    finished = {row["name"]: Coverage(**row) for row in map(json.loads, lines)}
    report, rows, known = watcher.bar("models"), [], dict[str, Works]()
    with options.part.open("a") as part:
        for number, (name, kind) in enumerate(names, 1):
            watcher.detail(name)
            row = finished.get(name) or look_at(name, kind, known)
            if name not in finished:
                part.write(json.dumps(asdict(row)) + "\n")
                part.flush()
            rows.append(row)
            report(number, len(names))
    return rows


def _page(rows: Sequence[Coverage], table: Table) -> str:
    full, reasons = sum(row.state == FULL for row in rows), Counter(row.reason for row in rows if row.reason)
    lines = [
        "# Families",
        "",
        f"Of the {len(rows)} model names that timm lists for its ViT-like classes, {full} ({full / len(rows):.0%}) are "
        "fully prunable: heads, MLP paths and sublayers, with exact rewrites, proof, ONNX and an artifact that can be "
        "pruned again. Narrowing is for models whose answer reads some tokens alone. Each name is built small, with "
        "random weights, by `python -m benchmarks.coverage`.",
    ]
    why = [f"- {count}: {reason}" for reason, count in reasons.most_common(30)]
    return "\n".join([*lines, "", *table.to_markdown(), "", "What is in the way of the others:", "", *why, ""])


def _work(options: CoverageOptions, watcher: Watcher) -> list[Table]:
    watcher.say("listing timm's models")
    names = list(model_names(options.names))
    if not names:
        raise UserError(f"--names {options.names} matches no ViT-like model of timm's")
    rows = _rows(options, names, watcher)
    record = {"environment": environment(), "names": options.names, "models": [asdict(row) for row in rows]}
    write_json(options.out, FORMAT, record)
    table = table_of(rows)
    if options.markdown is not None:
        write_aside(options.markdown, _page(rows, table))
    options.part.unlink()
    return [table]


@entry_point
def main(arguments: Sequence[str] | None = None) -> int:
    return command.run_command(lambda: CoverageOptions(**vars(build_parser().parse_args(arguments))), _work)


def build_parser() -> argparse.ArgumentParser:
    parser = command.make_parser("coverage", __doc__ or "", _EXAMPLE)
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    parser.add_argument("--markdown", type=Path, help="the table and the reasons as Markdown")
    parser.add_argument("--names", default="*", help="names to look at, with wildcards (default: all)")
    parser.add_argument("--force", action="store_true", help="replace files that exist")
    return parser


if __name__ == "__main__":
    sys.exit(main())
