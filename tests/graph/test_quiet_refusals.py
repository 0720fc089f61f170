"""What torch logs and prints of a model that it can't trace does not stand before the sentence that says so."""

import pytest
import torch
from torch import nn

from tests.support.families import images
from vitfx.deploy.export import to_onnx
from vitfx.graph.trace import to_canonical, trace
from vitfx.support.errors import UserError


class Failing(nn.Module):
    """Does this to its images on the way."""

    def __init__(self, step):
        super().__init__()
        self.step, self.head = step, nn.Linear(3, 7)

    def forward(self, x):
        return self.head(self.step(x).mean((2, 3)))


def branch(x):
    return x + 1 if x.mean() > 0 else x - 1


def loop(x):
    for _ in range(1 + int(x.abs().sum() > 1e9)):
        x = x + 1
    return x


STEPS = {
    "a branch on values": branch,
    "a loop over values": loop,
    "numpy": lambda x: torch.from_numpy(x.numpy()),
    "a fixed batch": lambda x: x.reshape(2, 3, 32, 32),
    "values as a shape": lambda x: x[:, :, : 1 + int(x.argmax() % 3)],
}


@pytest.mark.parametrize("name", STEPS)
def test_a_refusal_is_all_that_is_printed(name, capfd):
    with pytest.raises(UserError):
        to_canonical(Failing(STEPS[name]), images(2))
    assert capfd.readouterr() == ("", "")


def test_a_graph_that_does_not_take_the_images(capfd):
    graph_module = torch.fx.symbolic_trace(Failing(lambda x: x.reshape(-1, 3, 16, 16) + torch.ones(3, 8, 8)))
    with pytest.raises(UserError, match="does not take images of 3×32×32"):
        trace(graph_module, images(2))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["a branch on values", "numpy"])
def test_an_export_that_fails_is_silent(name, capfd):
    with pytest.raises(Exception):  # noqa: B017
        to_onnx(Failing(STEPS[name]), images(2), {})
    assert capfd.readouterr() == ("", "")
