"""Which tokens of the stream a classifier reads: behind the last mixing of tokens, no other matters."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_PROBES = 3


def tokens_read(tail: Callable[[Tensor], Tensor], stream: Tensor) -> tuple[int, ...]:
    """The tokens, ascending, on which `tail` of a stream (B, T, D) depends: for a class token's classifier (0,).

    Found by gradients, and believed only if the others can be anything without changing a bit of the logits; all tokens
    otherwise. stream: any example; only its shape, type and device are used.
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
