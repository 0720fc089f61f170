"""The ViT dialect: the few modules that a canonical graph calls.

A canonical graph reads `embed → positions → [norm → attention → add → norm → mlp → add] × L → norm → head`. An MLP may
also read the stream that the attention before it reads, `x + a(norm(x)) + m(norm'(x))`.
Attention and MLPs (`passes.mlp`) are the prunable sublayers. Both compute *inner channels* (heads' outputs, or hidden
neurons) that one projection carries back to the residual stream, so that the sublayer is exactly a sum over its
*units*, plus a bias:

    sublayer(x) = Σ_u inner(x)[..., channels(u)] · W[:, channels(u)]ᵀ + bias

Shapes: B images, T tokens, D the width of the stream, H heads, E inner channels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passes.attention_core import AttentionCore, InnerNorm, split_heads, with_part


class Projection(nn.Module):
    """(B, T, E) -> (B, T, D): x Wᵀ + bias, where the bias is (D,), (T, D) or absent.

    A bias for each token is what deleted units leave behind whose replacement differs from token to token.
    """

    def __init__(self, inner: int, width: int, bias_shape: tuple[int, ...] | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, inner))
        self.bias = None if bias_shape is None else nn.Parameter(torch.empty(bias_shape))

    def forward(self, x: Tensor) -> Tensor:
        if self.bias is None or self.bias.dim() == 1:
            return F.linear(x, self.weight, self.bias)
        return F.linear(x, self.weight) + self.bias


class Sublayer(nn.Module):
    """A prunable reader and writer of the residual stream: units (heads or hidden neurons) and a projection."""

    kind: ClassVar[str]  #: what a unit is, "head" or "neuron"
    reads: ClassVar[tuple[str, ...]]  #: the linear maps that read the normalised stream, with as many rows a unit
    units: int
    channels: int  #: inner channels of one unit
    out: Projection

    @property
    @abstractmethod
    def inner_norm(self) -> InnerNorm | None:
        """The norm of all inner channels before the projection, which couples the units, where there is one."""

    @abstractmethod
    def without_inner_norm(self) -> Self:
        """The same with its inner channels as they are before that norm; parameters are shared."""

    @property
    def linears(self) -> tuple[nn.Linear, ...]:
        """The linear maps that read the normalised stream."""
        return tuple(getattr(self, name) for name in self.reads)

    @abstractmethod
    def inner(self, x: Tensor) -> Tensor:
        """The normalised stream (B, T, D) -> inner channels (B, T, units · channels)."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, JSON-ready."""

    def forward(self, x: Tensor) -> Any:
        return self.out(self.inner(x))

    def _out_config(self) -> list[int] | None:
        return None if self.out.bias is None else list(self.out.bias.shape)


class Heads(Sublayer):
    """Attention of any kind: a unit is one head, which is a group of queries where several share a key and a value.

    head_dim: channels of a query and of a key; value_dim: of a value.
    """

    kind = "head"
    k: nn.Linear
    v: nn.Linear

    def __init__(self, heads: int, head_dim: int, value_dim: int, core: AttentionCore) -> None:
        super().__init__()
        self.units, self.channels = heads, core.group * value_dim
        self.head_dim, self.value_dim = head_dim, value_dim
        self.core = core

    @property
    def scale(self) -> float:
        return self.core.scale

    @property
    def inner_norm(self) -> InnerNorm | None:
        return self.core.out_norm

    def without_inner_norm(self) -> Self:
        return with_part(self, "core", with_part(self.core, "out_norm", None))

    def by_head(self, x: Tensor) -> tuple[Tensor, ...]:
        """What each of `reads` makes of x (B, T, D): (B, H, T, channels)."""
        return tuple(linear(x).unflatten(-1, (self.units, -1)).transpose(1, 2) for linear in self.linears)

    def config(self) -> dict[str, Any]:
        core = self.core.config()
        return {
            "width": self.linears[0].in_features,
            "heads": self.units,
            "head_dim": self.head_dim,
            "value_dim": self.value_dim,
            "scale": self.scale,
            "biases": [linear.bias is not None for linear in self.linears],
            "out_bias": self._out_config(),
            **({"core": core} if core else {}),
        }

    def extra_repr(self) -> str:
        heads = "1 head" if self.units == 1 else f"{self.units} heads"
        values = "" if self.value_dim == self.head_dim else f", values {self.value_dim}"
        extras = "".join(f", {extra}" for extra in self.core.extras)
        return f"{heads} of {self.head_dim}{values}, scale {self.scale:.4g}{extras}"


class Attention(Heads):
    """Multi-head self-attention: softmax(scale · Q Kᵀ) V for each head, then the projection.

    biases: which of q, k, v have one. core: the settings of what else happens to queries, keys and scores, see
    `passes.attention_core.AttentionCore.config`.
    """

    reads = ("q", "k", "v")

    def __init__(
        self,
        width: int,
        heads: int,
        head_dim: int,
        value_dim: int,
        scale: float,
        biases: tuple[bool, bool, bool] = (True, True, True),
        out_bias: tuple[int, ...] | None = None,
        core: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(heads, head_dim, value_dim, AttentionCore.from_config(scale, core or {}))
        self.q = nn.Linear(width, heads * self.core.group * head_dim, bias=biases[0])
        self.k = nn.Linear(width, heads * head_dim, bias=biases[1])
        self.v = nn.Linear(width, heads * value_dim, bias=biases[2])
        self.out = Projection(heads * self.channels, width, out_bias)

    def forward(
        self, x: Tensor, sizes: Tensor | None = None, positions: Tensor | None = None, *, keys: bool = False
    ) -> Any:
        """What is added to the stream (B, T, D); with `keys` also the mean of the heads' keys (B, T, d), by which
        tokens merge behind it. sizes, positions: see `passes.merging.MergeTokens`."""
        q, k, v = (project(x) for project in self.linears)
        added = self.out(self.core(*(split_heads(part, self.units) for part in (q, k, v)), sizes, positions))
        return (added, self.core.mean_keys(k, self.units, positions)) if keys else added

    def inner(self, x: Tensor) -> Tensor:
        heads: Tensor = self.core(*self.by_head(x))
        return heads

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {biases_of(q=self.q, k=self.k, v=self.v, out=self.out)}"


class AddConstant(nn.Module):
    """Adds a learnable (D,) or (T, D) constant to the stream: a position table, or what a deleted sublayer left."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.empty(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.value

    def config(self) -> dict[str, Any]:
        return {"shape": list(self.value.shape)}

    def extra_repr(self) -> str:
        return "×".join(map(str, self.value.shape))


def biases_of(**maps: nn.Linear | Projection) -> str:
    """Which linear maps have a bias; with ×T a bias for each token."""
    named = [
        f"{name}×T" if linear.bias.dim() == 2 else name for name, linear in maps.items() if linear.bias is not None
    ]
    return f"bias of {' '.join(named)}" if named else "no bias"
