"""Activations that are in no table are kept as their graphs, through deletion, proof, ONNX and the artifact."""

import pytest
import torch
from torch.nn import functional as F

from benchmarks.coverage import carry_through
from passes.mlp import GatedMlp, Mlp
from passes.stream import read_sites
from tests.support.checks import assert_equal
from tests.support.families import HandWritten, images, randomised
from vitfx.graph.trace import to_canonical


class Written(HandWritten):
    """MLPs of this function, which is given the model for parameters of its own."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.scale, self.shift = (torch.nn.Parameter(torch.tensor(value)) for value in ([0.8], -0.4))
        self.slopes = torch.nn.Parameter(torch.linspace(0.1, 0.3, 40))

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = x + self.attention(block, block["n1"](x))
            x = x + block["down"](self.function(self, block["up"](block["n2"](x))))
        return self.head(x.mean(1))


FUNCTIONS = {
    "mish in pieces": lambda model, x: x * torch.tanh(F.softplus(x)),
    "mish": lambda model, x: F.mish(x),
    "squared ReLU": lambda model, x: F.relu(x) ** 2,
    "StarReLU": lambda model, x: model.scale * F.relu(x) ** 2 + model.shift,
    "softsign": lambda model, x: x / (1 + x.abs()),
    "hard swish of another width": lambda model, x: x * torch.clamp(x + 2, 0, 4) / 4,
    "ELU": lambda model, x: F.elu(x, 0.7),
    "leaky ReLU": lambda model, x: F.leaky_relu(x, 0.2),
    "a condition": lambda model, x: torch.where(x > 0, x, 0.5 * torch.expm1(x)),
    "snake": lambda model, x: x + torch.sin(model.scale * x) ** 2 / model.scale,
    "inverse square root": lambda model, x: x * torch.rsqrt(1 + x * x),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_unknown_activation_is_kept_as_its_graph(name):
    model = randomised(Written(FUNCTIONS[name]))
    found = to_canonical(model, images(2))
    modules = [site.module for site in read_sites(found.graph_module)]
    assert found.notes == () and all(isinstance(module, Mlp) for module in modules[1::2])
    assert not any(isinstance(module.activation, str) for module in modules[1::2])
    with torch.no_grad():
        assert_equal(found.graph_module(images(5)), model(images(5)), 1e-5)


@pytest.mark.parametrize("name", ["mish in pieces", "StarReLU", "a condition"])
def test_it_is_pruned_proved_exported_and_read_back(name):
    works = carry_through(to_canonical(randomised(Written(FUNCTIONS[name])), images(2)).graph_module, images(6))
    assert (works.failure, works.rewrites, works.onnx, works.again) == ("", True, True, True)


def test_a_learnt_scale_is_trained_and_moves_with_the_model():
    graph_module = to_canonical(randomised(Written(FUNCTIONS["StarReLU"])), images(2)).graph_module
    graph_module(images(2)).square().sum().backward()
    activation = read_sites(graph_module)[1].module.activation
    assert [parameter.grad is not None for parameter in activation.parameters()] == [True, True]
    assert graph_module.double()(images(2, torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("gate", [F.softplus, lambda x: F.relu(x) ** 2, lambda x: x / (1 + x.abs())])
def test_an_unknown_gate(gate):
    class Gated(HandWritten):
        def forward(self, x):
            x = self.patches(x).flatten(2).transpose(1, 2)
            for block in self.blocks:
                x = x + self.attention(block, block["n1"](x))
                a, b = block["up"](block["n2"](x)).chunk(2, -1)
                x = x + F.linear(gate(a) * b, block["down"].weight[:, : a.shape[-1]], block["down"].bias)
            return self.head(x.mean(1))

    model = randomised(Gated())
    found = to_canonical(model, images(2))
    modules = [site.module for site in read_sites(found.graph_module)]
    assert found.notes == () and all(isinstance(module, GatedMlp) for module in modules[1::2])
    works = carry_through(found.graph_module, images(6))
    assert (works.failure, works.again) == ("", True)


@pytest.mark.parametrize(
    "function",
    [
        lambda model, x: x / x.abs().amax(),
        lambda model, x: x - x.mean(-1, keepdim=True),
        lambda model, x: x / (1 + x.norm(dim=-1, keepdim=True)),
        lambda model, x: F.prelu(x.transpose(1, 2), model.slopes).transpose(1, 2),
        lambda model, x: x.cumsum(-1).tanh(),
        lambda model, x: x * torch.linspace(1, 2, x.shape[1])[:, None].tanh() + x.flip(1),
    ],
)
def test_what_is_not_elementwise_stays_and_is_named(function):
    found = to_canonical(randomised(Written(function)), images(2))
    assert [site.name for site in read_sites(found.graph_module)] == ["a0", "a1", "a2"]
    assert "is not one function of each neuron by itself" in found.notes[0]
