"""Models that return more than one tensor: which of them is the answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn

from vitfx.support.errors import UserError

LOGITS = "logits"
"""The output that is taken where a model has one of this name."""
_LISTED = 8


class OneOutput(nn.Module):
    """A model that returns a record, a dict or a tuple, of which one tensor is the answer: (B, C, H, W) -> (B, …)."""

    def __init__(self, model: nn.Module, name: str) -> None:
        """name: see `outputs_of`."""
        super().__init__()
        self.model, self.name = model, name

    def forward(self, images: Tensor) -> Tensor:
        return outputs_of(self.model(images))[self.name]


def outputs_of(answer: Any) -> dict[str, Tensor]:
    """The tensors in a model's answer by name: a record's or a dict's own names, positions in tuples and lists from 0,
    and inside one another with dots: hidden_states.3. A tensor alone has none."""
    return {} if isinstance(answer, Tensor) else dict(_named(answer, ""))


def _named(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    for key, part in _parts(value):
        yield from _named(part, f"{name}.{key}" if name else str(key))


def _parts(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        yield from zip(value._fields, value, strict=True)
    elif isinstance(value, tuple | list):
        yield from enumerate(value)
    elif is_dataclass(value):
        yield from ((field.name, getattr(value, field.name)) for field in fields(value))
    elif not isinstance(value, Tensor) and hasattr(value, LOGITS):
        yield LOGITS, value.logits


def choose_output(answer: Any, count: int, asked: str | None) -> tuple[str | None, str | None]:
    """The name of the output that is the model's answer, None where it returns that alone; and what is to be said.

    answer: to `count` images. asked: by the user. Raises UserError where nobody says which of several it is.
    """
    every = outputs_of(answer)
    if isinstance(answer, Tensor):
        if asked is not None:
            raise UserError(f"the model returns one tensor, so `output` {asked} is not needed: leave it out")
        return None, None
    each = {name: value for name, value in every.items() if value.dim() and len(value) == count}
    listed = ", ".join(f"{name} {tuple(value.shape)}" for name, value in list(each.items())[:_LISTED])
    listed += f" and {len(each) - _LISTED} more" if len(each) > _LISTED else ""
    if asked is not None and asked not in each:
        known = f"it returns {listed} for {count} images" if each else "it returns no tensor with an answer an image"
        raise UserError(f"the model has no `output` {asked}: {known}, give one of their names")
    if asked is None and not each:
        return None, None
    name = asked or (LOGITS if LOGITS in each else next(iter(each)))
    if asked is None and name != LOGITS and len(each) > 1:
        raise UserError(f"the model returns {listed} for {count} images: choose one with `output`")
    return name, (f"output {name}: the model returns {listed} for {count} images" if len(each) > 1 else None)
