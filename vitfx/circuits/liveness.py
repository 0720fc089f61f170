"""Circuit -> deletion plan: which heads and paths are dead, and the constants that they leave behind.

A head or path is dead when no chain of kept edges leads from the image through it to the logits. What the remaining
readers see of it is then a constant, and it can be deleted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from passes.dialect import AddConstant, Attention, Sublayer
from passes.plan import DeletionPlan, SublayerDeletion
from vitfx.circuits.circuit import EMBED, Circuit, Reader, Writer
from vitfx.circuits.edge_graph import EdgeGraph
from vitfx.circuits.edge_table import Wiring
from vitfx.graph.stages import Reference, contribution, sublayers_of
from vitfx.support.errors import UserError


def dead_writers(circuit: Circuit, graph: EdgeGraph, reference: Reference | None) -> tuple[Writer, ...]:
    """The dead heads and paths, in the order of the stream.

    On the block and the head graph a writer is dead once its only edge is removed. On the edge and the qkv graph it is
    alive if it has a kept edge into a reader that leads to the logits, and its own reader has one from a writer that
    the image reaches. The paths of an MLP share their reader. A head whose values see nothing of the image is dead too
    if these are the same for every token, because its attention pattern then makes no difference.

    reference: what readers see instead of removed writers; None for zero.
    Raises UserError where the embedding is dead, because then nothing is left alive.
    """
    if graph.reads_stream:
        dead = {edge.writer for edge in circuit.removed}
    else:
        wiring = Wiring(graph)
        rows = {reader: row for row, reader in enumerate(graph.readers)}
        for edge in circuit.removed:
            wiring.remove(rows[edge.reader], [edge.writer])
        for index in range(graph.last, graph.first - 2, -1):
            wiring.settle(index)
        by_token = _differs_by_token([*(reference or {}).values(), *_constants(graph)])
        reached = _reached(graph, wiring, rows, by_token=by_token)
        dead = {writer for row, writer in enumerate(graph.writers) if not wiring.alive[row] or writer not in reached}
    if any(writer.sublayer == EMBED for writer in dead):
        raise UserError(_nothing_left(circuit))
    return tuple(writer for writer in graph.writers if writer in dead)


def _nothing_left(circuit: Circuit) -> str:
    share, tau, limit = (circuit.settings.get(name) for name in ("remove", "tau", "max_kl"))
    if share is not None:
        return f"with `remove` {share:g} nothing of the image reaches the logits any more: choose a smaller share"
    # Methods that only rank take no limit.
    measured = any(decision.kl is not None for decision in circuit.decisions)
    other = " or `max_kl`" if limit is not None else " or set `max_kl`" if measured else ""
    return f"at τ = {tau} nothing of the image reaches the logits any more: choose a smaller `tau`{other}"


def _reached(graph: EdgeGraph, wiring: Wiring, rows: dict[Reader, int], *, by_token: bool) -> set[Writer]:
    """The writers to which a chain of kept edges leads from the image."""
    reached = {graph.writers[0]}

    def sees(reader: Reader) -> bool:
        seen = wiring.seen[rows[reader]].tolist()
        return any(is_seen and writer in reached for is_seen, writer in zip(seen, graph.writers, strict=True))

    for stage in graph.stages[graph.first : graph.last + 1]:
        writers, readers = graph.writers_of(stage.name), graph.readers_of(stage.name)
        if not isinstance(stage.module, Attention):
            reached |= set(writers) if any(sees(reader) for reader in readers) else set()
            continue
        for writer in writers:
            own = [reader for reader in readers if reader.head == writer.index and sees(reader)]
            if any(by_token or reader.part in (None, "v") for reader in own):
                reached.add(writer)
    return reached


def _constants(graph: EdgeGraph) -> list[Tensor]:
    """What is added to the stream of every image alike and belongs to no writer: positions and biases."""
    constants: list[Tensor] = []
    for stage in graph.stages[graph.first : graph.last + 1]:
        if isinstance(stage.module, AddConstant):
            constants.append(stage.module.value)
        elif isinstance(stage.module, Sublayer) and stage.module.out.bias is not None:
            constants.append(stage.module.out.bias)
    return constants


def _differs_by_token(values: Sequence[Tensor]) -> bool:
    """Whether some of what readers see without an image differs from token to token."""
    return any(value.dim() > 1 and not torch.equal(value, value[..., :1, :].expand_as(value)) for value in values)


def make_plan(circuit: Circuit, graph: EdgeGraph, reference: Reference | None) -> DeletionPlan:
    """The plan that deletes the dead heads and paths.

    reference: constants (E,) or (T, E) for each sublayer's inner channels; None deletes without replacement (zero).
    """
    by_sublayer: defaultdict[str, list[int]] = defaultdict(list)
    for writer in dead_writers(circuit, graph, reference):
        by_sublayer[writer.sublayer].extend(writer.units)
    deletions = []
    for name, module in sublayers_of(graph.stages).items():
        if not (units := tuple(sorted(by_sublayer[name]))):
            continue
        constant = None
        if reference is not None:
            constant = contribution(module, units, reference[name], double=True).detach().cpu()
        deletions.append(SublayerDeletion(name, module.kind, units, module.units, constant))
    return DeletionPlan(tuple(deletions))
