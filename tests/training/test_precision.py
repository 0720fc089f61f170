"""vitfx.training.precision: what is asked for is what is calculated with; auto takes what a CPU shows to be faster."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import vitfx.training.precision
from vitfx.training.precision import autocast, make_scaler, pick_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("precision", "kind"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_layers_calculate_in_what_was_asked_for(precision: str, kind: torch.dtype) -> None:
    model = nn.Linear(4, 4)
    assert pick_precision(precision, model, torch.zeros(2, 4))[0] == precision
    with autocast(CPU, precision):
        assert model(torch.zeros(2, 4)).dtype == kind
    assert make_scaler(CPU, precision).is_enabled() == (precision == "fp16")


@pytest.mark.parametrize(("share", "precision"), [(0.5, "bf16"), (0.89, "bf16"), (0.91, "fp32"), (2.0, "fp32")])
def test_auto_takes_bf16_where_it_pays(monkeypatch: pytest.MonkeyPatch, share: float, precision: str) -> None:
    monkeypatch.setattr(vitfx.training.precision, "_time_share", lambda *_: share)
    found, why = pick_precision("auto", nn.Linear(4, 4), torch.zeros(2, 4))
    assert found == precision
    assert why.startswith(f"precision: {precision}")
    assert f"{share:.2f}" in why


def test_measuring_leaves_the_model_alone() -> None:
    model = nn.Linear(4, 3).eval()
    before = model.weight.clone()
    share = vitfx.training.precision._time_share(model, torch.randn(5, 4))
    assert 0 < share < float("inf")
    assert model.weight.grad is None
    assert not model.training
    assert torch.equal(model.weight, before)
