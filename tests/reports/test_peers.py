"""`python -m vitfx.report` on results of benchmarks.peers: a curve a peer, and one sentence for a file that is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.reports.test_prune_text import made
from tests.support.pages import read
from tests.test_report import folder
from vitfx.report import main
from vitfx.reports.peers import read_peers
from vitfx.reports.records import PEERS_RECORD, RUNTIMES_RECORD, TASKS_RECORD


def row(peer: str, share: float, **changes: Any) -> dict[str, Any]:
    """As benchmarks.match measures it."""
    return {
        "peer": peer, "share": share, "package": None, "images": 90, "kl": share, "agreement": 0.9, "accuracy": 0.7,
        "standard_error": 0.01, "plain": 0.75, "deleted": share, "parameters": 1000 - 500 * share, "heads": 4,
        "neurons": 32, "sublayers": 4, "speedup": 1 / (1 - share), "times": {}, "seconds": 1.0,
    } | changes  # fmt: skip


def record(**changes: Any) -> dict[str, Any]:
    """Two peers, the second of which was made in another order and could not do all of it."""
    asked = {"model": {"source": "vit.pt"}, "environment": {"cpu": "slow"}, "target": {"device": "cpu", "batch": 8}}
    rows = {
        "original": row("original", 0.0, speedup=1.25),
        "random 0.2": row("random", 0.2),
        "<b> 0.5": row("<b>", 0.5),
        "<b> 0.2": row("<b>", 0.2, kl=0.05),
        "<b> 0.9": {"peer": "<b>", "share": 0.9, "package": "1.6.1", "refused": "--flops 0.9 is out of reach"},
        "none 0.2": {"peer": "none", "share": 0.2, "package": None, "refused": "it can't"},
    }
    return {"format": PEERS_RECORD, "asked": asked, "rows": rows | changes}


def written(path: Path, found: Any) -> Path:
    path.write_text(found if isinstance(found, str) else json.dumps(found))
    return path


def test_each_peer_is_a_curve(tmp_path: Path) -> None:
    path, out = written(tmp_path / "peers.json", record()), tmp_path / "compare.html"
    assert main([str(folder(tmp_path / "run", made())), str(path), "--out", str(out)]) == 0
    page = read(out.read_text())
    assert page.headings[0][1] == "4 runs of vitfx and its peers"
    assert page.sections[:4] == ["Accuracy against time", "KL against time", "All models", "Time"]
    assert [row for row in page.cells if row[0].startswith(path.name)] == [
        ["peers.json: original", "3", "plain export", "75.00%", "100.00%", "0.0000", "1.000", "1.000", "1.000",
         "1.00×", "cpu:batch=8"],
        ["peers.json: original", "4", "exact rewrites", "70.00%", "90.00%", "0.0000", "1.000", "1.000", "0.800",
         "1.25×", "cpu:batch=8"],
        ["peers.json: random", "5", "20% of the FLOPs to delete", "70.00%", "90.00%", "0.2000", "0.900", "0.800",
         "0.800", "1.25×", "cpu:batch=8"],
        ["peers.json: <b>", "6", "20% of the FLOPs to delete", "70.00%", "90.00%", "0.0500", "0.900", "0.800",
         "0.800", "1.25×", "cpu:batch=8"],
        ["peers.json: <b>", "7", "50% of the FLOPs to delete", "70.00%", "90.00%", "0.5000", "0.750", "0.500", "0.500",
         "2.00×", "cpu:batch=8"],
    ]  # fmt: skip
    assert out.read_text().count("<polyline") == 2 * 2, "the original and <b>, in two pictures"
    assert ">7</text>" in out.read_text()
    assert "peers.json: original: what is left out" in page.sections
    assert "<b> 0.9 has no model: --flops 0.9 is out of reach." in page.told
    assert "none 0.2 has no model: it can't." in page.told
    assert "vit.pt" in page.told
    assert "slow" in page.told


def test_peers_without_labels(tmp_path: Path) -> None:
    rows = {name: {**one, "accuracy": None, "plain": None} for name, one in record()["rows"].items()}
    found: Any = record(**rows)
    runs = read_peers(found, tmp_path / "peers.json", "peers.json")
    assert [one.name.rpartition(": ")[2] for one in runs] == ["original", "random", "<b>"]
    assert all(point.accuracy is None for one in runs for point in one.points)


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        ("[1]", f"is of no format, not a {PEERS_RECORD} or a {RUNTIMES_RECORD} or a {TASKS_RECORD}: give"),
        ({"asked": {}, "rows": {}}, "is of no format, not a"),
        ({"format": "vitfx-methods/1"}, "is a vitfx-methods/1, not a"),
        ("{", "is not JSON (Expecting"),
        (record() | {"asked": {}}, "is a damaged result of benchmarks.peers (KeyError('target')): give"),
        (record() | {"rows": {}}, "is a damaged result of benchmarks.peers (KeyError('original')): give"),
        ({"format": PEERS_RECORD, "asked": record()["asked"]}, "of benchmarks.peers (KeyError('rows')): give"),
        (record(original=row("original", 0.0, kl="0.1")), "(ValueError(\"kl is '0.1'\")): give"),
        (record(x=row("x", 0.1, accuracy=float("nan"))), "(ValueError('accuracy is nan')): give"),
        (record(x=row("x", 0.1, speedup=0)), "(ZeroDivisionError("),
    ],
)
def test_what_is_no_result(found: Any, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = written(tmp_path / "other.json", found), tmp_path / "compare.html"
    assert main([str(path), "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {path} ")
    assert sentence in said
    assert said.count("\n") == 1
    assert not out.exists()
