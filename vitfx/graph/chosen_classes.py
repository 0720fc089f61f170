"""A model of some of its classes: the others' logits are left out."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from passes.base import PassError, run_passes
from passes.keep_answers import LOG_SUM_EXP, SUM, KeepAnswers, forget_kept
from vitfx.graph.divergence import are_distributions
from vitfx.images.selection import Selection
from vitfx.support.errors import UserError


class ChosenClasses(nn.Module):
    """(B, C, H, W) -> (B, K): the answers for some classes; probabilities and their logarithms among these alone.

    Where the choice has a class for all others, that is one more answer, by whose probability an image is of them.
    """

    positions: Tensor  #: int64 (K,), of the classes among the model's answers
    others: Tensor  #: int64, of all others there, none where they have no answer

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
        others = [place for place in range(answers.shape[1]) if chosen.other is not None and place not in positions]
        self.register_buffer("others", torch.tensor(others, dtype=torch.long))

    @property
    def rest(self) -> str | None:
        """What the answer for all others is of theirs, see `KeepAnswers`."""
        return None if not len(self.others) else SUM if self.shares else LOG_SUM_EXP

    def forward(self, images: Tensor) -> Tensor:
        answers: Tensor = self.model(images)
        chosen = answers.index_select(1, self.positions)
        if self.rest is not None:
            others = answers.index_select(1, self.others)
            last = others.sum(1, keepdim=True) if self.shares else others.logsumexp(1, keepdim=True)
            chosen = torch.cat([chosen, last], 1)
        if self.shares:
            return chosen / chosen.sum(1, keepdim=True)
        return chosen.log_softmax(1) if self.log_shares else chosen


def keep_classes(canonical: GraphModule, chosen: ChosenClasses, example: Tensor) -> tuple[GraphModule, tuple[str, ...]]:
    """The canonical graph of the model that classes were chosen of, with these alone, and notes. Raises UserError."""
    try:
        keep = KeepAnswers(tuple(chosen.positions.tolist()), example, chosen.rest)
        result = run_passes(canonical, [keep], consume=True)
    except PassError as error:
        raise UserError(f"`classes` can't be cut out of the model: {error.reason}") from error
    forget_kept(result.graph_module)
    return result.graph_module, result.notes
