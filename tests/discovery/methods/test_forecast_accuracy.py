"""What is reported of how far attributions can be believed."""

import pytest

from vitfx.circuits.circuit import PROBE, Decision, Edge, Reader, Writer
from vitfx.discovery.methods.forecast_accuracy import calibration_of


def test_calibration_tells_heads_from_paths():
    def decision(sublayer, predicted, measured):
        return Decision(Edge(Writer(sublayer), Reader("logits")), measured >= 0.5, measured, measured, PROBE, predicted)

    heads = [decision(f"a{i}", i / 10, 2 * i / 10) for i in range(10)]
    paths = [decision(f"m{i}", i / 10, (9 - i) / 10) for i in range(10)]
    report = calibration_of([*heads, *paths], 0.5)
    assert report["heads"] == {"edges": 10, "rank_correlation": 1.0, "agreement": 1.0, "scale": pytest.approx(2.0)}
    assert report["paths"]["rank_correlation"] == -1.0
    assert report["paths"]["agreement"] < 0.5
    assert calibration_of(heads[:3], 0.5) == {}


@pytest.mark.parametrize(
    ("measured", "correlation"),
    [((1, 1, 2, 2, 3, 3), 0.9562), ((5, 4, 3, 2, 1, 0), -1.0), ((2, 2, 2, 2, 2, 2), None)],
)
def test_ties_share_a_rank(measured, correlation):
    def decision(index, cost):
        return Decision(Edge(Writer(f"a{index}"), Reader("logits")), True, cost, cost, PROBE, float(index))

    report = calibration_of([decision(*pair) for pair in enumerate(measured)], 0.5)
    assert report["heads"]["rank_correlation"] == correlation
