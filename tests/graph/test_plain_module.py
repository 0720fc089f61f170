"""Models as training code holds them become plain copies that compute the same."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from vitfx.graph.plain_module import plain_module
from vitfx.support.errors import UserError

X = torch.linspace(-1, 1, 12).reshape(2, 6)


def small() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.9), nn.Sequential(nn.Tanh(), nn.Linear(5, 6))).eval()


def inside(change: Callable[[nn.Module], nn.Module]) -> nn.Module:
    model = small()
    model[2] = change(model[2])
    return model


class Symmetric(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.triu() + weight.triu(1).mT


def parametrized() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    parametrize.register_parametrization(model[0], "weight", Symmetric())
    parametrize.register_parametrization(model[0], "bias", nn.Softplus(), unsafe=True)
    return model


def changed(*changes: Callable[[nn.Module], object]) -> nn.Module:
    model = small()
    for part, change in zip((model[0], model[2][1]), changes, strict=False):  # type: ignore[index]
        change(part)
    return model


def masked(amount: float) -> Callable[[nn.Module], object]:
    return lambda part: prune.l1_unstructured(part, "weight", amount)


def twice(part: nn.Module) -> None:
    prune.l1_unstructured(part, "weight", 0.3)
    prune.ln_structured(part, "weight", 0.4, n=2, dim=0)
    prune.random_unstructured(part, "bias", 0.5)


MADE: dict[str, Callable[[], nn.Module]] = {
    "plain": small,
    "compiled": lambda: torch.compile(small()),
    "compiled in place": lambda: (model := small(), model.compile())[0],
    "compiled inside": lambda: inside(torch.compile),
    "parallel": lambda: nn.DataParallel(small()),
    "parallel inside": lambda: inside(nn.DataParallel),
    "averaged": lambda: torch.optim.swa_utils.AveragedModel(small()),
    "compiled and parallel": lambda: torch.compile(nn.DataParallel(torch.compile(small()))),
    "masked": lambda: changed(masked(0.5), masked(0.2)),
    "masked by all methods": lambda: changed(twice, masked(0.2)),
    "masked, in parallel": lambda: nn.DataParallel(changed(masked(0.5))),
    "old weight norm": lambda: changed(weight_norm, lambda part: weight_norm(part, dim=None)),
    "weight norm": lambda: changed(parametrizations.weight_norm, parametrizations.weight_norm),
    "old spectral norm": lambda: changed(spectral_norm, spectral_norm),
    "spectral norm": lambda: changed(parametrizations.spectral_norm),
    "orthogonal": lambda: changed(parametrizations.orthogonal),
    "parametrized": parametrized,
}


@pytest.mark.parametrize("case", MADE)
def test_the_copy_is_plain_and_computes_the_same(case: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of the older ways
        model = MADE[case]()
    model.train()  # as training code holds it
    inner = getattr(model, "module", model)
    weights = copy.deepcopy({name: value.detach() for name, value in model.state_dict().items()})
    plain = plain_module(model)
    assert model.training and not plain.training and getattr(model, "module", model) is inner
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    names = {name for name, _ in plain.named_parameters()}
    assert all(name.endswith((".weight", ".bias")) for name in names) and not list(plain.named_buffers())
    assert not any(part._forward_pre_hooks for part in plain.modules())
    eager = model.eval()
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        assert torch.allclose(plain(X), eager(X), atol=1e-6)


class Fast(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 3).to(dtype), requires_grad=False)


class Adapted(nn.Linear):
    def merge_and_unload(self) -> nn.Module:
        return self


def dynamic() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(small(), {nn.Linear}, dtype=torch.qint8)


def prepared() -> nn.Module:
    model = small().train()
    model.qconfig = torch.ao.quantization.get_default_qat_qconfig("x86")
    return torch.ao.quantization.prepare_qat(model)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "dynamic": (dynamic, r"quantized \(first: 0\): give the float32 model"),
    "dynamic, in parallel": (lambda: nn.DataParallel(dynamic()), "quantized"),
    "prepared": (prepared, "quantized"),
    "int8 weights": (lambda: nn.Sequential(Fast(torch.int8)), r"quantized \(first: 0.weight\)"),
    "packed 4 bits": (lambda: nn.Sequential(Fast(torch.uint8)), "quantized"),
    "adapters": (lambda: Adapted(2, 2), r"merge them first, with model.merge_and_unload\(\)"),
    "TorchScript": (lambda: torch.jit.trace(small(), X), "TorchScript, which can't be traced"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_not_be_traced_has_its_sentence(case: str) -> None:
    make, sentence = REFUSED[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = make()
    with pytest.raises(UserError, match=sentence) as caught:
        plain_module(model)
    assert "\n" not in str(caught.value) and "--" not in str(caught.value)


def test_what_can_not_be_copied() -> None:
    model = small()
    model.hidden = [model(X)]  # an activation that a hook kept
    with pytest.raises(UserError, match=r"the model can't be copied \(.*stored activations"):
        plain_module(model)
