"""What tests of goals share: pictures, and made-up times."""

import pytest

from tests.support.goals import goal_images, times_by_units


@pytest.fixture
def images():
    return goal_images()


@pytest.fixture
def table(monkeypatch, tmp_path):
    return times_by_units(monkeypatch, tmp_path / "cache")
