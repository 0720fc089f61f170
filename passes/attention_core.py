"""What happens to queries, keys and values between their projections and the heads' outputs.

    core(q, k, v) = norm(softmax(scale · q' k'ᵀ + position bias) v),   q' = rotate(norm(q)), k' = rotate(norm(k))

Norms and rotations are optional and mix no tokens. Those of queries and keys act on each head by itself, so that
deleting a head deletes its part of them and leaves the other heads as they are. The last norm, over all heads' outputs
side by side, couples them: after deletions it runs over the survivors.

Grouped queries (Ainslie et al. 2023, arXiv:2305.13245) share their keys and values: a head is then a group of queries,
whose channels lie side by side, with one key and one value.

Shapes: N images, T tokens, H heads, g queries of a head (1, or more where they are grouped), d channels of a query.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passes.rotary import Rotary

LAYER, RMS, L2 = "layer", "rms", "l2"
NORMS = (LAYER, RMS, L2)
Module = TypeVar("Module", bound=nn.Module)


def normalised(x: Tensor, kind: str, eps: float) -> Tensor:
    """x over its last axis, without scale and shift: LayerNorm (Ba et al. 2016), RMSNorm (Zhang and Sennrich 2019),
    or x / max(‖x‖₂, ε)."""
    if kind == LAYER:
        return F.layer_norm(x, x.shape[-1:], eps=eps)
    if kind == RMS:
        return F.rms_norm(x, x.shape[-1:], eps=eps)
    return F.normalize(x, dim=-1, eps=eps)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(N, T, H · d) -> (N, H, T, d)."""
    return torch.unflatten(x, -1, (heads, -1)).transpose(1, 2)


class HeadNorm(nn.Module):
    """Normalises the channels of each head: (N, H, T, d) -> the same. Scale and shift are (d,), or (H, 1, d)."""

    def __init__(self, kind: str, eps: float, weight: Sequence[int] | None, bias: Sequence[int] | None) -> None:
        """weight, bias: their shapes; None where there is none."""
        super().__init__()
        if kind not in NORMS:
            raise ValueError(f"norm {kind!r} is not one of {', '.join(NORMS)}")
        self.kind, self.eps = kind, eps
        self.weight = None if weight is None else nn.Parameter(torch.empty(*weight))
        self.bias = None if bias is None else nn.Parameter(torch.empty(*bias))

    def forward(self, x: Tensor) -> Tensor:
        x = normalised(x, self.kind, self.eps)
        x = x if self.weight is None else x * self.weight
        return x if self.bias is None else x + self.bias

    def config(self) -> dict[str, Any]:
        shapes = [None if value is None else list(value.shape) for value in (self.weight, self.bias)]
        return {"kind": self.kind, "eps": self.eps, "weight": shapes[0], "bias": shapes[1]}

    @classmethod
    def of(cls, kind: str, eps: float, weight: Tensor | None, bias: Tensor | None) -> Self:
        """weight, bias: their values, which are copied."""
        made = cls(kind, eps, None, None)
        made.weight, made.bias = (
            None if value is None else nn.Parameter(value.detach().clone()) for value in (weight, bias)
        )
        return made

    def of_heads(self, heads: Sequence[int]) -> HeadNorm:
        """The norm of these heads alone; itself where all heads share it."""
        weight, bias = _rows(self.weight, heads), _rows(self.bias, heads)
        if weight is self.weight and bias is self.bias:
            return self
        return HeadNorm.of(self.kind, self.eps, weight, bias)

    def extra_repr(self) -> str:
        return f"{self.kind}, eps={self.eps:g}"


class InnerNorm(HeadNorm):
    """Normalises all inner channels of a sublayer together, (…, E) -> the same. Scale and shift are (E,).

    The statistics couple the sublayer's units: without some of them it is a norm of the others.
    """

    def of_channels(self, channels: Tensor) -> InnerNorm:
        """The norm of these channels alone."""
        values = (None if value is None else value[channels.to(value.device)] for value in (self.weight, self.bias))
        return InnerNorm.of(self.kind, self.eps, *values)


