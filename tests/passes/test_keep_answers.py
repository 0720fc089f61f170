"""Logits that are left out: whose weights go, and what stays where no weights are seen to make them."""

from __future__ import annotations

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from passes.base import run_passes
from passes.keep_answers import LOG_SUM_EXP, KeepAnswers, forget_kept
from passes.stream import is_canonical
from tests.support.checks import assert_equal, assert_trainable
from tests.support.families import images, make
from vitfx.graph.chosen_classes import ChosenClasses
from vitfx.graph.trace import to_canonical
from vitfx.images.selection import Selection
from vitfx.models.graph_json import encode

PIXELS = images(3)
_SMALL = {"img_size": 32, "patch_size": 16, "depth": 1, "num_heads": 2, "embed_dim": 16, "num_classes": 7}
KEPT = (5, 0, 3)


class Behind(nn.Module):
    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.model, self.last = VisionTransformer(**_SMALL), last

    def forward(self, pixels: Tensor) -> Tensor:
        return self.last(self.model(pixels))


class Texts(nn.Module):
    """Compared with the embeddings of texts, as CLIP does."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.texts = nn.Parameter(torch.tensor(1.5)), nn.Parameter(torch.randn(9, 7))

    def forward(self, answers: Tensor) -> Tensor:
        texts = self.texts / self.texts.norm(dim=1, keepdim=True)
        return self.scale.exp() * (answers @ texts.t())


class Products(nn.Module):
    """A projection written out, and a temperature for each class."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(7, 8)), nn.Parameter(torch.randn(8))
        self.register_buffer("temperature", torch.rand(8) + 0.5)

    def forward(self, answers: Tensor) -> Tensor:
        return torch.tanh(torch.addmm(self.bias, answers, self.weight) / self.temperature)


HEADS = {
    "linear": lambda: make("vitfx"),
    "two tokens": lambda: make("timm-distilled"),
    "texts": lambda: Behind(Texts()),
    "written out": lambda: Behind(Products()),
    "deep": lambda: Behind(nn.Sequential(nn.Tanh(), nn.Linear(7, 12), nn.GELU(), nn.Linear(12, 8, bias=False))),
}


def kept(module: nn.Module, positions: tuple[int, ...] = KEPT) -> tuple[nn.Module, nn.Module, tuple[str, ...]]:
    """The canonical graph, and what is left of it."""
    graph_module = to_canonical(module.eval(), PIXELS[:2]).graph_module
    result = run_passes(graph_module, [KeepAnswers(positions, PIXELS[:2])])
    is_canonical(result.graph_module)
    encode(result.graph_module)
    return graph_module, result.graph_module, result.notes


@pytest.mark.parametrize("name", HEADS)
def test_the_rows_of_the_others_go(name: str) -> None:
    torch.manual_seed(1)
    whole, part, notes = kept(HEADS[name]())
    assert not notes
    with torch.no_grad():
        assert_equal(part(PIXELS), whole(PIXELS)[:, list(KEPT)], 1e-6)
    before, after = (dict(graph_module.named_parameters()) for graph_module in (whole, part))
    if name != "texts":  # Their lengths are still those of all.
        assert before.keys() == after.keys()
        assert sum(map(torch.numel, after.values())) < sum(map(torch.numel, before.values()))
    assert_trainable(part, PIXELS)
    forget_kept(part)
    again = run_passes(part, [KeepAnswers((2, 0), PIXELS[:2])]).graph_module
    with torch.no_grad():
        assert_equal(again(PIXELS), whole(PIXELS)[:, [3, 5]], 1e-6)


@pytest.mark.parametrize("last", [nn.Softmax(dim=1), nn.Softmax(dim=-1), nn.LogSoftmax(dim=-1)])
def test_a_softmax_is_over_those_that_are_left(last: nn.Module) -> None:
    module = Behind(last)
    _, part, notes = kept(module)
    with torch.no_grad():
        assert_equal(part(PIXELS), last(module.model(PIXELS)[:, list(KEPT)]), 1e-5)
    assert not notes


def test_what_mixes_the_answers_is_computed_whole() -> None:
    torch.manual_seed(1)
    whole, part, (note,) = kept(Behind(nn.LayerNorm(7)))
    with torch.no_grad():
        assert_equal(part(PIXELS), whole(PIXELS)[:, list(KEPT)], 1e-6)
    assert note.startswith("keep_answers: the answers are picked behind layer_norm")
    assert sum(weight.numel() for weight in part.parameters()) == sum(weight.numel() for weight in whole.parameters())


@pytest.mark.parametrize(
    ("name", "positions"), [("linear", KEPT), ("texts", (0, 1)), ("written out", (7, 6, 5, 4, 3, 2, 1, 0))]
)
def test_twice_is_once(name: str, positions: tuple[int, ...]) -> None:
    whole = to_canonical(HEADS[name]().eval(), PIXELS[:2]).graph_module
    keep = KeepAnswers(positions, PIXELS[:2])
    once = run_passes(whole, [keep])
    twice = run_passes(once.graph_module, [keep])
    assert once.changed and not twice.changed and not twice.notes
    with torch.no_grad():
        answers = once.graph_module(PIXELS)
        assert torch.equal(twice.graph_module(PIXELS), answers)
    assert not run_passes(once.graph_module, [KeepAnswers(tuple(range(answers.shape[1])), PIXELS[:2])]).changed


def test_a_graph_that_was_cut_is_a_model_of_its_own() -> None:
    """Positions are among what is left, though they are those of the first choice."""
    module = make("timm").eval()
    chosen = ChosenClasses(module, (1, 0), Selection((1, 0), 7, None), PIXELS[:2])
    first = to_canonical(chosen, PIXELS[:2]).graph_module
    again = ChosenClasses(first, (1, 0), Selection((0, 1), 7, None), PIXELS[:2])
    with torch.no_grad():
        assert_equal(to_canonical(again, PIXELS[:2]).graph_module(PIXELS), module(PIXELS)[:, [0, 1]], 1e-5)


@pytest.mark.parametrize("last", [None, nn.Softmax(dim=1), nn.LogSoftmax(dim=-1), nn.LayerNorm(7)])
def test_one_answer_for_all_others(last: nn.Module | None) -> None:
    """By it, probabilities stay what they are among all."""
    torch.manual_seed(1)
    model = VisionTransformer(**_SMALL) if last is None else Behind(last)
    chosen = ChosenClasses(model.eval(), KEPT, Selection(KEPT, 7, None, "other"), PIXELS[:2]).eval()
    part = to_canonical(chosen, PIXELS[:2]).graph_module
    encode(part)
    with torch.no_grad():
        got, whole = part(PIXELS), model(PIXELS)
        assert_equal(got, chosen(PIXELS), 1e-6)
        if not isinstance(last, nn.Softmax):
            got, whole = got.softmax(1), whole.softmax(1)
        assert_equal(got[:, :3], whole[:, list(KEPT)], 1e-6)
        assert_equal(got.sum(1), torch.ones(3), 1e-6)
    assert_trainable(part, PIXELS)
    keep = KeepAnswers(KEPT, PIXELS[:2], LOG_SUM_EXP)
    once = run_passes(to_canonical(model, PIXELS[:2]).graph_module, [keep]).graph_module
    assert not run_passes(once, [keep]).changed
