"""Gradient flow: how large the gradients of each layer are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class GradientFlow:
    """Mean and greatest absolute gradient of each layer over an epoch.

    A layer is a module with parameters of its own, biases included; layers are in the order of the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers: dict[str, list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                # A parameter of the model itself, such as its positions, counts as a layer.
                self._layers.setdefault(name.rpartition(".")[0] or name, []).append(parameter)
        self._sum = torch.zeros(len(self._layers), dtype=torch.float64)
        self._greatest = torch.zeros_like(self._sum)
        self._count = 0

    @property
    def layers(self) -> list[str]:
        return list(self._layers)

    @torch.no_grad()
    def measure(self) -> None:
        """Takes the gradients as they are now, unless some are infinite: the scaler skips such a step."""
        rows = [_mean_and_greatest(parameters) for parameters in self._layers.values()]
        measured = torch.stack(rows).double().cpu()
        if measured.isfinite().all():
            self._sum += measured[:, 0]
            self._greatest = torch.maximum(self._greatest, measured[:, 1])
            self._count += 1

    def take(self) -> dict[str, list[float]]:
        """`mean` and `max` of each layer over the measurements since the last call; empty where there were none."""
        flow = {"mean": (self._sum / self._count).tolist(), "max": self._greatest.tolist()} if self._count else {}
        self._sum, self._greatest, self._count = torch.zeros_like(self._sum), torch.zeros_like(self._sum), 0
        return flow

    def state_dict(self) -> dict[str, Any]:
        return {"sum": self._sum, "greatest": self._greatest, "count": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sum, self._greatest, self._count = state["sum"], state["greatest"], state["count"]


def _mean_and_greatest(parameters: list[nn.Parameter]) -> Tensor:
    gradients = [parameter.grad.abs() for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return torch.zeros(2, device=parameters[0].device)
    total = torch.stack([gradient.sum() for gradient in gradients]).sum()
    greatest = torch.stack([gradient.max() for gradient in gradients]).max()
    return torch.stack([total / sum(parameter.numel() for parameter in parameters), greatest])