class AttentionCore(nn.Module):
    """From queries (N, H, T of q, g · d), keys (N, H, T, d) and values (N, H, T, e) to heads' outputs
    (N, T of q, H · g · e).

    position_bias: (H · g or 1, T of q, T), added to the scores; a mask has −∞ in it.
    """

    def __init__(
        self,
        scale: float,
        q_norm: HeadNorm | None = None,
        k_norm: HeadNorm | None = None,
        q_rotary: Rotary | None = None,
        k_rotary: Rotary | None = None,
        position_bias: Sequence[int] | None = None,
        out_norm: InnerNorm | None = None,
        group: int = 1,
    ) -> None:
        """position_bias: its shape. group: g."""
        super().__init__()
        self.scale, self.group = scale, group
        self.q_norm, self.k_norm = q_norm, k_norm
        self.q_rotary, self.k_rotary = q_rotary, k_rotary
        self.position_bias = None if position_bias is None else nn.Parameter(torch.empty(*position_bias))
        self.out_norm = out_norm

    @property
    def plain(self) -> bool:
        """softmax(scale · q kᵀ) v and nothing else."""
        return self.group == 1 and self.position_bias is None and self.out_norm is None and self.bilinear

    @property
    def bilinear(self) -> bool:
        """Scores are a bilinear form of queries and keys, the same for every pair of tokens, but for the bias."""
        return all(part is None for part in (self.q_norm, self.k_norm, self.q_rotary, self.k_rotary))

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, sizes: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """Where tokens have merged (`passes.merging`), sizes (N, T): of how many tokens each is the average; and for
        rotary positions those that they keep, int64 (N, T)."""
        q, k = self._transformed(q, k, positions)
        mixed = F.scaled_dot_product_attention(q, k, self._shared(v), attn_mask=self._bias(q, sizes), scale=self.scale)
        heads = mixed.transpose(1, 2).flatten(2)
        return heads if self.out_norm is None else self.out_norm(heads)

    def pattern(self, q: Tensor, k: Tensor) -> Tensor:
        """Where each query looks: (N, H · g, T of q, T), rows that sum to one."""
        q, k = self._transformed(q, k)
        scores = self.scale * q @ k.transpose(2, 3)
        return (scores if self.position_bias is None else scores + self.position_bias).softmax(-1)

    def mean_keys(self, k: Tensor, heads: int, positions: Tensor | None = None) -> Tensor:
        """What tokens are compared by when they merge: keys after norm and rotation, (N, T, H · d) -> (N, T, d)."""
        if not self.bilinear:
            return self._turned(split_heads(k, heads), self.k_norm, self.k_rotary, positions).mean(1)
        # A shape that attention does not share: exports fuse attention only where nothing else reads what is inside.
        return torch.unflatten(k, -1, (1, heads, -1)).mean((2, 3))

    def _bias(self, q: Tensor, sizes: Tensor | None) -> Tensor | None:
        """What is added to the scores: a token that stands for n is looked at as n tokens would be."""
        if sizes is None:
            return self.position_bias
        # ONNX Runtime's Attention wants a row for each query, though its specification does not.
        bias = sizes.log()[:, None, None].expand(-1, -1, q.shape[2], -1)
        return bias if self.position_bias is None else bias + self.position_bias

    def _transformed(self, q: Tensor, k: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(N, H · g, T, d) each."""
        if self.group > 1:
            q = q.unflatten(-1, (self.group, -1)).transpose(2, 3).flatten(1, 2)
        asked = None if positions is None else positions[:, : q.shape[2]]
        q = self._turned(q, self.q_norm, self.q_rotary, asked)
        return q, self._shared(self._turned(k, self.k_norm, self.k_rotary, positions))

    @staticmethod
    def _turned(x: Tensor, norm: HeadNorm | None, rotary: Rotary | None, positions: Tensor | None) -> Tensor:
        x = x if norm is None else norm(x)
        return x if rotary is None else rotary(x, positions)

    def _shared(self, x: Tensor) -> Tensor:
        """Keys or values (N, H, T, d) for each query of their group: (N, H · g, T, d)."""
        return x if self.group == 1 else x.repeat_interleave(self.group, dim=1)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments but the scale, JSON-ready; nothing for what is absent."""
        parts = {
            name: module.config() for name, module in self.named_children() if isinstance(module, HeadNorm | Rotary)
        }
        bias = {} if self.position_bias is None else {"position_bias": list(self.position_bias.shape)}
        return parts | bias | ({} if self.group == 1 else {"group": self.group})

    @staticmethod
    def from_config(scale: float, record: Mapping[str, Any]) -> AttentionCore:
        q_norm, k_norm = (HeadNorm(**record[name]) if name in record else None for name in ("q_norm", "k_norm"))
        q_turn, k_turn = (Rotary(**record[name]) if name in record else None for name in ("q_rotary", "k_rotary"))
        out_norm = InnerNorm(**record["out_norm"]) if "out_norm" in record else None
        bias, group = record.get("position_bias"), record.get("group", 1)
        return AttentionCore(scale, q_norm, k_norm, q_turn, k_turn, bias, out_norm, group)

    def of_heads(self, heads: Sequence[int]) -> AttentionCore:
        """The core of these heads alone, its parameters shared or copied; itself where it has nothing for each head.
        The norm behind the heads is cut by `passes.delete_heads`, which knows how many channels a head has."""
        if self.plain:
            return self
        queries = [head * self.group + query for head in heads for query in range(self.group)]
        q_norm = None if self.q_norm is None else self.q_norm.of_heads(queries)
        k_norm = None if self.k_norm is None else self.k_norm.of_heads(heads)
        q_turn = None if self.q_rotary is None else self.q_rotary.of_heads(queries)
        k_turn = None if self.k_rotary is None else self.k_rotary.of_heads(heads)
        made = AttentionCore(self.scale, q_norm, k_norm, q_turn, k_turn, None, self.out_norm, self.group)
        bias = _rows(self.position_bias, queries)
        if bias is not None:
            made.position_bias = self.position_bias if bias is self.position_bias else nn.Parameter(bias.detach())
        return made

    def of_queries(self, tokens: Tensor) -> AttentionCore:
        """The core asked by these tokens alone."""
        if self.q_rotary is None and self.position_bias is None:
            return self
        rotary = None if self.q_rotary is None else self.q_rotary.of_tokens(tokens)
        made = AttentionCore(
            self.scale, self.q_norm, self.k_norm, rotary, self.k_rotary, None, self.out_norm, self.group
        )
        if self.position_bias is not None:
            made.position_bias = nn.Parameter(self.position_bias.detach()[:, tokens])
        return made

    def head_parameters(self, heads: int) -> int:
        """Parameters that go with one of its heads."""
        rows = {heads, heads * self.group} - {1}
        each = [value.numel() for value in self.parameters() if value.dim() == 3 and len(value) in rows]
        return sum(each) // heads

    @property
    def extras(self) -> tuple[str, ...]:
        """What it does besides softmax(scale · q kᵀ) v, in words."""
        norms = {norm.kind for norm in (self.q_norm, self.k_norm) if norm is not None}
        names = [] if self.group == 1 else [f"{self.group} queries to each key"]
        names += [f"{kind} norm of q and k" for kind in sorted(norms)]
        names += ["rotary"] if self.q_rotary is not None or self.k_rotary is not None else []
        names += [] if self.position_bias is None else ["position bias"]
        return (*names, *(() if self.out_norm is None else (f"{self.out_norm.kind} norm of all heads",)))

    def extra_repr(self) -> str:
        bias = "" if self.position_bias is None else f", position_bias={tuple(self.position_bias.shape)}"
        return f"scale={self.scale:.4g}{bias}"


def with_part(module: Module, name: str, part: nn.Module | None) -> Module:
    """The module with another part under this name; everything else is shared."""
    made = copy.copy(module)
    made._modules = {**module._modules, name: part}
    return made


def _rows(value: Tensor | None, heads: Sequence[int]) -> Tensor | None:
    """The rows of these heads, where the value has one for each head; else the value itself."""
    if value is None or value.dim() != 3 or len(value) == 1:
        return value
    return value[torch.tensor(list(heads), device=value.device, dtype=torch.long)]
