"""How long each sublayer takes on the target runtime with ever fewer units: a price in milliseconds.

Sublayers are cut out of the graph as it is deployed, after its exact rewrites, so that a last layer that only the class
token needs costs what it costs there. Each shape is exported and timed once, however many sublayers have it. The
shapes, the whole model and its plain export are timed in turns.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Interpreter, Node

from passes.norms import NORMS
from passes.plan import DeletionPlan
from passes.stream import module_of, read_sites
from vitfx.deploy.runtime import Session
from vitfx.graph.verify import rewritten
from vitfx.pruning.cost_model import MILLISECONDS, Price
from vitfx.support.devices import synchronize
from vitfx.support.errors import UserError
from vitfx.support.json_files import read_json, write_json
from vitfx.support.progress import Watcher
from vitfx.support.text import digits
from vitfx.support.timing import time_interleaved
from vitfx.support.typed import TypeMismatch, typed

STEPS = 4
"""How many counts of a sublayer's units are timed; times between them are interpolated."""
_ROUNDS, _SECONDS, _MOST_SECONDS = 21, 10.0, 180.0
_PLAUSIBLE = 0.3
"""By so much smaller than their share of the FLOPs the sublayers' share of the time may be."""
FORMAT = "vitfx-latency/1"
_ADVICE = "times are measured anew"

Deploy = Callable[[GraphModule], GraphModule]
"""From a canonical graph to the graph that is exported."""
Open = Callable[[GraphModule, Tensor], Session]
"""From a graph and an example of its input, a batch of two or more, to a session on the target."""


class _Record(TypedDict):
    plain: float
    whole: float
    sublayers: dict[str, tuple[tuple[int, float], ...]]


@dataclass(frozen=True)
class LatencyTable:
    """Times in ms at the target's batch, tenth percentiles: other programs only ever add to a time."""

    plain: float  #: of the model's plain export
    whole: float  #: of the model as it is deployed
    sublayers: Mapping[str, tuple[tuple[int, float], ...]]  #: by name, pairs of (units, ms)

    def price(self) -> Price:
        """Linear between the counts that were timed, never falling with more units, and nothing for no units."""
        costs = {}
        for name, points in self.sublayers.items():
            counts, times = (np.array(column) for column in zip((0, 0.0), *points, strict=True))
            costs[name] = torch.from_numpy(np.interp(np.arange(counts[-1] + 1), counts, np.maximum.accumulate(times)))
        return Price(MILLISECONDS, self.whole - sum(float(cost[-1]) for cost in costs.values()), costs)

    def doubt(self, flops: Price) -> str | None:
        """A sentence where the sublayers take far less of the whole model's time than of its FLOPs: on a machine that
        other programs keep busy a long run is interrupted again and again, a short one hardly ever."""
        parts = sum(points[-1][1] for points in self.sublayers.values())
        if parts >= _PLAUSIBLE * (1 - flops.rest / flops.whole) * self.whole:
            return None
        return (
            f"note: the whole model takes {digits(self.whole)} ms, all of its attentions and MLPs {digits(parts)} ms: "
            "other programs keep this machine busy, and what follows from these times is doubtful"
        )

    def write(self, path: Path) -> None:
        """Raises WriteError."""
        write_json(path, FORMAT, asdict(self))

    @staticmethod
    def read(path: Path) -> LatencyTable:
        """Raises UserError for anything but what `write` makes."""
        try:
            record = typed(read_json(path, FORMAT, _ADVICE), _Record, "the table")
        except TypeMismatch as error:
            raise UserError(f"{path} is damaged ({error}): {_ADVICE}") from error
        return LatencyTable(record["plain"], record["whole"], record["sublayers"])


def measure_table(
    original: GraphModule,
    pixels: Tensor,
    deploy: Deploy,
    plain: Session,
    opened: Open,
    device: torch.device,
    watcher: Watcher,
) -> LatencyTable:
    """Times the model and its sublayers on one batch.

    original: canonical
    pixels: the batch (N, C, H, W), on the CPU
    plain: the model's plain export
    opened: how an artifact is exported
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
        max_seconds=_MOST_SECONDS,
        synchronize=partial(synchronize, device),
        progress=watcher.bar("timing sublayers"),
    )
    sublayers = {
        name: tuple((count, timings[key].p10_ms) for count, key in sorted(set(points)))
        for name, points in places.items()
    }
    return LatencyTable(timings["plain"].p10_ms, timings["whole"].p10_ms, sublayers)


def _shrunk(graph_module: GraphModule, share: float) -> GraphModule:
    """Every sublayer with this share of its units. Which ones does not matter to the time."""
    totals = {site.name: site.module.units for site in read_sites(graph_module)}
    deleted = {name: range(max(1, round(share * units)), units) for name, units in totals.items()}
    return rewritten(graph_module, DeletionPlan.deleting(graph_module, deleted))


def _cut_out(
    graph_module: GraphModule, pixels: Tensor, names: tuple[str, ...]
) -> Iterator[tuple[str, GraphModule, Tensor]]:
    """Each sublayer with its norm and addition, as a graph of its own, and an example of the stream that it reads."""
    streams = _NormInputs(graph_module)
    with torch.no_grad():
        streams.run(pixels)
    for node in list(graph_module.graph.nodes):
        if node.op != "call_module" or node.target not in names:
            continue
        norm, *_ = node.all_input_nodes
        add = next(user for part in (node, *node.users) for user in part.users if user.target is operator.add)
        (stream,) = norm.all_input_nodes
        yield str(node.target), _alone(graph_module, stream, norm, node, add), streams.values[stream]


def _alone(graph_module: GraphModule, stream: Node, norm: Node, node: Node, add: Node) -> GraphModule:
    graph = Graph()
    copies = {stream: graph.placeholder("pixels")}
    added = [part for part in add.all_input_nodes if part is node or node in part.all_input_nodes]
    carried = [part for part in add.all_input_nodes if part not in (stream, *added)]
    for part in (norm, *carried, node, *(part for part in added if part is not node), add):
        copies[part] = graph.node_copy(part, lambda old: copies[old])
    graph.output(copies[add])
    return GraphModule(graph_module, graph)


class _NormInputs(Interpreter):
    """Runs the graph and keeps what every LayerNorm reads."""

    def __init__(self, graph_module: GraphModule) -> None:
        super().__init__(graph_module)
        self.graph_module = graph_module
        self.values: dict[Node, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        if isinstance(module_of(self.graph_module, n), NORMS):
            source = n.all_input_nodes[0]
            self.values[source] = self.env[source]
        return super().run_node(n)
