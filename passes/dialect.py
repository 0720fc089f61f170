"""The ViT dialect: the few modules that a canonical graph calls.

A canonical graph reads `embed → positions → [norm → attention → add → norm → mlp → add] × L → norm → head`.
Attention and Mlp are the prunable sublayers. Both compute *inner channels* (heads' outputs, or hidden neurons) that
one projection carries back to the residual stream, so that the sublayer is exactly a sum over its *units*, plus a bias:

    sublayer(x) = Σ_u inner(x)[..., channels(u)] · W[:, channels(u)]ᵀ + bias

Shapes: B images, T tokens, D the width of the stream, H heads, E inner channels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passes.attention_core import AttentionCore, InnerNorm, with_part

NORMS = (nn.LayerNorm, nn.RMSNorm)
"""What may stand between the stream and a sublayer."""
Norm = nn.LayerNorm | nn.RMSNorm

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "hardswish": F.hardswish,
    "sigmoid": torch.sigmoid,
    "identity": lambda x: x,
}


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
    def without_inner_norm(self) -> Sublayer:
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

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.out(self.inner(x))
        return added

    def _out_config(self) -> list[int] | None:
        return None if self.out.bias is None else list(self.out.bias.shape)


class Attention(Sublayer):
    """Multi-head self-attention: softmax(scale · Q Kᵀ) V for each head, then the projection.

    head_dim: channels of a head's queries and keys; value_dim: of its values. biases: which of q, k, v have one. core:
    the settings of what else happens to queries, keys and scores, see `passes.attention_core.AttentionCore.config`.
    """

    kind = "head"
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
        super().__init__()
        self.units, self.channels = heads, value_dim
        self.head_dim = head_dim
        self.core = AttentionCore.from_config(scale, core or {})
        self.q = nn.Linear(width, heads * head_dim, bias=biases[0])
        self.k = nn.Linear(width, heads * head_dim, bias=biases[1])
        self.v = nn.Linear(width, heads * value_dim, bias=biases[2])
        self.out = Projection(heads * value_dim, width, out_bias)

    @property
    def scale(self) -> float:
        return self.core.scale

    @property
    def inner_norm(self) -> InnerNorm | None:
        return self.core.out_norm

    def without_inner_norm(self) -> Attention:
        return with_part(self, "core", with_part(self.core, "out_norm", None))

    def inner(self, x: Tensor) -> Tensor:
        q, k, v = (project(x).unflatten(-1, (self.units, -1)).transpose(1, 2) for project in self.linears)
        heads: Tensor = self.core(q, k, v)
        return heads

    def config(self) -> dict[str, Any]:
        core = self.core.config()
        return {
            "width": self.q.in_features,
            "heads": self.units,
            "head_dim": self.head_dim,
            "value_dim": self.channels,
            "scale": self.scale,
            "biases": [linear.bias is not None for linear in self.linears],
            "out_bias": self._out_config(),
            **({"core": core} if core else {}),
        }

    def extra_repr(self) -> str:
        values = "" if self.channels == self.head_dim else f", values {self.channels}"
        biases = _biases(q=self.q, k=self.k, v=self.v, out=self.out)
        heads = "1 head" if self.units == 1 else f"{self.units} heads"
        extras = "".join(f", {extra}" for extra in self.core.extras)
        return f"{heads} of {self.head_dim}{values}, scale {self.scale:.4g}{extras}, {biases}"


class Neurons(Sublayer):
    """An MLP of any kind: a unit is one hidden neuron, a function of its own rows alone."""

    kind = "neuron"
    channels = 1
    activation: str
    hidden_norm: InnerNorm | None

    @property
    def inner_norm(self) -> InnerNorm | None:
        return self.hidden_norm

    @abstractmethod
    def activate(self, *hidden: Tensor) -> Tensor:
        """What the linear maps give (..., hidden each) -> (..., hidden), neuron by neuron."""

    def inner(self, x: Tensor) -> Tensor:
        hidden = self.activate(*(linear(x) for linear in self.linears))
        return hidden if self.hidden_norm is None else self.hidden_norm(hidden)

    def without_inner_norm(self) -> Neurons:
        return with_part(self, "hidden_norm", None)

    def _norm_config(self) -> dict[str, Any]:
        return {} if self.hidden_norm is None else {"hidden_norm": self.hidden_norm.config()}

    def _norm_repr(self) -> str:
        return "" if self.hidden_norm is None else f", {self.hidden_norm.kind} norm of all"


class Mlp(Neurons):
    """activation(x W₁ᵀ + b₁), then the projection."""

    reads = ("fc1",)

    def __init__(
        self,
        width: int,
        hidden: int,
        activation: str,
        bias: bool = True,
        out_bias: tuple[int, ...] | None = None,
        hidden_norm: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.units = hidden
        self.activation = activation
        self.fc1 = nn.Linear(width, hidden, bias=bias)
        self.out = Projection(hidden, width, out_bias)
        self.hidden_norm = None if hidden_norm is None else InnerNorm(**hidden_norm)

    def activate(self, *hidden: Tensor) -> Tensor:
        return ACTIVATIONS[self.activation](hidden[0])

    def config(self) -> dict[str, Any]:
        return {
            "width": self.fc1.in_features,
            "hidden": self.units,
            "activation": self.activation,
            "bias": self.fc1.bias is not None,
            "out_bias": self._out_config(),
            **self._norm_config(),
        }

    def extra_repr(self) -> str:
        return f"{self.units} neurons, {self.activation}{self._norm_repr()}, {_biases(fc1=self.fc1, out=self.out)}"


class GatedMlp(Neurons):
    """activation(x W_gᵀ + b_g) ⊙ (x W_uᵀ + b_u), then the projection: GLU and its variants (Shazeer 2020,
    arXiv:2002.05202). A unit is a neuron's gate and value together."""

    reads = ("gate", "up")

    def __init__(
        self,
        width: int,
        hidden: int,
        activation: str,
        biases: tuple[bool, bool] = (True, True),
        out_bias: tuple[int, ...] | None = None,
        hidden_norm: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.units = hidden
        self.activation = activation
        self.gate = nn.Linear(width, hidden, bias=biases[0])
        self.up = nn.Linear(width, hidden, bias=biases[1])
        self.out = Projection(hidden, width, out_bias)
        self.hidden_norm = None if hidden_norm is None else InnerNorm(**hidden_norm)

    def activate(self, *hidden: Tensor) -> Tensor:
        gate, up = hidden
        return ACTIVATIONS[self.activation](gate) * up

    def config(self) -> dict[str, Any]:
        return {
            "width": self.gate.in_features,
            "hidden": self.units,
            "activation": self.activation,
            "biases": [linear.bias is not None for linear in self.linears],
            "out_bias": self._out_config(),
            **self._norm_config(),
        }

    def extra_repr(self) -> str:
        biases = _biases(gate=self.gate, up=self.up, out=self.out)
        return f"{self.units} gated neurons, {self.activation}{self._norm_repr()}, {biases}"


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


def _biases(**maps: nn.Linear | Projection) -> str:
    """Which linear maps have a bias; with ×T a bias for each token."""
    named = [
        f"{name}×T" if linear.bias.dim() == 2 else name for name, linear in maps.items() if linear.bias is not None
    ]
    return f"bias of {' '.join(named)}" if named else "no bias"
