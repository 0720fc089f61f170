"""Circuit -> deletion plan: what is dead, and the constant that it leaves behind.

A head or path is dead when no kept way leads from the image through it to the logits: then what it writes, as the
readers that are left see it, is a constant, and it can be deleted.
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
from vitfx.graph.stages import Reference, contribution
from vitfx.support.errors import UserError


def dead_writers(circuit: Circuit, graph: EdgeGraph, reference: Reference | None) -> tuple[Writer, ...]:
    """The heads and paths that no kept way from the image to the logits passes, in the order of the stream.

    On the block and the head graph a writer has one edge, and is dead when that is gone. On the others a reader needs a
    kept edge from a writer that the image reaches, and a writer one into a reader that leads to the logits; an MLP's
    paths share their reader; a head whose values see nothing of the image is a constant if they are the same for every
    token, because then its pattern does not matter (`reference`, None for zero, says what they see instead).
    Raises UserError where the embedding is dead, because then all of the model is.
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
        dead = {one for row, one in enumerate(graph.writers) if not (bool(wiring.alive[row]) and one in reached)}
    if any(writer.sublayer == EMBED for writer in dead):
        share, tau = circuit.settings.get("remove"), circuit.settings.get("tau")
        raise UserError(
            f"at τ = {tau} nothing of the image reaches the logits any more: choose a smaller --tau or set --max-kl"
            if share is None
            else f"with --remove {share:g} nothing of the image reaches the logits any more: choose a smaller one"
        )
    return tuple(writer for writer in graph.writers if writer in dead)


def _reached(graph: EdgeGraph, wiring: Wiring, rows: dict[Reader, int], *, by_token: bool) -> set[Writer]:
    """The writers to which a kept way leads from the image."""
    reached = {graph.writers[0]}

    def sees(reader: Reader) -> bool:
        seen = wiring.seen[rows[reader]].tolist()
        return any(sees_it and writer in reached for sees_it, writer in zip(seen, graph.writers, strict=True))

    for stage in graph.stages[graph.first : graph.last + 1]:
        writers = [one for one in graph.writers if one.sublayer == stage.name]
        readers = [one for one in graph.readers if one.sublayer == stage.name]
        if not isinstance(stage.module, Attention):
            reached |= set(writers) if any(sees(one) for one in readers) else set()
            continue
        for writer in writers:
            own = [one for one in readers if one.head == writer.index and sees(one)]
            if any(by_token or one.part in (None, "v") for one in own):
                reached.add(writer)
    return reached


def _constants(graph: EdgeGraph) -> list[Tensor]:
    """What is added to the stream for every image alike, and belongs to no writer."""
    found: list[Tensor] = []
    for stage in graph.stages[graph.first : graph.last + 1]:
        if isinstance(stage.module, AddConstant):
            found.append(stage.module.value)
        elif isinstance(stage.module, Sublayer) and stage.module.out.bias is not None:
            found.append(stage.module.out.bias)
    return found


def _differs_by_token(values: Sequence[Tensor]) -> bool:
    """Some of what readers see without any image is not the same for every token."""
    return any(value.dim() > 1 and not torch.equal(value, value[..., :1, :].expand_as(value)) for value in values)


def make_plan(circuit: Circuit, graph: EdgeGraph, reference: Reference | None) -> DeletionPlan:
    """The plan that deletes the dead.

    reference: constants (E,) or (T, E) for each sublayer's inner channels; None deletes without replacement (zero).
    """
    by_sublayer: defaultdict[str, list[int]] = defaultdict(list)
    for writer in dead_writers(circuit, graph, reference):
        by_sublayer[writer.sublayer].extend(writer.units)
    deletions = []
    for stage in graph.stages:
        module = stage.sublayer
        if module is None or not by_sublayer[stage.name]:
            continue
        units = tuple(sorted(by_sublayer[stage.name]))
        constant = None
        if reference is not None:
            constant = contribution(module, units, reference[stage.name], double=True).detach().cpu()
        deletions.append(SublayerDeletion(stage.name, module.kind, units, module.units, constant))
    return DeletionPlan(tuple(deletions))
