"""Gradients back through the run of what is downstream of a change, on the edge and the qkv graph.

Each step keeps the autograd graph of its own computation alone. What flows between steps, a gradient by each writer's
change, is added up in the memory that the run itself used. Autograd would copy the ever longer stack of changes at
every step, forwards and backwards.

Shapes: n images of a batch, T tokens, D width, K classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vitfx.discovery.engines.partial_sublayers import DownstreamStep


class Pullback:
    """A run that remembers its steps: a `vitfx.discovery.engines.second_order.TrackedLogits`."""

    def __init__(self, seen: Tensor, change: Callable[[Tensor], Tensor], memory: Tensor, tokens: Tensor | None) -> None:
        """
        seen: what the readers see.
        change: from that to the change of the rows' outputs, (rows, n, T, D).
        memory: large enough for all rows' changes.
        tokens: those that are carried on behind the last attention.
        """
        self._seen = seen.detach().requires_grad_()
        with torch.enable_grad():
            self._changes = change(self._seen)
        self._memory, self._tokens = memory, tokens
        self._trail: list[tuple[DownstreamStep, Tensor, Tensor]] = []
        self.logits = torch.empty(0)

    @property
    def changes(self) -> Tensor:
        return self._changes.detach()

    def follow(self, step: DownstreamStep, read: Tensor, make: Callable[[DownstreamStep, Tensor], Tensor]) -> Tensor:
        """Takes a step and remembers it: (readers, n, T, D) -> (rows, n, T, D), and of the last step (n, K)."""
        read = read.detach().requires_grad_()
        with torch.enable_grad():
            made = make(step, read)
        self._trail.append((step, read, made))
        return made.detach()

    @torch.no_grad()
    def back(self, cotangent: Tensor) -> Tensor:
        *steps, (last, read, made) = self._trail
        gradient = _back(made, read, cotangent)
        # A tensor of its own, for the few tokens that the logits read: `memory` is for what it widens to.
        stack = gradient.new_empty(last.mask.shape[1], *gradient.shape[1:])
        torch.mm(last.mask.T, gradient.flatten(1), out=stack.flatten(1))
        for step, read, made in reversed(steps):
            stack = self._as_wide(stack, made)
            before = len(stack) - len(made)
            gradient = _back(made, read, stack[before:])
            stack = self._as_wide(stack[:before], gradient)
            stack.flatten(1).addmm_(step.mask.T, gradient.flatten(1))
        return _back(self._changes, self._seen, self._as_wide(stack, self._changes))

    def _as_wide(self, stack: Tensor, like: Tensor) -> Tensor:
        """With zeros for tokens that are not carried on, if `like` has these."""
        if stack.shape[2] == like.shape[2]:
            return stack
        size = torch.Size((len(stack), *like.shape[1:]))
        whole = self._memory[: size.numel()].view(size).zero_()
        whole[:, :, self._tokens] = stack
        return whole


def _back(made: Tensor, read: Tensor, cotangent: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(made, read, cotangent, retain_graph=True)
    return gradient
