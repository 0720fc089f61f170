import pytest
import torch

from tests.support.gated import assert_scores, direct_metric, make_inputs, per_image
from vitfx.discovery.methods.attribution import taylor


@pytest.mark.parametrize("granularity", ["block", "head", "edge"])
@pytest.mark.parametrize("labels", [True, False])
def test_every_edge_agrees_with_autograd_on_gates_towards_zero(granularity, labels):
    graph, calibration, reference = make_inputs(granularity, "zero", labels=labels)
    gradients = per_image(graph, calibration, reference, direct_metric("loss", graph, calibration))
    expected = {name: float(value.abs().mean()) for name, value in gradients.items()}
    assert_scores(taylor(graph, calibration), expected)


def test_images_that_disagree_do_not_cancel():
    graph, calibration, reference = make_inputs("head", "zero")
    gradients = per_image(graph, calibration, reference, direct_metric("loss", graph, calibration))
    scores = taylor(graph, calibration)
    name = next(name for name, value in gradients.items() if value.sign().unique().numel() > 1)
    assert scores[name] > 1.01 * abs(float(torch.mean(gradients[name])))
