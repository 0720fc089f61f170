"""What each sublayer takes on the target runtime with ever fewer units: a price in milliseconds.

Sublayers are cut out of the graph as it is deployed, after its exact rewrites, so that a last layer which only the
class token needs costs what it costs there. Each shape is exported and timed once, whatever the number of sublayers
that have it, all of them in turns, with the whole model and its plain export among them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Interpreter, Node

from passes.dialect import NORMS
from passes.plan import DeletionPlan, SublayerDeletion
from passes.stream import module_of, read_sites
from vitfx.deploy.runtime import OnnxModel
from vitfx.graph.verify import rewrite
from vitfx.pruning.cost_model import Price
from vitfx.support.devices import synchronize
from vitfx.support.errors import UserError
from vitfx.support.progress import Watcher
from vitfx.support.timing import time_interleaved

MILLISECONDS = "ms"
STEPS = 6
"""Of a sublayer's units so many counts are timed; between them times are interpolated."""
_ROUNDS, _SECONDS = 25, 20.0

Deploy = Callable[[GraphModule], GraphModule]
"""From a canonical graph to the one that is exported."""
Open = Callable[[GraphModule, Tensor], OnnxModel]
"""From a graph and an example of its input (2 or more, …) to a session on the target."""


@dataclass(frozen=True)
class LatencyTable:
    """Times in ms at the target's batch, the tenth percentile: other programs' work only ever adds to a time. plain:
    the plain export of the model. whole: as it is deployed. sublayers: by name, pairs of (units, ms)."""

    plain: float
    whole: float
    sublayers: Mapping[str, tuple[tuple[int, float], ...]]

    def price(self) -> Price:
        """Between the counts that were timed, linear; never less for more units. Without any, nothing."""
        costs = {}
        for name, points in self.sublayers.items():
            counts, times = (np.array(column) for column in zip((0, 0.0), *points, strict=True))
            found = np.interp(np.arange(counts[-1] + 1), counts, np.maximum.accumulate(times))
            costs[name] = torch.from_numpy(found)
        return Price(MILLISECONDS, self.whole - sum(float(cost[-1]) for cost in costs.values()), costs)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @staticmethod
    def from_json(text: str) -> LatencyTable:
        """Raises UserError for anything but what `to_json` makes."""
        try:
            record: dict[str, Any] = json.loads(text)
            points = {name: tuple((int(n), float(ms)) for n, ms in row) for name, row in record["sublayers"].items()}
            return LatencyTable(float(record["plain"]), float(record["whole"]), points)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"the latency table can't be read ({error!r}): delete it, and it is made anew") from error


def measure_table(
    original: GraphModule,
    pixels: Tensor,
    deploy: Deploy,
    plain: OnnxModel,
    opened: Open,
    device: torch.device,
    watcher: Watcher,
) -> LatencyTable:
    """Times the model and its sublayers at a batch of `pixels` (the batch, C, H, W; on the CPU).

    original: canonical. plain: its plain export. opened: how an artifact is exported.
    """
    example = torch.cat([pixels, pixels])[: max(2, len(pixels))]
    sessions: dict[str, Callable[[], None]] = {
        "plain": plain.bind(pixels),
        "whole": opened(deploy(original), example).bind(pixels),
    }
    places: dict[str, list[tuple[int, str]]] = {}
    for share in range(1, STEPS + 1):
        watcher.say(f"exporting sublayers at {share} of {STEPS} sizes")
        small = _shrunk(original, share / STEPS)
        counts = {site.name: site.module.units for site in read_sites(small)}
        for name, graph, stream in _cut_out(deploy(small), example, tuple(counts)):
            key = f"{graph.get_submodule(name)} of {tuple(stream.shape[1:])}"
            if key not in sessions:
                sessions[key] = opened(graph, stream).bind(stream[: len(pixels)].contiguous())
            places.setdefault(name, []).append((counts[name], key))
    timings = time_interleaved(
        sessions,
        rounds=_ROUNDS,
        min_seconds=_SECONDS,
        synchronize=partial(synchronize, device),
        progress=watcher.bar("timing sublayers"),
    )
    found = {
        name: tuple((count, timings[key].p10_ms) for count, key in sorted(set(points)))
        for name, points in places.items()
    }
    return LatencyTable(timings["plain"].p10_ms, timings["whole"].p10_ms, found)


def _shrunk(graph_module: GraphModule, share: float) -> GraphModule:
    """Every sublayer with this share of its units, whichever: times do not ask which."""
    deletions = []
    for site in read_sites(graph_module):
        total, kept = site.module.units, max(1, round(share * site.module.units))
        if kept < total:
            deletions.append(SublayerDeletion(site.name, site.module.kind, tuple(range(kept, total)), total))
    return rewrite(graph_module, DeletionPlan(tuple(deletions))).graph_module.eval()


def _cut_out(
    graph_module: GraphModule, pixels: Tensor, names: tuple[str, ...]
) -> Iterator[tuple[str, GraphModule, Tensor]]:
    """Each sublayer with its norm and its addition as a graph of its own, and an example of the stream it reads."""
    streams = _Streams(graph_module)
    with torch.no_grad():
        streams.run(pixels)
    for node in list(graph_module.graph.nodes):
        if node.op != "call_module" or node.target not in names:
            continue
        (norm,) = node.all_input_nodes
        (add,) = node.users
        (stream,) = norm.all_input_nodes
        yield str(node.target), _alone(graph_module, stream, norm, node, add), streams.values[stream]


def _alone(graph_module: GraphModule, stream: Node, norm: Node, node: Node, add: Node) -> GraphModule:
    graph = Graph()
    copies = {stream: graph.placeholder("pixels")}
    carried = [one for one in add.all_input_nodes if one not in (stream, node)]
    for one in (norm, *carried, node, add):
        copies[one] = graph.node_copy(one, lambda old: copies[old])
    graph.output(copies[add])
    return GraphModule(graph_module, graph)


class _Streams(Interpreter):
    """Keeps what every LayerNorm of the graph reads."""

    def __init__(self, graph_module: GraphModule) -> None:
        super().__init__(graph_module)
        self.graph_module = graph_module
        self.values: dict[Node, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        if isinstance(module_of(self.graph_module, n), NORMS):
            source = n.all_input_nodes[0]
            self.values[source] = self.env[source]
        return super().run_node(n)
