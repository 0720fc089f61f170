import pytest
import torch

from tests.support.gated import (
    assert_scores,
    direct_metric,
    embedding,
    make_inputs,
    one_image,
    reference_of,
    run,
)
from vitfx.circuits.circuit import EMBED
from vitfx.discovery.basis.settings import METRICS
from vitfx.discovery.methods.attribution import eap_ig, eap_ig_activations, mean_of_ranks
from vitfx.graph.stages import sublayers_of
from vitfx.support.errors import UserError

STEPS = 2


def by_autograd(graph, calibration, reference, name):
    """Gates on ref_w − clean_w, in runs in which one sublayer's writers are held on their line."""
    metric, count = direct_metric(name, graph, calibration), len(calibration.clean)
    held_in_turn = [EMBED, *sublayers_of(graph.stages)]
    totals = dict.fromkeys((edge.name for edge in graph.edges()), 0.0)
    for index in range(count):
        here = one_image(reference, index)
        with torch.no_grad():
            clean = embedding(graph, calibration.clean[index : index + 1])
            _, written = run(graph, clean, lambda edge, value: value)
            ablated = {writer: reference_of(graph, here, writer) for writer in written}
        for held in held_in_turn:
            for k in range(1, STEPS + 1):
                gates = {edge: torch.zeros((), dtype=torch.float64, requires_grad=True) for edge in graph.edges()}
                line = {writer: ablated[writer] + k / STEPS * (written[writer] - ablated[writer]) for writer in written}

                def see(edge, value, held=held, gates=gates, line=line, ablated=ablated, written=written):
                    writer = edge.writer
                    value = line[writer] if writer.sublayer == held else value
                    return value + gates[edge] * (ablated[writer] - written[writer])

                logits, _ = run(graph, clean, see)
                slopes = torch.autograd.grad(metric(index, logits), list(gates.values()), materialize_grads=True)
                for edge, slope in zip(gates, slopes, strict=True):
                    totals[edge.name] += float(slope) / (len(held_in_turn) * STEPS * count)
    return {name: abs(value) for name, value in totals.items()}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("granularity", ["head", "qkv"])
def test_every_edge_agrees_with_autograd(granularity, metric):
    graph, calibration, reference = make_inputs(granularity)
    got = eap_ig_activations(graph, calibration, reference, metric=metric, steps=STEPS)
    assert_scores(got, by_autograd(graph, calibration, reference, metric))


@pytest.mark.parametrize("ablation", ["zero", "position-mean", "resample"])
def test_other_ablations_agree(ablation):
    graph, calibration, reference = make_inputs("edge", ablation)
    got = eap_ig_activations(graph, calibration, reference, metric="kl", steps=STEPS)
    assert_scores(got, by_autograd(graph, calibration, reference, "kl"))


def test_signs_are_those_of_other_attributions():
    inputs = make_inputs("head")
    signed = eap_ig_activations(*inputs, metric="loss", steps=STEPS, signed=True)
    magnitudes = eap_ig_activations(*inputs, metric="loss", steps=STEPS)
    assert {name: abs(value) for name, value in signed.items()} == magnitudes
    along_inputs = eap_ig(*inputs, metric="loss", steps=STEPS, signed=True)
    assert sum(signed[name] * along_inputs[name] > 0 for name in signed) > 0.7 * len(signed)


def test_user_mistakes_are_told():
    with pytest.raises(UserError, match="`steps` 0 is too small for EAP-IG: give 1 or more"):
        eap_ig_activations(*make_inputs("block"), metric="kl", steps=0)


def test_an_ensemble_is_the_mean_of_signed_ranks():
    first = {"a": 3.0, "b": -5.0, "c": 1.0, "d": 0.0}
    other = {"a": 0.3, "b": 0.3, "c": 0.1, "d": -0.2}
    # Ranks by magnitude: 3, 4, 2, 1 and 3.5, 3.5, 1, 2.
    expected = {"a": (3 + 3.5) / 8, "b": (-4 + 3.5) / 8, "c": (2 + 1) / 8, "d": (0 - 2) / 8}
    assert mean_of_ranks([first, other]) == pytest.approx(expected)
