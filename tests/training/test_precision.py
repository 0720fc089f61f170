"""vitfx.training.precision: what is asked for is what is calculated with; auto takes what a CPU shows to be faster."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import vitfx.training.precision
from vitfx.training.precision import AttentionByProducts, autocast, make_scaler, pick_precision

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
    monkeypatch.setattr(vitfx.training.precision, "_product_share", lambda: 1.0)
    monkeypatch.setattr(vitfx.training.precision, "_time_share", lambda *_: share)
    found, why = pick_precision("auto", nn.Linear(4, 4), torch.zeros(2, 4))
    assert found == precision
    assert why.startswith(f"precision: {precision}")
    assert f"{share:.2f}" in why


def test_where_products_are_slow_no_step_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < vitfx.training.precision._product_share() < float("inf")
    monkeypatch.setattr(vitfx.training.precision, "_product_share", lambda: 2.5)
    found, why = pick_precision("auto", nn.Linear(5, 5), torch.zeros(2, 4))
    assert (found, why) == ("fp32", "precision: fp32, a matrix product takes 2.50 times as long in bf16 on this CPU")


def test_measuring_leaves_the_model_alone() -> None:
    model = nn.Linear(4, 3).eval()
    before = model.weight.clone()
    share = vitfx.training.precision._time_share(model, torch.randn(5, 4))
    assert 0 < share < float("inf")
    assert model.weight.grad is None
    assert not model.training
    assert torch.equal(model.weight, before)


def attend(grad: bool = True, **settings: Any) -> tuple[Tensor, ...]:
    """The result and the gradients of queries, keys and values (2, 3, T, 4) in float64."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(2, 3, tokens, 4, generator=generator, dtype=torch.float64).requires_grad_(grad)
        for tokens in (5, 7, 7)
    )
    result = F.scaled_dot_product_attention(q, k, v, **settings)
    return result, *torch.autograd.grad(result.square().sum(), (q, k, v))


ALLOWED = torch.rand(5, 7, generator=torch.Generator().manual_seed(1)) < 0.7


@pytest.mark.parametrize(
    "settings", [{}, {"scale": 0.3}, {"attn_mask": ALLOWED}, {"attn_mask": torch.randn(3, 5, 7, dtype=torch.float64)}]
)
def test_attention_by_products_is_attention(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward, with masks and scales."""
    expected = attend(**settings)
    computed = []
    by_products = vitfx.training.precision._by_products
    monkeypatch.setattr(
        vitfx.training.precision, "_by_products", lambda *args: computed.append(1) or by_products(*args)
    )
    with AttentionByProducts():
        result = attend(**settings)
    assert computed
    for ours, theirs in zip(result, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("settings", [{"is_causal": True}, {"dropout_p": 0.5}])
def test_what_products_do_not_know_is_left_to_torch(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """So are very many tokens, whose scores would fill the memory."""
    monkeypatch.delattr(vitfx.training.precision, "_by_products")
    with AttentionByProducts():
        attend(**settings)
        monkeypatch.setattr(vitfx.training.precision, "_MOST_PAIRS", 34)
        attend()


def test_attention_in_bf16_on_a_cpu_is_by_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vitfx.training.precision, "_by_products", lambda q, *_: torch.full_like(q, 7.0))
    q = torch.randn(1, 1, 3, 4)
    with autocast(CPU, "fp32"):
        assert not (F.scaled_dot_product_attention(q, q, q) == 7).any()
    with autocast(CPU, "bf16"):
        assert (F.scaled_dot_product_attention(q, q, q) == 7).all()
