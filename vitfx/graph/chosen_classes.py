"""A model of some of its classes: the others' logits are left out."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from passes.base import PassError, run_passes
from passes.keep_answers import KeepAnswers, forget_kept
from vitfx.graph.divergence import are_distributions
from vitfx.images.selection import Selection
from vitfx.support.errors import UserError


class ChosenClasses(nn.Module):
    """(B, C, H, W) -> (B, K): the answers for some classes; probabilities and their logarithms among these alone."""

    positions: Tensor  #: int64 (K,), of the classes among the model's answers

    def __init__(self, model: nn.Module, positions: tuple[int, ...], chosen: Selection, example: Tensor) -> None:
        """positions: among the model's logits. chosen: the same classes, among those of the model that it came from.
        example: images, whose answers tell probabilities from logits.

        Raises UserError for answers that are none of classes.
        """
        super().__init__()
        with torch.no_grad():
            answers = model(example)
        if answers.dim() != 2 or answers.shape[1] < 2:
            raise UserError(
                f"`classes` is for models of classes, and this one's answers to {len(example)} images are "
                f"{tuple(answers.shape)}: leave it out"
            )
        self.model, self.chosen = model, chosen
        self.shares, self.log_shares = are_distributions(answers), are_distributions(answers.exp())
        self.register_buffer("positions", torch.tensor(positions))

    def forward(self, images: Tensor) -> Tensor:
        chosen: Tensor = self.model(images).index_select(1, self.positions)
        if self.shares:
            return chosen / chosen.sum(1, keepdim=True)
        return chosen.log_softmax(1) if self.log_shares else chosen


def keep_classes(canonical: GraphModule, chosen: ChosenClasses, example: Tensor) -> tuple[GraphModule, tuple[str, ...]]:
    """The canonical graph of the model that classes were chosen of, with these alone, and notes. Raises UserError."""
    try:
        result = run_passes(canonical, [KeepAnswers(tuple(chosen.positions.tolist()), example)], consume=True)
    except PassError as error:
        raise UserError(f"`classes` can't be cut out of the model: {error.reason}") from error
    forget_kept(result.graph_module)
    return result.graph_module, result.notes
