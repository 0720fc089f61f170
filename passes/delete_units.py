"""What deleting heads and deleting MLP paths share: the sublayer shrinks or goes, a constant stays."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from passes.base import Pass, PassError, PassResult
from passes.dialect import AddConstant, Projection, Sublayer
from passes.plan import DeletionPlan, SublayerDeletion, channels_of
from passes.stream import Site, is_canonical, read_sites


class DeleteUnits(Pass):
    """Physically deletes units of one kind. The constants of the plan become AddConstant nodes behind the sublayer.

    Requires a canonical graph that the plan is for; ensures a canonical graph. A sublayer whose units are already gone
    is left alone, so that a second run changes nothing. Where tokens merge already, it refuses to delete an attention
    by whose keys they do, and constants for tokens that have merged.
    """

    kind: ClassVar[str]
    requires = (is_canonical,)
    ensures = (is_canonical,)

    def __init__(self, plan: DeletionPlan) -> None:
        self.plan = plan

    @staticmethod
    @abstractmethod
    def shrunk(module: Sublayer, kept: Sequence[int]) -> Sublayer:
        """A new sublayer of the kept units alone, with the old one's bias."""

    def rewrite(self, graph_module: GraphModule) -> PassResult:
        notes = []
        sites = {site.name: site for site in read_sites(graph_module)}
        merged = _behind_merges(sites.values())
        for name, deletion in self.plan.of_kind(self.kind).items():
            site = sites.get(name)
            done = site is None if deletion.whole else site is not None and site.module.units == len(deletion.kept)
            if done:
                continue
            if site is None or site.module.units != deletion.total:
                units = "is not there" if site is None else f"has {site.module.units}"
                raise PassError(f"the plan is for {name} with {deletion.total} {self.kind}s, which {units}")
            _check_merges(site, deletion, merged)
            self._delete(graph_module, site, deletion)
            notes.append(f"{name} keeps {len(deletion.kept)} of {deletion.total} {self.kind}s")
        return PassResult(graph_module, bool(notes), tuple(notes))

    def _delete(self, graph_module: GraphModule, site: Site, deletion: SublayerDeletion) -> None:
        constant = left_behind(site.module, deletion)
        stream = site.end
        if deletion.whole:
            stream = site.carried if site.beside is None else site.beside
            site.add.replace_all_uses_with(site.carried)
            for node in (site.add, site.node, site.norm):
                graph_module.graph.erase_node(node)
        else:
            graph_module.set_submodule(site.name, self.shrunk(site.module, deletion.kept))
        if constant is not None:
            _add_constant(graph_module, stream, f"{site.name}_constant", constant, site.module.out.weight)


def _behind_merges(sites: Iterable[Site]) -> set[str]:
    """The names of the sites that read tokens of which some have merged."""
    names, merged = set(), False
    for site in sites:
        names |= {site.name} if merged else set()
        merged = merged or site.merge is not None
    return names


def _check_merges(site: Site, deletion: SublayerDeletion, merged: Collection[str]) -> None:
    """Raises PassError for a deletion that is only defined where tokens have not merged."""
    if deletion.whole and site.merge is not None:
        raise PassError(f"tokens merge by the keys of {site.name}, which is to go: undo the merges before")
    if site.name in merged and deletion.constant is not None and deletion.constant.dim() == 2:
        raise PassError(
            f"the constant of {site.name} has a row for each token, and tokens merge before: undo the merges before"
        )


def left_behind(module: Sublayer, deletion: SublayerDeletion) -> Tensor | None:
    """float64 (D,) or (T, D), on the CPU: what the stream gets in place of the deleted units; None for zero.

    A sublayer that goes as a whole leaves its bias as well.
    """
    parts = [] if deletion.constant is None else [deletion.constant]
    if deletion.whole and module.out.bias is not None:
        parts.append(module.out.bias.detach().double().cpu())
    if not parts:
        return None
    constant = parts[0] if len(parts) == 1 else parts[0] + parts[1]
    return constant if bool(constant.any()) else None


def _add_constant(graph_module: GraphModule, stream: torch.fx.Node, name: str, value: Tensor, like: Tensor) -> None:
    """like: has the graph's dtype and device, which a plan's constants lack."""
    module = AddConstant(tuple(value.shape)).to(like)
    with torch.no_grad():
        module.value.copy_(value)
    graph_module.add_submodule(name, module)
    with graph_module.graph.inserting_after(stream):
        node = graph_module.graph.create_node("call_module", name, (stream,), name=name)
    stream.replace_all_uses_with(node, delete_user_cb=lambda user: user is not node)


def take_rows(linear: nn.Linear, rows: Tensor) -> nn.Linear:
    """A linear with these output rows alone."""
    taken = nn.Linear(linear.in_features, len(rows), bias=linear.bias is not None).to(linear.weight)
    with torch.no_grad():
        taken.weight.copy_(linear.weight[rows])
        if linear.bias is not None:
            taken.bias.copy_(linear.bias[rows])
    return taken


def take_columns(projection: Projection, columns: Tensor) -> Projection:
    """A projection that reads these inner channels alone, with the same bias."""
    shape = None if projection.bias is None else tuple(projection.bias.shape)
    taken = Projection(len(columns), projection.weight.shape[0], shape).to(projection.weight)
    with torch.no_grad():
        taken.weight.copy_(projection.weight[:, columns])
        if projection.bias is not None and taken.bias is not None:
            taken.bias.copy_(projection.bias)
    return taken


def columns_of(module: Sublayer, kept: Sequence[int]) -> Projection:
    """The module's projection for the kept units alone."""
    return take_columns(module.out, channels_of(kept, module.channels))
