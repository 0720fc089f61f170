"""Passes by name on a model's canonical graph, one by one, to be looked at: nothing is exported or written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text
from torch import Tensor

from passes.base import Pass, PassResult
from passes.printer import format_graph
from vitfx.deploy.lowering import PASSES, Lowered, PassOptions, run_proved
from vitfx.graph.canonical import read_module
from vitfx.models.checkpoint import LoadedModel
from vitfx.support.errors import UserError
from vitfx.support.progress import Watcher


@dataclass(frozen=True)
class PassesRun:
    """A checked command line."""

    model: LoadedModel
    pixels: Tensor  #: (2 or more, C, H, W), normalised
    names: tuple[str, ...]  #: in the order in which they run
    printed: frozenset[str]  #: the passes behind which the graph is printed


def read_passes(passes: str, print_after: str | None) -> tuple[tuple[str, ...], frozenset[str]]:
    """The passes that "NAME,NAME" names, and those to print behind. Raises UserError for other names."""
    names = tuple(name.strip() for name in passes.split(","))
    for name in names:
        if name not in PASSES:
            raise UserError(f"`passes` {name} is not a pass on graphs: give some of {','.join(PASSES)}")
    printed = names if print_after == "all" else tuple(name.strip() for name in (print_after or "").split(",") if name)
    for name in printed:
        if name not in names:
            raise UserError(f"`print_after` {name} is not among `passes` {passes}: give all, or some of them")
    return names, frozenset(printed)


def run_named_passes(run: PassesRun, show: Callable[[str], None], watcher: Watcher) -> Lowered:
    """Runs and proves the passes, and shows the graph behind those that are to be printed.

    Raises UserError and VerificationError.
    """
    canonical = read_module(run.model.module, run.pixels, watcher, merged=True).graph_module

    def after(each: Pass, result: PassResult) -> None:
        if each.name in run.printed:
            show(f"after {each.name}:\n{format_graph(result.graph_module, run.pixels)}\n")

    return run_proved(canonical, run.names, PassOptions(run.pixels, run.model.preprocess), after)


def passes_table(lowered: Lowered) -> Table:
    """What each pass did."""
    table = Table()
    for title in ("pass", "changed", "nodes", "error", "notes"):
        table.add_column(title)
    for step in lowered.steps:
        changed, nodes = "yes" if step.changed else "no", " → ".join(map(str, step.nodes))
        notes = [note.removeprefix(f"{step.name}: ") for note in step.notes]
        table.add_row(step.name, changed, nodes, f"{step.error:.0e}", Text("; ".join(notes)))
    return table
