"""MLPs in the ViT dialect: plain and gated.

Shapes: B images, T tokens, D the width of the stream.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F

from passes.attention_core import InnerNorm, with_part
from passes.dialect import Projection, Sublayer, biases_of

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


Activation = str | GraphModule
"""A name in `ACTIVATIONS`, or a graph of one input that is elementwise and the same for every neuron."""


class Neurons(Sublayer):
    """An MLP of any kind: a unit is one hidden neuron, a function of its own rows alone."""

    kind = "neuron"
    channels = 1
    activation: Activation
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

    def without_inner_norm(self) -> Self:
        return with_part(self, "hidden_norm", None)

    def activated(self, x: Tensor) -> Tensor:
        """The activation function alone, elementwise."""
        made: Tensor = ACTIVATIONS[self.activation](x) if isinstance(self.activation, str) else self.activation(x)
        return made

    @property
    def activation_name(self) -> str:
        """For people."""
        if isinstance(self.activation, str):
            return self.activation
        return " ".join(node.name for node in self.activation.graph.nodes if node.op == "call_function")

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
        activation: Activation,
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
        return self.activated(hidden[0])

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
        return (
            f"{self.units} neurons, {self.activation_name}{self._norm_repr()}, {biases_of(fc1=self.fc1, out=self.out)}"
        )


class GatedMlp(Neurons):
    """activation(x W_gᵀ + b_g) ⊙ (x W_uᵀ + b_u), then the projection: GLU and its variants (Shazeer 2020,
    arXiv:2002.05202). A unit is a neuron's gate and value together."""

    reads = ("gate", "up")

    def __init__(
        self,
        width: int,
        hidden: int,
        activation: Activation,
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
        return self.activated(gate) * up

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
        biases = biases_of(gate=self.gate, up=self.up, out=self.out)
        return f"{self.units} gated neurons, {self.activation_name}{self._norm_repr()}, {biases}"
