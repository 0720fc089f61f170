"""Which tokens of the stream a classifier reads: behind the last attention, no other matters."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from passes.attention_core import with_part
from passes.dialect import AddConstant, Attention, Sublayer
from passes.mlp import Neurons
from passes.norms import NORMS

Module = TypeVar("Module", bound=nn.Module)
_PROBES = 3


def tokens_read(tail: Callable[[Tensor], Tensor], stream: Tensor) -> tuple[int, ...]:
    """The tokens, ascending, on which `tail` of a stream (B, T, D) depends: for a class token's classifier (0,).

    Gradients find them. If changing the others changes a single bit of the logits, all tokens count as read.
    stream: any example, for its shape, type and device.
    """
    everything = tuple(range(stream.shape[1]))
    read = torch.zeros(stream.shape[1], dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)

    def noise() -> Tensor:
        return torch.randn(stream.shape, generator=generator).to(stream)

    with torch.enable_grad():
        for _ in range(_PROBES):
            probe = noise().requires_grad_()
            logits = tail(probe)
            weights = torch.randn(logits.shape, generator=generator).to(logits)
            (gradient,) = torch.autograd.grad((logits * weights).sum(), probe)
            read |= gradient.ne(0).any(dim=-1).any(dim=0).cpu()
    with torch.no_grad():
        probe, other = noise(), noise() * 100
        other[:, read] = probe[:, read]
        if not torch.equal(tail(probe), tail(other)):
            return everything
    return tuple(torch.nonzero(read).flatten().tolist())


def by_token(module: nn.Module | None) -> bool:
    """The module computes each token's output from that token alone."""
    return isinstance(module, (Neurons, AddConstant, *NORMS))


def cut_tokens(module: Module, tokens: Tensor) -> Module:
    """The module with its constants for each token cut to these tokens; itself where it has none. An attention is then
    asked by these tokens alone."""
    if isinstance(module, Attention) and (core := module.core.of_queries(tokens)) is not module.core:
        module = with_part(module, "core", core)
    path = "value" if isinstance(module, AddConstant) else "out.bias" if isinstance(module, Sublayer) else ""
    constant = dict(module.named_parameters()).get(path)
    if constant is None or constant.dim() == 1:
        return module
    result = copy.deepcopy(module)
    holder = result if isinstance(result, AddConstant) else result.get_submodule("out")
    setattr(holder, path.rpartition(".")[2], nn.Parameter(constant.detach()[tokens]))
    return result
