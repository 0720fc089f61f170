"""The Pareto front: speeds, points, the knee, the file, the picture."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from vitfx.reports.points import KNEE_RULE
from vitfx.runs.sweep_points import (
    Point,
    by_speed,
    draw_front,
    knee,
    missed,
    read_points,
    read_speeds,
    to_markdown,
    write_points,
)
from vitfx.support.errors import UserError
from vitfx.support.files import SWEEP
from vitfx.support.pictures import png_bytes

SETTINGS = {"model": "vit.pt", "target": "cpu:batch=8", "seed": 0}


def point(speedup: float, kl: float, accuracy: float | None = 0.7) -> Point:
    asked = None if speedup < 1.15 else speedup
    plain = None if accuracy is None else 0.75
    return Point(
        asked=asked,
        speedup=speedup,
        ms=100 / speedup,
        plain_ms=100.0,
        kl=kl,
        agreement=0.9,
        accuracy=accuracy,
        plain_accuracy=plain,
        images=50,
        params=0.8,
        flops=0.7,
        rounds=3,
        folder=f"{speedup:g}x",
    )


FRONT = (point(1.1, 0.0, 0.75), point(1.25, 0.01), point(1.6, 0.05), point(2.0, 0.6, 0.5))


def test_speeds_are_evenly_apart() -> None:
    assert read_speeds("1.2:2.0:5") == (1.2, 1.4, 1.6, 1.8, 2.0)


@pytest.mark.parametrize("text", ["1.2:2.0", "a:b:c", "1.2:2:2.5"])
def test_what_is_no_range(text: str) -> None:
    with pytest.raises(UserError, match=f"`sweep` {text} is not LOW:HIGH:COUNT"):
        read_speeds(text)


@pytest.mark.parametrize("text", ["1:2:3", "2:1.2:3", "1.2:2:1", "nan:2:3", "1.2:inf:3"])
def test_ranges_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match=f"`sweep` {text} is not a range: give 1 < LOW"):
        read_speeds(text)


def test_the_knee_is_where_kl_begins_to_rise() -> None:
    """Shares of the range of times: .300, .693; of KL: .017, .083. The third point is farthest below the line."""
    assert knee(FRONT) is FRONT[2]
    scaled = [dataclasses.replace(one, kl=7 * one.kl) for one in FRONT]
    assert knee(scaled) is scaled[2]


def test_without_a_bend_there_is_no_knee() -> None:
    assert knee(FRONT[:2]) is None
    assert knee([point(1.1, 0.0), point(1.2, 0.5), point(2.0, 0.6)]) is None
    assert knee([point(1.1, 0.1), point(1.2, 0.0), point(2.0, 0.1)]) is None


def test_the_table_marks_the_knee_and_what_is_lost() -> None:
    said = to_markdown(FRONT, SETTINGS, {"cpu": "slow"}, "No picture.", ("classes are matched by name",))
    rows = [line for line in said.splitlines() if line.startswith("| ")]
    assert [line for line in rows if "knee" in line] == [rows[4]]
    assert rows[4].startswith("| 1.6× | 1.600× | 62.5 | 0.0500 | 90.00% | 70.00% | +5.00 |")
    assert "classes are matched by name" in said
    assert KNEE_RULE in said and "The knee is 1.6×." in said and "No picture." in said
    slow = to_markdown([dataclasses.replace(FRONT[0], ms=1234.0)], SETTINGS, {}, "")
    assert "| exact rewrites alone | 1.100× | 1234 |" in slow


def test_speeds_more_than_3_percent_behind_are_missed() -> None:
    behind = [
        dataclasses.replace(one, speedup=share * one.speedup)
        for one, share in zip(FRONT[1:], (0.96, 0.98, 0.9), strict=True)
    ]
    assert missed([FRONT[0], *behind]) == "asked for 1.25×, 2× faster, measured 1.20×, 1.80×"
    assert missed(FRONT) is None


def test_points_are_in_the_order_of_their_speeds() -> None:
    assert by_speed(reversed(FRONT)) == FRONT


def test_the_file_is_read_again(tmp_path: Path) -> None:
    write_points(tmp_path, FRONT, SETTINGS, {"cpu": "slow"})
    assert read_points(tmp_path, SETTINGS, force=False) == (FRONT, {"cpu": "slow"})
    record = json.loads((tmp_path / SWEEP).read_text())
    assert record["format"] == "vitfx-sweep/1"
    assert record["knee"] == {"asked": 1.6, "found": True, "rule": KNEE_RULE}
    assert record["points"][3]["points_lost"] == pytest.approx(25)
    assert read_points(tmp_path, SETTINGS, force=True) == ((), {})
    assert read_points(tmp_path / "none", SETTINGS, force=False) == ((), {})


def test_a_file_of_other_settings_is_refused(tmp_path: Path) -> None:
    write_points(tmp_path, FRONT, SETTINGS, {})
    with pytest.raises(UserError, match=r"is of another sweep \(its seed is 0, not 1\)"):
        read_points(tmp_path, SETTINGS | {"seed": 1}, force=False)
    (tmp_path / SWEEP).write_text("{}")
    with pytest.raises(UserError, match="is of no format, not a vitfx-sweep/1: name another folder"):
        read_points(tmp_path, SETTINGS, force=False)


@pytest.mark.parametrize("labelled", [True, False])
def test_the_picture(labelled: bool) -> None:
    # Medians are of another moment each and no share of anything: they are not what is drawn.
    points = [dataclasses.replace(one, ms=one.ms * (2 + one.kl)) for one in FRONT]
    if not labelled:
        points = [dataclasses.replace(one, accuracy=None, plain_accuracy=None) for one in points]
    figure = draw_front(points, "cpu")
    assert {panel.get_xlabel() for panel in figure.axes} == {"share of the plain export's time"}
    assert len(figure.axes) == 1 + labelled
    curve = figure.axes[0].lines[0]
    assert list(curve.get_xdata()) == [one.share for one in FRONT]
    assert list(curve.get_ydata()) == [one.kl for one in FRONT]
    stars = [line for line in figure.axes[0].lines if line.get_marker() == "*"]
    assert [(float(star.get_xdata()[0]), star.get_label()) for star in stars] == [(0.625, "knee, 1.60×")]
    assert png_bytes(lambda: figure).startswith(b"\x89PNG")


def test_without_matplotlib_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"pip install 'vitfx\[plot\]'"):
        png_bytes(lambda: draw_front(FRONT, "cpu"))
