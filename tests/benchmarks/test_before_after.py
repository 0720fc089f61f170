"""The picture of a graph before and after: what it counts, its two themes, and the command."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest
import torch

import vitfx
from benchmarks.before_after import THEMES, Sublayer, draw, main, read_sublayers
from passes.stream import read_sites
from tests.support.families import images, make
from vitfx.reports.records import PRUNE_REPORT
from vitfx.support.json_files import write_json

ROOT = Path(__file__).resolve().parents[2]
SIDE = {"params": 1_500_000, "flops": 2_000, "accuracy": 0.5}
SUBLAYERS = [
    Sublayer("a0", 4, frozenset({0, 3})),
    Sublayer("m0", 8, frozenset(range(2))),
    Sublayer("a1", 4, frozenset()),
]


def shapes(svg: str, kind: str) -> list[float]:
    """The widths of rectangles of a class, without the legend's."""
    rects = [rect for rect in Xml.fromstring(svg).iter("{http://www.w3.org/2000/svg}rect") if rect.get("class") == kind]
    return [float(rect.get("width", "")) for rect in rects if rect.get("height") == "14"]


def test_what_is_left_is_filled() -> None:
    svg = draw(SUBLAYERS, SIDE, SIDE, THEMES["light"])
    assert len(shapes(svg, "heads")) == 8 + 2
    before, after = shapes(svg, "neurons")
    assert after == pytest.approx(before / 4, abs=0.1)
    assert "1.5 M parameters · 2,000 FLOPs · top-1 50.00%" in svg
    assert "4 of 16 heads and neurons are left" in svg


def test_every_colour_is_explained() -> None:
    """In the legend, in the colours of what it explains."""
    tags = list(Xml.fromstring(draw(SUBLAYERS, SIDE, SIDE, THEMES["dark"])).iter())
    legend = {tag.get("class"): text.text for tag, text in pairwise(tags) if tag.get("height") == "10"}
    assert legend == {"heads": "heads of an attention (a)", "neurons": "neurons of an MLP (m)", "gone": "deleted"}


def test_themes_differ_in_colours_alone() -> None:
    light, dark = (re.sub("#[0-9a-f]{6}", "", draw(SUBLAYERS, SIDE, SIDE, THEMES[name])) for name in ("light", "dark"))
    assert light == dark
    made = [(ROOT / "docs" / f"before-after-{name}.svg").read_text() for name in ("light", "dark")]
    assert made[0] != made[1] and len({re.sub("#[0-9a-f]{6}", "", svg) for svg in made}) == 1


def test_the_command_reads_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pruned = vitfx.prune(make("timm"), images(24), torch.arange(24) % 7, tau=2e-4, paths=4, compensate="mean")
    run = pruned.save(tmp_path / "run")
    write_json(run / "report.json", PRUNE_REPORT, {"baseline": SIDE, "pruned": SIDE})
    assert main([str(run), "--out", str(tmp_path / "picture")]) == 0
    assert (tmp_path / "picture-light.svg").exists() and "picture-dark.svg has the picture" in capsys.readouterr().out
    left = {each.name: len(each.kept) for each in read_sublayers(run) if each.kept}
    assert left == {site.name: site.module.units for site in read_sites(pruned.module)}
    assert main([str(tmp_path)]) == 2
