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


def test_rank_correlation_of_equal_values():
    def probes(predicted, measured):
        edges = [Edge(Writer("a0", index), Reader("logits")) for index in range(5)]
        return [
            Decision(edge, True, cost, cost, PROBE, forecast)
            for edge, forecast, cost in zip(edges, predicted, measured, strict=True)
        ]

    tied = calibration_of(probes([0.1, 0.2, 0.2, 0.3, 0.4], [1, 2, 2, 3, 4]), 0.5)
    assert tied["heads"]["rank_correlation"] == 1.0
    assert calibration_of(probes([0.1] * 5, [1, 2, 3, 4, 5]), 0.5)["heads"]["rank_correlation"] is None
