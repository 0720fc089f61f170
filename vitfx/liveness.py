"""Circuit -> deletion plan: what is dead, and the constant that it leaves behind.

A head or path is dead when no kept way leads from the image through it to the logits: then what it writes, as the
readers that are left see it, is a constant, and it can be deleted.
"""

from __future__ import annotations

from collections import defaultdict

from passes.plan import DeletionPlan, SublayerDeletion
from vitfx.circuit import EMBED, STREAM, Circuit, Writer
from vitfx.edge_graph import EdgeGraph
from vitfx.errors import UserError
from vitfx.stages import Reference, contribution


def dead_writers(circuit: Circuit) -> tuple[Writer, ...]:
    """The heads and paths that no kept way passes, in the circuit's order.

    On the head graph every writer has its one edge into the stream, and every reader sees the embedding: a writer is
    dead when that edge is gone. Raises UserError where the embedding's edge is gone, because then all of the model is.
    """
    if any(edge.reader.name != STREAM for edge in (*circuit.kept, *circuit.removed)):
        raise UserError("the circuit is not one of the head graph: this version of vitfx plans from head graphs alone")
    if any(edge.writer.sublayer == EMBED for edge in circuit.removed):
        raise UserError(
            f"at τ = {circuit.settings.get('tau')} even the embedding's edge is removed, so that the logits no longer "
            "depend on the image: choose a smaller --tau or set --max-kl"
        )
    return tuple(edge.writer for edge in circuit.removed)


def make_plan(circuit: Circuit, graph: EdgeGraph, reference: Reference | None) -> DeletionPlan:
    """The plan that deletes the dead.

    reference: constants (E,) or (T, E) for each sublayer's inner channels; None deletes without replacement (zero).
    """
    by_sublayer: defaultdict[str, list[int]] = defaultdict(list)
    for writer in dead_writers(circuit):
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
