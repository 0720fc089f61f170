"""A canonical graph in float64, one sublayer at a time: a copy of the whole would take twice the model's memory."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter


def logits_in_float64(graph_module: GraphModule, pixels: Tensor) -> Tensor:
    """(B, C, H, W) of any type -> (B, K), from weights that are converted module by module and then dropped."""
    with torch.no_grad():
        logits: Tensor = _InFloat64(graph_module).run(pixels.double())
    return logits


class _InFloat64(Interpreter):
    def fetch_attr(self, target: str) -> Any:
        value = super().fetch_attr(target)
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module: nn.Module = self.fetch_attr(target)
        return copy.deepcopy(module).double()(*args, **kwargs)
