"""What every pass must satisfy, and the small canonical graphs and random plans that the tests run on."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from torch.fx import GraphModule

from passes.base import Pass, run_passes
from passes.plan import DeletionPlan, SublayerDeletion
from passes.stream import is_canonical, read_sites
from tests.support.families import images, make
from vitfx.discovery.basis.calibration import Calibration
from vitfx.graph.trace import Traced, to_canonical
from vitfx.graph.verify import tokens_of
from vitfx.support.processes import Alone


@cache
def _traced(name: str, dtype: torch.dtype) -> Traced:
    return to_canonical(make(name).to(dtype), images(2, dtype))


def traced(name: str, dtype: torch.dtype = torch.float32) -> Traced:
    """A family's model traced, fresh for each caller."""
    return copy.deepcopy(_traced(name, dtype))


def canonical(name: str = "vitfx") -> GraphModule:
    """A family's model in the ViT dialect, float64, fresh for each caller."""
    return traced(name).graph_module.double()


def check(
    one: Pass,
    graph_module: GraphModule,
    pixels: Tensor,
    expected: Tensor,
    *,
    changes: bool,
    nodes: int | None = None,
    tolerance: float = 1e-9,
    keeps_canonical: bool = True,
) -> GraphModule:
    """Runs a pass and checks: input untouched, honest `changed`, node delta, lint, values, idempotence, gradients."""
    before, code = graph_module.state_dict(), graph_module.code
    kept = {name: value.clone() for name, value in before.items()}
    result = run_passes(graph_module, [one])
    assert graph_module.code == code
    assert all(torch.equal(value, kept[name]) for name, value in graph_module.state_dict().items())
    assert result.changed == changes
    assert _differs(result.graph_module, graph_module) == changes
    if nodes is not None:
        assert len(result.graph_module.graph.nodes) - len(graph_module.graph.nodes) == nodes
    result.graph_module.graph.lint()
    if keeps_canonical:
        is_canonical(result.graph_module)
    assert_equal(result.graph_module(pixels), expected, tolerance)
    again = run_passes(result.graph_module, [one])
    assert not again.changed
    assert again.graph_module.code == result.graph_module.code
    assert_trainable(result.graph_module, pixels)
    return result.graph_module


def assert_equal(got: Tensor, expected: Tensor, tolerance: float) -> None:
    """By the greatest expected value, so that a small logit does not hide a large error, nor a large one excuse it."""
    error = float(((got - expected).abs().max() / expected.abs().max()).detach())
    assert error < tolerance, f"off by {error:.1e}"


def assert_trainable(graph_module: GraphModule, pixels: Tensor) -> None:
    """Every parameter gets a finite gradient, in training mode as well."""
    module = copy.deepcopy(graph_module).train()
    module(pixels).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def plan_of(
    graph_module: GraphModule, units: dict[str, Sequence[int]], constants: str = "mean", seed: int = 0
) -> DeletionPlan:
    """A plan with random constants. constants: "none", "mean" (D,), or "position" (T, D) for every deletion."""
    generator = torch.Generator().manual_seed(seed)
    deletions = []
    for site in read_sites(graph_module):
        if not units.get(site.name):
            continue
        width = site.module.out.weight.shape[0]
        shape = {"none": None, "mean": (width,), "position": (tokens(graph_module), width)}[constants]
        constant = None if shape is None else torch.randn(shape, generator=generator, dtype=torch.float64)
        gone = tuple(sorted(units[site.name]))
        deletions.append(SublayerDeletion(site.name, site.module.kind, gone, site.module.units, constant))
    return DeletionPlan(tuple(deletions))


def tokens(graph_module: GraphModule) -> int:
    return tokens_of(graph_module, images(2, next(graph_module.parameters()).dtype))


def _differs(one: GraphModule, other: GraphModule) -> bool:
    """In code, in modules and their settings, in the names, shapes or values of weights."""
    ours, theirs = one.state_dict(), other.state_dict()
    same = one.code == other.code and _settings(one) == _settings(other) and _shapes(one) == _shapes(other)
    return not same or any(not torch.equal(value, theirs[name]) for name, value in ours.items())


def _settings(graph_module: GraphModule) -> list[tuple[str, str, str]]:
    return [
        (name, type(one).__name__ * (not isinstance(one, GraphModule)), one.extra_repr())
        for name, one in graph_module.named_modules()
        if name
    ]


def _shapes(graph_module: GraphModule) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in graph_module.state_dict().items()}


def calibration_on(clean: Tensor, corrupted: Tensor, labels: Tensor | None = None) -> Calibration:
    """All of these images in this one process."""
    draws = torch.rand(len(clean), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return Calibration(clean, corrupted, labels, draws, len(clean), Alone())
