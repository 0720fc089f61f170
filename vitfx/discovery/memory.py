"""What a discovery keeps in memory, worked out before it starts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch.fx import GraphModule

from passes.dialect import Attention
from vitfx.circuits.edge_graph import EdgeGraph
from vitfx.discovery.basis.settings import RANKING, Settings
from vitfx.discovery.methods.edge_gradients import embedding_of
from vitfx.discovery.run import whole_mlps
from vitfx.graph.narrow import narrow
from vitfx.images.image_set import Images
from vitfx.support.errors import UserError

GIB = 2**30
_DOUBLE = 8


@dataclass(frozen=True)
class Needed:
    """Bytes of a process. in_file: those of the total that may lie in a file."""

    total: int
    in_file: int


def memory_needed(graph_module: GraphModule, images: Images, settings: Settings, processes: int) -> Needed:
    """What a process keeps while it needs most, beside the weights and a batch's activations.

    N images of a process, T tokens (those that the logits read, behind the last attention), D width, E inner channels:
    the clean and the corrupted images; the resampling reference, N·T·(D + ΣE); for the methods that measure

        block, head   the streams before every sublayer and behind the last, and of one sublayer the inner channels
                      and what comes before and behind it
        edge, qkv     the streams, every writer's change, N·T·D each, and, while the first sublayer is visited, what
                      every reader behind it reads, N·T·D each, the sublayers' inner channels, and heads' queries, keys
                      and values, N·T·E each; for eap-acdc what its own readers read as well, and inner channels
                      once more, and, however few images a process has, two forecasts of (e, e) in float64, where e
                      edges lead into the sublayer with most

    Of the edge and the qkv graph every writer's change may lie in a file, see `vitfx.discovery.engines.clean_run`.
    """
    pixels = images.pixels[:2].to(next(graph_module.parameters()).device)
    graph = EdgeGraph(graph_module, whole_mlps(graph_module), settings.granularity)
    _, tokens, width = embedding_of(graph, pixels).shape
    read_tokens = narrow(graph.stages, pixels)
    kept = tokens if read_tokens.tokens is None else len(read_tokens.tokens)
    sizes, changes = [], tokens * width
    for index, stage in enumerate(graph.stages[graph.first : graph.last + 1], graph.first):
        if stage.sublayer is not None:
            behind = kept if index >= read_tokens.start else tokens
            readers = sum(one.sublayer == stage.name for one in graph.readers)
            inner = stage.sublayer.units * stage.sublayer.channels
            read = tokens if index <= read_tokens.start else kept
            writers = sum(one.sublayer == stage.name for one in graph.writers)
            changes += writers * behind * width
            sizes.append((read * width, behind * inner, readers, 3 if isinstance(stage.module, Attention) else 0))
    numbers, in_file = 2 * pixels[0].numel(), 0
    if settings.ablation == "resample":
        modules = [stage.sublayer for stage in graph.stages if stage.sublayer is not None]
        numbers += tokens * (width + sum(one.units * one.channels for one in modules))
    streams = sum(read for read, *_ in sizes) + kept * width
    if settings.method not in RANKING and graph.reads_stream:
        numbers += streams + max(inner + 2 * read for read, inner, *_ in sizes)
    elif settings.method not in RANKING:
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
    """What is needed as a sentence, and whether what may lie in a file has to.

    limit: GiB a process. Raises UserError where that is too little all the same.
    """
    if limit is not None and not limit > 0:
        raise UserError(f"--memory {limit:g} is no amount: give a number of GiB above 0")
    room = float("inf") if limit is None else limit * GIB
    left = needed.total - needed.in_file
    if left > room:
        raise UserError(
            f"--memory {limit:g} GiB is too little for the {_amount(left)} of activations that each process keeps "
            "anyway: give fewer --samples, a coarser --granularity, or more processes with torchrun"
        )
    whose = f" in each of {processes} processes" if processes > 1 else ""
    said = f"activations kept: {_amount(needed.total)}{whose}, beside the weights and a batch at a time"
    if needed.total <= room:
        return said, False
    return f"{said}; {_amount(needed.in_file)} of it in a file beside --out, which takes longer", True


def _amount(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size > GIB / 10 else f"{size / 2**20:.1f} MiB"
