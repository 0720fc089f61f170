"""vitfx.graph.canonical: models that can't be proved about are refused, and what is told of their weights is true."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from passes.plan import DeletionPlan, SublayerDeletion
from tests.support.recover_runs import Heard
from vitfx.graph.canonical import check_answers_differ, read_module
from vitfx.graph.trace import to_canonical
from vitfx.graph.verify import VerificationError, rewrite
from vitfx.models.vit import ViT
from vitfx.support.errors import UserError
from vitfx.support.progress import Silent

SIZES = {"image_size": 8, "patch_size": 4, "channels": 3, "classes": 3, "width": 8, "depth": 2, "heads": 2, "mlp": 8}


class Noisy(nn.Module):
    """Draws random numbers in eval mode too."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.model, self.kind = ViT(**SIZES), kind

    def forward(self, images: Tensor) -> Tensor:
        if self.kind == "images":
            return self.model(images + torch.randn_like(images))
        if self.kind == "dropout":
            return nn.functional.dropout(self.model(images), 0.5, training=True)
        if self.kind == "a little":
            return self.model(images) * (1 + 1e-3 * torch.rand(3))
        return self.model(images) + torch.rand(3)


@pytest.mark.parametrize("kind", ["images", "dropout", "logits", "a little"])
def test_random_models_are_refused(kind: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(UserError, match="two calls differ for the same images"):
        read_module(Noisy(kind).eval(), torch.randn(4, 3, 8, 8), Silent())


@pytest.mark.parametrize("shared", [True, False])
def test_only_shared_weights_are_told(shared: bool) -> None:
    torch.manual_seed(0)
    model = ViT(**SIZES).eval()
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.2)
    if shared:
        model.blocks[1] = model.blocks[0]
    notes = read_module(model, torch.randn(4, 3, 8, 8), Silent()).notes
    assert any("shares weights" in note for note in notes) == shared


def test_what_can_be_pruned_is_told() -> None:
    torch.manual_seed(0)
    model, heard = ViT(**SIZES).eval(), Heard()
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.2)
    graph_module = read_module(model, torch.randn(4, 3, 8, 8), heard).graph_module
    assert heard.said[1].endswith("parameters; 2 attentions of 2 heads and 2 MLPs of 8 neurons can be pruned")
    plan = DeletionPlan((SublayerDeletion("m1", "neuron", (1, 2), 8), SublayerDeletion("a0", "head", (0, 1), 2)))
    smaller, heard = rewrite(graph_module, plan).graph_module.eval(), Heard()
    read_module(smaller, torch.randn(4, 3, 8, 8), heard)
    assert heard.said[1].endswith("parameters; 1 attention of 2 heads and 2 MLPs of 6 to 8 neurons can be pruned")


def test_zero_key_biases_are_not_shared() -> None:
    torch.manual_seed(0)
    beit = timm.models.Beit(img_size=8, patch_size=4, embed_dim=8, depth=2, num_heads=2, num_classes=3).eval()
    for weight in beit.parameters():
        nn.init.normal_(weight, std=0.2)
    notes = read_module(beit, torch.randn(4, 3, 8, 8), Silent()).notes
    assert not any("shares weights" in note for note in notes)


@pytest.mark.parametrize("factor", [1.001, 0.999])
def test_a_graph_that_answers_otherwise_than_its_model_is_refused(
    factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def off(*arguments: object) -> object:
        traced = to_canonical(*arguments)
        with torch.no_grad():
            for weight in traced.graph_module.head.parameters():
                weight.mul_(factor)
        return traced

    torch.manual_seed(0)
    model = ViT(**SIZES).eval()
    with torch.no_grad():
        for weight in model.parameters():
            nn.init.normal_(weight, std=0.2)
        list(model.parameters())[-1].fill_(9)
    monkeypatch.setattr("vitfx.graph.canonical.to_canonical", off)
    with pytest.raises(VerificationError, match=r"logits differ from the model's by 1\.\de-03 of their greatest"):
        read_module(model, torch.randn(4, 3, 8, 8), Silent())


def test_a_head_that_was_never_trained_is_refused() -> None:
    model = ViT(**SIZES).eval()
    with torch.no_grad():
        for weight in list(model.parameters())[-2:]:
            weight.zero_()
    with pytest.raises(UserError, match="the model's logits are zero for every image: its head was never trained"):
        read_module(model, torch.randn(4, 3, 8, 8), Silent())


def test_answers_that_hardly_differ_say_something() -> None:
    answers = torch.ones(3, 2)
    with pytest.raises(UserError, match="the same answer for all 3 calibration images"):
        check_answers_differ(answers)
    answers[2, 1] += 1e-3
    check_answers_differ(answers)
