"""Survivors are refitted where tokens merge, to what they then read: averages of tokens.

While units are chosen, survivors are refitted where no tokens merge. Behind merges the stream drifts from the
original's, as attention sees fewer tokens and MLPs averages. Sublayer by sublayer, the projection brings the stream
that the merged model really produces as close as a linear map can to the original's, averaged over the tokens that each
stands for.

Shapes: N images, T tokens of the original and T' of the merged model, D width, E inner channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from passes.dialect import AddConstant
from passes.least_squares import Ridge
from passes.merge_tokens import MergeBySchedule
from passes.merging import MergeTokens, RestoreTokens, average_groups
from passes.plan import DeletionPlan, Refit
from passes.stream import Site, module_of, read_sites
from vitfx.graph.narrow import narrow
from vitfx.graph.stages import KeptBatches, read_stages, streams_at
from vitfx.graph.verify import rewritten
from vitfx.pruning.compensation import batch_size, fit_batches, install
from vitfx.support.progress import Report


@torch.no_grad()
def refit_with_merges(
    original: GraphModule,
    plan: DeletionPlan,
    merging: MergeBySchedule,
    pixels: Tensor,
    progress: Report | None = None,
) -> DeletionPlan:
    """The plan with refits of all sublayers behind the first deletion or merge, in place of those that it has there.

    original: canonical, without merges. pixels: (N, C, H, W), at least two images, on its device.
    """
    pruned = rewritten(original, plan, merging)
    batch = batch_size(len(pixels))
    names = [stage.name for stage in read_stages(original)]
    first = min((names.index(deletion.name) for deletion in plan.deletions), default=len(names))
    readers, read = _readers(names, pruned), _tokens_read(original, plan, pixels[:2])
    streams = ((reading.stage, reading.stream) for reading in streams_at(read_stages(original), pixels, batch))
    run, refits = _LockStep(pruned, pixels.split(batch)), dict[str, Refit]()
    sites, old = {site.node: site for site in read_sites(pruned)}, {refit.name: refit for refit in plan.refits}
    nodes = list(pruned.graph.nodes)
    for number, node in enumerate(nodes, start=1):
        reader = readers.get(node)
        if reader is None or not (run.merged or first < names.index(reader.name)):
            run.step(node)
        else:
            site = sites[node]
            forked = site.beside is not None
            target = next(stage.target(stream, forked=forked) for stage, stream in streams if stage.name == reader.name)
            fit = run.refit(site, (target - reader.constant).split(batch), read.get(site.name))
            refits[site.name] = _combined(site, fit, old.get(site.name))
        if progress is not None:
            progress(number, len(nodes))
    kept = tuple(refit for refit in plan.refits if refit.name not in refits)
    return replace(plan, refits=(*kept, *refits.values()))


@dataclass(frozen=True)
class _Reader:
    """The next stage behind a sublayer that the original has, too."""

    name: str
    constant: Tensor | float  #: (D,), what deleted sublayers between leave behind in the pruned model


def _readers(names: Sequence[str], pruned: GraphModule) -> dict[Node, _Reader]:
    """By the node that calls each sublayer; of one that ends the graph there is none. names: the original's stages."""
    norms = {site.norm: site.name for site in read_sites(pruned)}
    nodes, readers = list(pruned.graph.nodes), {}
    for site in read_sites(pruned):
        constant: Tensor | float = 0.0
        for node in nodes[nodes.index(site.add) + 1 :]:
            name, module = norms.get(node, str(node.target)), module_of(pruned, node)
            if name in names:
                readers[site.node] = _Reader(name, constant)
                break
            if isinstance(module, AddConstant):
                constant = constant + module.value
    return readers


def _tokens_read(original: GraphModule, plan: DeletionPlan, example: Tensor) -> dict[str, Tensor]:
    """For sublayers that only few tokens of are read: which. They are protected, and so keep their places."""
    narrowed = narrow(read_stages(rewritten(original, plan)), example)
    if narrowed.tokens is None:
        return {}
    return {stage.name: narrowed.tokens for stage in narrowed.stages[narrowed.start : narrowed.end]}


def _combined(site: Site, fit: Ridge, old: Refit | None) -> Refit:
    """What the plan says of a sublayer that has been refitted now, and perhaps before."""
    shift = fit.shift.cpu() if old is None else old.shift + fit.shift.to(old.shift)
    return Refit(site.name, site.module.out.weight.detach().cpu(), shift)


class _LockStep(Interpreter):
    """Runs a graph one node after another, each for all batches, so that modules can change on the way."""

    def __init__(self, graph_module: GraphModule, batches: Sequence[Tensor]) -> None:
        super().__init__(graph_module)
        self._graph_module, self._batches = graph_module, batches
        self._values: list[dict[Node, Any]] = [{} for _ in batches]
        self._groups: list[Tensor | None] = [None for _ in batches]

    @property
    def merged(self) -> bool:
        """Whether the stream's tokens stand for several."""
        return self._groups[0] is not None

    def step(self, node: Node) -> None:
        module = module_of(self._graph_module, node)
        if isinstance(module, MergeTokens):
            pairs = zip(self._values, self._groups, strict=True)
            self._groups = [module.follow(values[node.args[1]], groups) for values, groups in pairs]  # type: ignore[index]
        elif isinstance(module, RestoreTokens):
            self._groups = [None for _ in self._groups]
        for values, batch in zip(self._values, self._batches, strict=True):
            self._store(node, values, batch if node.op == "placeholder" else self._run(node, values))

    def refit(self, site: Site, targets: Sequence[Tensor], tokens: Tensor | None) -> Ridge:
        """Fits the projection of a sublayer and runs it with that. targets: batches of the original's stream behind it,
        (n, T, D). tokens: those that count, None for all."""
        results = KeptBatches(partial(self._unprojected, site), self._values)
        fit = fit_batches(self._missing(site, results, targets, tokens))
        install(site.module, fit)
        for values, result in zip(self._values, results, strict=True):
            inner, *keys = result if site.keyed else (result,)
            added = site.module.out(inner)
            self._store(site.node, values, (added, *keys) if site.keyed else added)
        return fit

    def _missing(
        self, site: Site, results: Iterable[Any], targets: Sequence[Tensor], tokens: Tensor | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of the inner channels, and of what the stream behind the sublayer lacks."""
        for result, values, target, groups in zip(results, self._values, targets, self._groups, strict=True):
            inner = result[0] if site.keyed else result
            got = values[site.carried] + site.module.out(inner)
            missing = (target if groups is None else average_groups(target, groups, got.shape[1])) - got
            yield (inner, missing) if tokens is None else (inner[:, tokens], missing[:, tokens])

    def _unprojected(self, site: Site, values: dict[Node, Any]) -> Any:
        """What the sublayer gives, with its inner channels (n, T', E), which its projection reads, for what it adds."""
        projection = site.module.out
        site.module.out = nn.Identity()  # type: ignore[assignment]
        try:
            return self._run(site.node, values)
        finally:
            site.module.out = projection

    def _store(self, node: Node, values: dict[Node, Any], value: Any) -> None:
        values[node] = value
        for old in self.user_to_last_uses.get(node, ()):
            del values[old]

    def _run(self, node: Node, values: dict[Node, Any]) -> Any:
        self.env = values
        return self.run_node(node)
