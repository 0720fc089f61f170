"""Token merging as its authors wrote it (github.com/facebookresearch/ToMe): sort, gather, scatter; a reference."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.nn import functional as F

from passes.dialect import Attention
from passes.token_schedule import TokenSchedule
from vitfx.graph.stages import read_stages


def tome_logits(graph_module: GraphModule, schedule: TokenSchedule, protected: int, pixels: Tensor) -> Tensor:
    """Of a canonical graph in which no tokens merge. Tokens are restored behind the blocks."""
    merges = {f"a{block}": merged for block, merged in schedule.merges}
    x, size, source, places, merged = pixels, None, None, None, 0
    stages = read_stages(graph_module)
    blocks = [index for index, stage in enumerate(stages) if stage.sublayer is not None and stage.carry is None]
    for index, stage in enumerate(stages):
        if isinstance(stage.module, Attention) and stage.carry is None:
            total, metric = _attention(stage, x, size, places)
            x, merged = stage.forked(total, x), merges.get(stage.name, 0)
        else:
            x = stage(x)
        if merged and not stage.forks:
            source = torch.eye(x.shape[1]).to(x).expand(len(x), -1, -1) if source is None else source
            size = x.new_ones(*x.shape[:2], 1) if size is None else size
            merge = _bipartite_soft_matching(metric, merged, protected)
            source = merge(source, "amax")
            x, size = merge(x * size, "sum"), merge(size, "sum")
            x = x / size
            tokens = torch.arange(source.shape[2]).expand(len(x), -1) if places is None else places
            places, merged = merge.stay(tokens.unsqueeze(-1)).squeeze(-1), 0
        if index == blocks[-1] and source is not None:
            x = source.transpose(1, 2) @ x
    return x


def _attention(stage, x, size, places):
    module, core = stage.module, stage.module.core
    q, k, v = (linear(stage.norm(x)).unflatten(-1, (module.units, -1)).transpose(1, 2) for linear in module.linears)
    q, k = core._transformed(q, k, places)
    scores = core.scale * q @ k.transpose(-2, -1)
    if size is not None:
        scores = scores + size.log()[:, None, None, :, 0]
    heads = (scores.softmax(-1) @ core._shared(v)).transpose(1, 2).flatten(2)
    heads = heads if core.out_norm is None else core.out_norm(heads)
    return x + module.out(heads), k.mean(1)


def _bipartite_soft_matching(metric, r, protected):
    metric = F.normalize(metric[:, protected:], dim=-1)
    scores = metric[:, ::2] @ metric[:, 1::2].transpose(-1, -2)
    node_max, node_idx = scores.max(dim=-1)
    edge_idx = node_max.argsort(dim=-1, descending=True, stable=True)[..., None]
    unm_idx = edge_idx[:, r:].sort(dim=1)[0]
    src_idx = edge_idx[:, :r]
    dst_idx = node_idx[..., None].gather(dim=-2, index=src_idx)

    def merge(x, mode):
        first, src, dst = x[:, :protected], x[:, protected::2], x[:, protected + 1 :: 2]
        n, c = len(x), x.shape[-1]
        unm = src.gather(dim=-2, index=unm_idx.expand(n, unm_idx.shape[1], c))
        src = src.gather(dim=-2, index=src_idx.expand(n, r, c))
        dst = dst.scatter_reduce(-2, dst_idx.expand(n, r, c), src, reduce=mode)
        return torch.cat([first, unm, dst], dim=1)

    def stay(x):
        """A merged token keeps the position of the one that it merged into."""
        unm = x[:, protected::2].gather(dim=-2, index=unm_idx.expand(len(x), unm_idx.shape[1], x.shape[-1]))
        return torch.cat([x[:, :protected], unm, x[:, protected + 1 :: 2]], dim=1)

    merge.stay = stay
    return merge
