"""A few tokens' queries read the stream itself, so that no token needs keys and values."""

from __future__ import annotations

from torch.fx import GraphModule

from passes.base import Pass, PassResult
from passes.deployment import AbsorbedAttention, NarrowedAttention
from passes.stream import module_of


class AbsorbKeys(Pass):
    """NarrowedAttention becomes AbsorbedAttention where that takes less arithmetic. Runs behind NarrowToCls.

    A head's keys take T·D·d multiplications. Absorbed, each of the n queries takes d·D for itself and D for each token:
    n·(d + T)·D. Values cost the same.
    """

    def rewrite(self, graph_module: GraphModule) -> PassResult:
        changed, notes = False, []
        for node in graph_module.graph.nodes:
            module = module_of(graph_module, node)
            if not isinstance(module, NarrowedAttention):
                continue
            if not module.core.plain:
                notes.append(f"{node.target} does more to its scores than q kᵀ: keys are needed")
                continue
            channels = module.k.out_features // module.units
            if module.count * (channels + module.tokens) < module.tokens * channels:
                graph_module.set_submodule(str(node.target), AbsorbedAttention(module))
                notes.append(f"{node.target} reads the stream without keys and values")
                changed = True
            else:
                notes.append(f"{node.target} has {module.count} queries of {channels} channels: keys are cheaper")
        return PassResult(graph_module, changed, tuple(notes))
