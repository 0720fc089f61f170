"""Which maps stay float32: what each one's rounding costs is what a file with that one rounded measures."""

from __future__ import annotations

import onnx
import pytest
import torch
from torch import nn

from vitfx.deploy.export import to_onnx
from vitfx.deploy.int8_choice import MapCost, dear, dearest
from vitfx.deploy.quantize import Quantized, to_int8
from vitfx.deploy.runtime import open_session
from vitfx.graph.divergence import CLASSES, Divergence, make_divergence
from vitfx.images.image_set import Images

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def int8(whole: onnx.ModelProto, digits: Images) -> Quantized:
    return to_int8(whole, digits.pixels[:32])


@pytest.fixture(scope="module")
def by(whole: onnx.ModelProto, digits: Images) -> Divergence:
    """Of logits as values: the demo is so sure of its classes that their KL is lost in float32's own rounding."""
    return make_divergence("values", answers(whole, digits.pixels))


@pytest.fixture(scope="module")
def costs(int8: Quantized, digits: Images, by: Divergence) -> list[MapCost]:
    return int8.costs(digits.pixels, by)


def answers(model: onnx.ModelProto, pixels: torch.Tensor) -> torch.Tensor:
    return open_session(model.SerializeToString(), CPU, threads=1).run(pixels)


def lost(whole: onnx.ModelProto, model: onnx.ModelProto, pixels: torch.Tensor, by: Divergence = CLASSES) -> float:
    return float(by(answers(whole, pixels), answers(model, pixels)).mean())


@pytest.mark.parametrize("place", [0, 1, 2, -1])
def test_a_cost_is_that_of_a_file_with_this_map_rounded(
    whole: onnx.ModelProto, int8: Quantized, costs: list[MapCost], digits: Images, by: Divergence, place: int
) -> None:
    """Which real integer products compute."""
    cost = costs[place]
    alone = int8.sparing([name for name in int8.maps if name != cost.name])
    assert (alone.quantized, alone.maps) == (1, (cost.name,))
    assert lost(whole, alone.model, digits.pixels[:16], by) == pytest.approx(cost.divergence, rel=0.05, abs=1e-9)


def test_they_are_in_the_order_of_cost_for_work(int8: Quantized, costs: list[MapCost]) -> None:
    assert {cost.name for cost in costs} == set(int8.maps) and len(costs) == int8.quantized
    assert sum(cost.share for cost in costs) == pytest.approx(1)
    prices = [cost.divergence / cost.share for cost in costs]
    assert prices == sorted(prices, reverse=True)


def test_sparing_the_dearest_helps_most(
    whole: onnx.ModelProto, int8: Quantized, costs: list[MapCost], digits: Images, by: Divergence
) -> None:
    """On images that nothing was measured on."""
    held_out = digits.pixels[32:]
    best = int8.sparing(dearest(costs, 0.2))
    worst = int8.sparing(dearest([MapCost(c.name, 1 / c.divergence, c.share) for c in reversed(costs)], 0.2))
    all_rounded, spared, other = (lost(whole, each.model, held_out, by) for each in (int8, best, worst))
    assert spared < 0.8 * all_rounded and spared < other
    matrices = [w for w in best.model.graph.initializer if w.data_type == onnx.TensorProto.INT8 and len(w.dims) == 2]
    assert len(matrices) == best.quantized < int8.quantized
    assert set(best.kept) == set(int8.kept) | set(int8.maps) - set(best.maps)


def test_with_all_of_them_in_float32_nothing_is_lost(whole: onnx.ModelProto, int8: Quantized, digits: Images) -> None:
    exact = int8.sparing(int8.maps)
    assert exact.quantized == 0 and not any(node.op_type == "QuantizeLinear" for node in exact.model.graph.node)
    torch.testing.assert_close(answers(exact.model, digits.pixels), answers(whole, digits.pixels), rtol=1e-4, atol=1e-4)
    assert int8.sparing(()) is int8


@pytest.mark.parametrize(
    ("most", "names"),
    [(0.0, ""), (0.09, ""), (0.1, "b"), (0.35, "bc"), (0.6, "ab"), (1.0, "abc")],
)
def test_no_more_work_than_allowed(most: float, names: str) -> None:
    """What is too large is passed over, and what costs nothing stays int8."""
    costs = [MapCost("a", 0.5, 0.5), MapCost("b", 0.09, 0.1), MapCost("c", 0.2, 0.25), MapCost("d", 0.0, 0.15)]
    assert set(dearest(costs, most)) == set(names)


def test_only_what_costs_out_of_proportion_is_dear() -> None:
    """For its work, more than four times what the others cost for theirs."""
    others = [MapCost("others", 0.9, 0.9)]
    assert dear([MapCost("a", 0.39, 0.1), *others]) == []
    assert [cost.name for cost in dear([MapCost("a", 0.41, 0.1), *others])] == ["a"]
    assert dear([MapCost("a", 0.0, 0.1), MapCost("b", 0.0, 0.9)]) == []


class Outlier(nn.Module):
    """Two maps of equal work; the second reads a channel that is a thousand times the others, which no norm scales."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.calm, self.wild, self.head = (nn.Linear(16, 16) for _ in range(3))
        self.scale = nn.Parameter(torch.ones(16))
        with torch.no_grad():
            self.scale[3] = 1000.0
            self.wild.weight[:, 3] = 1e-3

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        tokens = torch.relu(self.calm(pixels.flatten(1, 2))) * self.scale
        return self.head(torch.relu(self.wild(tokens)).mean(1))


@pytest.mark.parametrize("kind", ["classes", "values", "embedding"])
def test_the_map_with_an_outlier_is_the_first(kind: str) -> None:
    """By the divergence of the kind of answers."""
    pixels = torch.randn(24, 1, 8, 16, generator=torch.Generator().manual_seed(1))
    model = to_onnx(Outlier().eval(), pixels[:2], {})
    measure = make_divergence(kind, answers(model, pixels))
    int8 = to_int8(model, pixels)
    spared = int8.sparing_dearest(pixels, measure, most=0.5)
    assert spared.quantized == int8.quantized - 1 == 1
    assert lost(model, spared.model, pixels, measure) < 0.2 * lost(model, int8.model, pixels, measure)
    assert int8.sparing_dearest(pixels, measure) == int8, "of so few maps none is small enough"
