"""Rules of layer-wise relevance propagation: stages that compute what the model does, with gradients of their own.

A gradient is what an infinitesimal change does, an ablation no such change. LRP's rules hold what a nonlinear step
multiplies by constant, [·], so that backward passes give what it carries of its whole input (Rezaei Jafari et al. 2025,
"RelP", arXiv:2508.21258, section 3 and its authors' code):

    norms           x / [σ(x)], the LN rule (Ali et al. 2022, arXiv:2202.07304)
    activations     x · [f(x) / x], the identity rule (Rezaei Jafari et al. 2024, arXiv:2406.07592)
    gated products  (g · u + [g · u]) / 2, the half rule (Arras et al. 2019), which shares relevance between the factors

Attention patterns keep their gradients, as in the authors' code by default, since queries and keys would otherwise
have no relevance. So does what is not recognised.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from passes.attention_core import L2, LAYER, RMS, HeadNorm, InnerNorm, with_part
from passes.dialect import Heads, Sublayer
from passes.mlp import Neurons
from passes.norms import NORMS, NormOnNorm, shift_of
from vitfx.circuits.edge_graph import EdgeGraph
from vitfx.graph.stages import Stage

_LEAST = 1e-6
"""Of an activation's input, so that f(x) / x is finite: the authors' stabiliser."""


def by_rules(graph: EdgeGraph) -> EdgeGraph:
    """The graph with the same parameters, writers and readers, whose runs have these gradients."""
    made = copy.copy(graph)
    made.stages = [_stage(stage) for stage in graph.stages]
    return made


class LinearNorm(nn.Module):
    """A norm whose scale is a constant for gradients."""

    def __init__(self, kind: str, eps: float | None, weight: Tensor | None, shift: Tensor | None) -> None:
        """kind: of `passes.attention_core.NORMS`. eps: None for that of the input's type, as in `torch.nn.RMSNorm`."""
        super().__init__()
        self.kind, self.eps, self.weight, self.shift = kind, eps, weight, shift

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(dim=-1, keepdim=True) if self.kind == LAYER else x
        scaled = centred / self._scale(centred.detach())
        scaled = scaled if self.weight is None else scaled * self.weight
        return scaled if self.shift is None else scaled + self.shift

    def _scale(self, centred: Tensor) -> Tensor:
        eps = torch.finfo(centred.dtype).eps if self.eps is None else self.eps
        if self.kind == L2:
            length: Tensor = torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
            return length.clamp(min=eps)
        return (centred.square().mean(dim=-1, keepdim=True) + eps).sqrt()


class RelevantNeurons(Sublayer):
    """An MLP under the identity and the half rule."""

    kind = Neurons.kind
    channels = Neurons.channels

    def __init__(self, module: Neurons) -> None:
        super().__init__()
        self.module, self.units, self.out = module, module.units, module.out
        norm = module.hidden_norm
        self.hidden_norm = nn.Identity() if norm is None else _linear(norm)

    @property
    def inner_norm(self) -> InnerNorm | None:
        return self.module.inner_norm

    def without_inner_norm(self) -> Self:
        return with_part(self, "hidden_norm", nn.Identity())

    def config(self) -> dict[str, Any]:
        return self.module.config()

    def inner(self, x: Tensor) -> Tensor:
        first, *factors = (linear(x) for linear in self.module.linears)
        hidden = self._activated(first)
        for factor in factors:
            product = hidden * factor
            hidden = (product + product.detach()) / 2
        normed: Tensor = self.hidden_norm(hidden)
        return normed

    def _activated(self, x: Tensor) -> Tensor:
        fixed = x.detach()
        with torch.no_grad():
            made = self.module.activated(fixed)
            ratio = made / torch.where(fixed < 0, fixed - _LEAST, fixed + _LEAST)
        return made + ratio * (x - fixed)


def _stage(stage: Stage) -> Stage:
    norm = None if stage.norm is None else _linear(stage.norm)
    module = stage.module
    if isinstance(module, NORMS):
        return replace(stage, module=_linear(module))
    if isinstance(module, Neurons):
        return replace(stage, norm=norm, module=RelevantNeurons(module))
    if isinstance(module, Heads):
        core = module.core
        for name in ("q_norm", "k_norm", "out_norm"):
            if (inside := getattr(core, name)) is not None:
                core = with_part(core, name, _linear(inside))
        return replace(stage, norm=norm, module=with_part(module, "core", core))
    return replace(stage, norm=norm)


def _linear(norm: nn.Module) -> nn.Module:
    if isinstance(norm, HeadNorm):
        return LinearNorm(norm.kind, norm.eps, norm.weight, norm.bias)
    assert isinstance(norm, NORMS)
    if isinstance(norm, NormOnNorm):
        return nn.Sequential(_linear(norm.first), _linear(norm.second))
    return LinearNorm(LAYER if isinstance(norm, nn.LayerNorm) else RMS, norm.eps, norm.weight, shift_of(norm))
