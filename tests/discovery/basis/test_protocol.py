"""The sum over images that trials are decided by: broken off only when it can't change the answer."""

from functools import partial

import pytest
import torch

from tests.support.checks import calibration_on
from vitfx.discovery.basis.protocol import BATCH, Limits, mean_kl

VALUES = torch.linspace(2.0, 0.0, 5 * BATCH + 3, dtype=torch.float64)
CALIBRATION = calibration_on(VALUES, VALUES)


def trial(allowed):
    seen = []

    def divergence(images):
        seen.append(images)
        return VALUES[images]

    return mean_kl(CALIBRATION, divergence, allowed), len(seen)


def test_all_of_it_where_it_is_allowed():
    found, seen = trial(lambda kl: True)
    assert (found.exact, seen) == (True, 6)
    assert found.kl == pytest.approx(float(VALUES.mean()), rel=1e-12)


@pytest.mark.parametrize("tau", [0.01, 0.3, 0.7, 0.98, 0.999, 1.2])
def test_broken_off_only_where_the_whole_is_refused_too(tau):
    allowed = partial(Limits(tau).allow, kl=0.0)
    found, seen = trial(allowed)
    assert allowed(found.kl) == allowed(float(VALUES.mean()))
    assert found.exact == (seen == 6)
    assert found.kl <= float(VALUES.mean()) + 1e-12
    if tau < 0.3:
        assert seen == 1


def test_limits():
    limits = Limits(0.1, max_kl=0.5)
    assert limits.allow(0.19, 0.1)
    assert not limits.allow(0.2, 0.1)
    assert limits.allow(0.5, 0.45)
    assert not limits.allow(0.51, 0.5)
