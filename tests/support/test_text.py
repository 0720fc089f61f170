"""Numbers in tables: three digits, and never a power of ten."""

from __future__ import annotations

from typing import Any

import pytest

from vitfx.reports.recover_text import model_table
from vitfx.support.text import digits, large


@pytest.mark.parametrize(
    ("value", "said"), [(0.01234, "0.0123"), (12.345, "12.3"), (99.96, "100"), (123.4, "123"), (1234.4, "1234")]
)
def test_three_digits_and_all_before_the_point(value: float, said: str) -> None:
    assert digits(value) == said


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0"), (999_999, "999,999"), (1_000_000, "1 M"), (21_622_856, "21.6 M"), (123_456_789, "123 M"),
     (2_867_306_496, "2.87 G"), (1_234_000_000_000, "1234 G")],
)  # fmt: skip
def test_a_large_count_is_in_millions_or_thousands_of_them(count: int, said: str) -> None:
    assert large(count) == said


def test_the_table_of_a_retraining() -> None:
    times = {"evaluation_seconds": 1234.4, "ms_per_image": 12.345, "ms_at_batch_1": 1000.0}
    model = {"name": "pruned", "loss": None, "accuracy": None, "kl": 0.1, "params": 10, "flops": 20}
    report: Any = {"settings": {}, "images": {"evaluation": 50}, "models": [model | {"runtimes": {"CPU": times}}]}
    assert model_table(report).rows[0][-3:] == ["1234 s", "12.3 ms", "1000 ms"]
