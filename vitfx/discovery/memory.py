"""How much memory a discovery needs, worked out before it starts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch.fx import GraphModule

from passes.dialect import Attention
from vitfx.circuits.edge_graph import EdgeGraph
from vitfx.discovery.basis.settings import MEASURING, Settings
from vitfx.discovery.run import whole_mlps
from vitfx.graph.narrow import narrow
from vitfx.graph.stages import sublayers_of
from vitfx.images.image_set import Images
from vitfx.support.errors import UserError
from vitfx.support.text import GIB, amount

_DOUBLE = 8


@dataclass(frozen=True)
class Needed:
    """Bytes that each process needs."""

    total: int
    in_file: int  #: of the total, those that can go into a file


def memory_needed(graph_module: GraphModule, images: Images, settings: Settings, processes: int) -> Needed:
    """What a process keeps at its peak, besides the weights and a batch's activations.

    With N images a process, T tokens (behind the last attention, those that the logits read), width D and E inner
    channels, these are the clean and the corrupted images; the resampling reference, N·T·(D + ΣE); and for the methods
    that measure

        block, head   the streams before every sublayer and behind the last, and one sublayer's inner channels with
                      the streams before and behind it
        edge, qkv     the streams and every writer's change, N·T·D each; while the first sublayer is visited, what every
                      reader behind it reads, N·T·D each, and the sublayers' inner channels and heads' queries, keys and
                      values, N·T·E each. For eap-acdc, also what the sublayer's own readers read, its inner channels
                      once more, and, whatever N, two forecasts of (e, e) in float64, where e is the greatest number of
                      edges into a sublayer

    The changes of the edge and the qkv graph can go into a file, see `vitfx.discovery.engines.clean_run`.
    """
    pixels = images.pixels[:2].to(next(graph_module.parameters()).device)
    graph = EdgeGraph(graph_module, whole_mlps(graph_module), settings.granularity)
    _, tokens, width = graph.embedding(pixels).shape
    narrowed = narrow(graph.stages, pixels)
    kept = tokens if narrowed.tokens is None else len(narrowed.tokens)
    modules = sublayers_of(graph.stages)
    sizes, changes = [], tokens * width
    for name, module in modules.items():
        index = graph.stage_index(name)
        behind = kept if index >= narrowed.start else tokens
        readers = len(graph.readers_of(name))
        read = tokens if index <= narrowed.start else kept
        changes += len(graph.writers_of(name)) * behind * width
        parts = 3 if isinstance(module, Attention) else 0
        sizes.append((read * width, behind * module.units * module.channels, readers, parts))
    numbers, in_file = 2 * pixels[0].numel(), 0
    if settings.ablation == "resample":
        numbers += tokens * (width + sum(module.units * module.channels for module in modules.values()))
    streams = sum(read for read, *_ in sizes) + kept * width
    if settings.method in MEASURING and graph.reads_stream:
        numbers += streams + max(inner + 2 * read for read, inner, *_ in sizes)
    elif settings.method in MEASURING:
        in_file = changes
        numbers += changes + streams + sum((1 + parts) * inner for _, inner, _, parts in sizes)
        numbers += sum(readers * read for read, _, readers, _ in sizes[1:]) + kept * width
        if settings.method == "eap-acdc":
            read, inner, readers, _ = sizes[0]
            numbers += readers * read + inner
    forecasts = 0
    if settings.method == "eap-acdc" and not graph.reads_stream:
        forecasts = 2 * max(Counter(edge.reader.sublayer for edge in graph.edges()).values()) ** 2 * _DOUBLE
    per_process = -(-len(images) // processes)
    each = per_process * torch.finfo(pixels.dtype).bits // 8
    return Needed(each * numbers + forecasts, each * in_file)


def fit(needed: Needed, limit: float | None, processes: int) -> tuple[str, bool]:
    """What is needed, as a sentence, and whether a part of it has to go into a file.

    limit: GiB a process. Raises UserError where that is too little even so.
    """
    if limit is not None:
        check_memory(limit)
    room = float("inf") if limit is None else limit * GIB
    least = needed.total - needed.in_file
    if least > room:
        raise UserError(
            f"`memory` {limit:g} GiB is too little for the {amount(least)} of activations that each process must hold "
            "in memory: give fewer `samples`, a coarser `granularity`, or more processes with torchrun"
        )
    each = f" in each of {processes} processes" if processes > 1 else ""
    sentence = f"activations kept: {amount(needed.total)}{each}, besides the weights and a batch at a time"
    if needed.total <= room:
        return sentence, False
    return f"{sentence}; {amount(needed.in_file)} of it in a file beside --out, which takes longer", True


def check_memory(limit: float) -> None:
    """Raises UserError."""
    if not limit > 0:
        raise UserError(f"`memory` {limit:g} is not an amount of memory: give a number of GiB above 0")
