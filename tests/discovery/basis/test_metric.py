import pytest
import torch

from tests.support.gated import direct_metric, make_calibration, make_graph
from vitfx.discovery.basis.metric import drawn_from, fisher_metric, fisher_probes, make_metric
from vitfx.discovery.basis.settings import METRICS
from vitfx.graph.divergence import Classes

ALL = slice(0, 5)


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("name", METRICS)
def test_metrics_are_what_is_written_out(name, labels):
    graph, calibration = make_graph("head"), make_calibration(labels=labels)
    with torch.no_grad():
        clean = graph.run(calibration.clean)
    logits = clean + torch.randn(clean.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    got = make_metric(name, graph, calibration, ALL, clean)(logits)
    direct = direct_metric(name, graph, calibration)
    expected = torch.stack([direct(index, logits[index : index + 1]) for index in range(5)])
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_logit_difference_takes_the_second_where_the_corrupted_run_agrees():
    graph, calibration = make_graph("head"), make_calibration()
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0, 0.0, 0.0, 0.0]], dtype=torch.float64).repeat(5, 1)
    with torch.no_grad():
        theirs = graph.run(calibration.corrupted).argmax(-1)
    agrees = int(theirs[0])
    clean = torch.zeros(5, 7, dtype=torch.float64)
    clean[:, agrees], clean[:, (agrees + 1) % 7] = 2, 1
    got = make_metric("logit-difference", graph, calibration, ALL, clean)(logits)
    assert float(got[0]) == float(logits[0, agrees] - logits[0, (agrees + 1) % 7])


def test_draws_follow_the_distribution_and_stay_in_range():
    logits = torch.tensor([0.1, 0.0, 0.6, 0.3]).log().repeat(1000, 1)
    draws = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    assert torch.bincount(drawn_from(logits, draws), minlength=4).tolist() == [100, 0, 600, 300]


def test_a_draw_at_the_end_of_the_range_is_a_class_that_can_be():
    """The first class has no probability, and ten tenths add up to less than 1."""
    impossible = torch.tensor([[0.0, 0.4, 0.6]]).log()
    assert drawn_from(impossible, torch.zeros(1, dtype=torch.float64)).tolist() == [1]
    largest = torch.tensor([1 - 2**-53], dtype=torch.float64)
    assert float(torch.full((10,), 0.1, dtype=torch.float64).cumsum(0)[-1]) <= float(largest)
    assert drawn_from(torch.zeros(1, 10), largest).tolist() == [9]


def test_probes_have_the_fisher_information_for_their_covariance():
    logits = torch.tensor([[3.0, 0.0, -1.0], [0.0, 0.0, 0.5]], dtype=torch.float64)
    draws = torch.tensor([0.25, 0.75], dtype=torch.float64)
    probes = fisher_probes(logits, draws, 20000)
    p = logits.softmax(-1)
    covariance = torch.einsum("cnk,cnl->nkl", probes, probes) / len(probes)
    assert torch.allclose(covariance, torch.diag_embed(p) - p[:, :, None] * p[:, None], atol=0.01)
    # An image's signs depend on its draw alone, so that processes that share the images see the same.
    assert torch.equal(fisher_probes(logits[1:], draws[1:], 20000)[:, 0], probes[:, 1])


def test_probabilities_are_judged_as_the_logits_behind_them() -> None:
    """The same class is drawn, so that units come in the same order whether or not a model ends in softmax."""
    logits = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    draws = torch.rand(6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gradients = []
    for measure, answers in ((Classes(), logits), (Classes(True), logits.softmax(-1))):
        (gradient,) = torch.autograd.grad(fisher_metric(measure, answers.detach(), draws)(answers).sum(), logits)
        gradients.append(gradient)
    assert torch.allclose(*gradients, rtol=1e-9, atol=1e-12) and gradients[0].abs().max() > 0.1
