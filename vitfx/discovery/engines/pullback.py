"""Gradients back through a run of what is downstream of a change, on the edge and the qkv graph.

Every step keeps the graph of its own computation alone. What flows from step to step, a gradient by each writer's
change, is added up in the piece of memory that the run itself has used: left to autograd, the ever longer stack of
changes would be copied at every step, forwards and backwards.

Shapes: n images of a batch, T tokens, D width, K classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vitfx.discovery.engines.partial_sublayers import Step


class Pullback:
    """A run that remembers its steps: a `vitfx.discovery.engines.second_order.Tracked`."""

    def __init__(self, seen: Tensor, change: Callable[[Tensor], Tensor], memory: Tensor, tokens: Tensor | None) -> None:
        """seen: what the reader reads, (n, T, D). change: what the rows' outputs change by for it, (rows, n, T, D).
        memory: numbers enough for all rows' changes. tokens: those that go on behind the last attention."""
        self._seen = seen.detach().requires_grad_()
        with torch.enable_grad():
            self._changes = change(self._seen)
        self._memory, self._tokens = memory, tokens
        self._trail: list[tuple[Step, Tensor, Tensor]] = []
        self.logits = torch.empty(0)

    @property
    def changes(self) -> Tensor:
        return self._changes.detach()

    def follow(self, step: Step, read: Tensor, make: Callable[[Step, Tensor], Tensor]) -> Tensor:
        """Takes a step, (readers, n, T, D) -> (rows, n, T, D), for the logits (n, K), and remembers it."""
        read = read.detach().requires_grad_()
        with torch.enable_grad():
            made = make(step, read)
        self._trail.append((step, read, made))
        return made.detach()

    @torch.no_grad()
    def back(self, cotangent: Tensor) -> Tensor:
        *steps, (last, read, made) = self._trail
        gradient = _back(made, read, cotangent)
        # Of the few tokens that the logits read: the memory is for what it widens to.
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
        """With zeros for the tokens that are not carried further, where `like` has them."""
        if stack.shape[2] == like.shape[2]:
            return stack
        size = torch.Size((len(stack), *like.shape[1:]))
        whole = self._memory[: size.numel()].view(size).zero_()
        whole[:, :, self._tokens] = stack
        return whole


def _back(made: Tensor, read: Tensor, cotangent: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(made, read, cotangent, retain_graph=True)
    return gradient
