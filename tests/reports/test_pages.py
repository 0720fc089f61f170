"""report.html of a real run of pruning and of retraining, and of made-up ones whose names are hostile."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from passes.plan import DeletionPlan, SublayerDeletion
from tests.reports.test_prune_text import made
from tests.support.browser import shown_in_a_browser
from tests.support.circuits import made_up
from tests.support.pages import Page, read
from tests.support.prune_runs import checkpoint, report, run
from tests.support.recover_runs import npz, pruned_file
from vitfx.circuits.circuit import ATTRIBUTED, EMBED, Circuit, Decision, Edge, Writer, read_circuit
from vitfx.recover import main as recover_main
from vitfx.reports.attention_maps import AttentionMap, AttentionMaps
from vitfx.reports.pages import prune_page, recover_page
from vitfx.reports.prune_text import to_table
from vitfx.reports.read_runs import Run
from vitfx.reports.recover_text import model_table

HOSTILE = "<script>alert('1')</script>&\"x\""
PLAN = DeletionPlan((SublayerDeletion("a0", "head", (0,), 3),))
NONE = AttentionMaps(reason="There are none.")
SECTIONS = [
    "Baseline and pruned", "What died, and where", "Sensitivity by layer", "Time by batch", "Accuracy against time",
    "Where the class token looks", "How it was made",
]  # fmt: skip


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prune")
    assert run(checkpoint(folder / "model.pt"), folder / "out", "--tau", "0.01") == 0
    return folder / "out"


@pytest.fixture(scope="module")
def recovered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recover")
    options = ["--device", "cpu", "--precision", "fp32", "--batch", "16", "--epochs", "1", "--also-baseline"]
    options += ["--loss", "both", "--data", str(npz(folder)), "--teacher", str(checkpoint(folder / "model.pt"))]
    options += ["--out", str(folder / "out"), "--cache", str(folder / "cache")]
    assert recover_main([str(pruned_file(folder / "pruned.pt")), *options]) == 0
    return folder / "out"


def drawn(found: dict[str, Any], maps: AttentionMaps | None = None, circuit: Circuit | None = None) -> Page:
    return read(prune_page(found, circuit or made_up("head"), PLAN, maps or NONE))


def test_the_page_of_a_pruned_model(pruned: Path) -> None:
    page, found = read((pruned / "report.html").read_text()), report(pruned)
    assert page.sections == SECTIONS
    for row in to_table(found).rows:
        assert list(row) in page.cells
    for side in ("baseline", "pruned"):
        for ms in found[side]["latency_ms"].values():
            assert f"{ms:.3g} ms" in page.told
    heads = found["baseline"]["heads"] - found["pruned"]["heads"]
    assert f"Deleted: {heads} of {found['baseline']['heads']} heads" in page.told
    circuit = read_circuit(pruned / "circuit.json")
    assert f"{len(circuit.removed)} of {len(circuit.decisions)} edges" in page.told
    assert found["settings"]["data_fingerprint"] in page.told
    assert found["environment"]["torch"] in page.told
    (grid,) = (label for label in page.labels if label.startswith("Layers upwards"))
    assert f"{heads} of {found['baseline']['heads']} heads" in grid


def test_the_page_of_a_retrained_model(recovered: Path) -> None:
    page = read((recovered / "report.html").read_text())
    found = json.loads((recovered / "report.json").read_text())
    assert page.sections == [
        "Before and after", "The course of retraining", "Gradient flow of retraining", "Time", "Accuracy against time",
        "Where the class token looks", "How it was made",
    ]  # fmt: skip
    table = model_table(found)
    assert page.cells == [table.columns, *table.rows]
    assert len(table.rows) == 4
    best = found["recovery"]["checks"][found["recovery"]["best"]]
    for told in (f"pruned {100 * best['accuracy']:.4g} %", f"pruned {best['kl']:.4g} nats", f"{best['loss']:.4g} nats"):
        assert any(told in label for label in page.labels)
    for name in ("Pruned", "Baseline"):
        assert any(label.startswith(f"{name}: mean absolute gradient by layer") for label in page.labels)
    layers = found["recovery"]["gradient_flow"]["layers"]
    assert f"{layers[0]}, 0 images: " in page.told


def test_names_are_text_whatever_they_are() -> None:
    picture = AttentionMap(HOSTILE, b"png", ((0.5, 0.1),), ((0.2, 0.2),))
    maps = AttentionMaps((picture,), "a1", (0, 2), 3)
    found = made(notes=(HOSTILE,), model=HOSTILE, data=HOSTILE)
    page = drawn(found, maps)
    assert page.headings[0][1] == f"{HOSTILE}, pruned by vitfx at τ = 0.05"
    assert page.told.count(HOSTILE) >= 4
    assert HOSTILE in page.labels
    assert "over the 2 of its 3 heads that do (0, 2)" in page.told


def test_what_a_run_has_not_is_left_out() -> None:
    found = copy.deepcopy(made(labelled=False))
    page = drawn(found)
    assert page.sections == SECTIONS
    assert "There are none." in page.told
    assert "agreement with the original, %" in page.told
    assert "top-1" not in page.told
    decisions = [one for one in made_up("head").decisions if not one.kept]
    aimless = Circuit(tuple(decisions), 0.1, made_up("head").settings)
    assert "Sensitivity by layer" not in drawn(found, circuit=aimless).sections


@pytest.mark.parametrize("granularity", ["block", "head", "edge", "qkv"])
def test_every_graph_has_its_grid(granularity: str) -> None:
    page = drawn(made(), circuit=made_up(granularity))
    assert "Sensitivity by layer" in page.sections


def test_a_retraining_shows_what_died_before_it(recovered: Path) -> None:
    found = json.loads((recovered / "report.json").read_text())
    origin = Run("before", prune=made(), circuit=made_up("head"), plan=PLAN)
    page = read(recover_page(found, origin, NONE))
    for section in ("what died, and where", "sensitivity by layer"):
        assert f"When it was pruned: {section}" in page.sections
    assert "There are none." in page.told


def test_a_retraining_without_labels(recovered: Path) -> None:
    found = json.loads((recovered / "report.json").read_text())
    found["baseline_recovery"], found["images"]["labelled"] = None, False
    for one in (*found["models"], *found["recovery"]["checks"]):
        one["accuracy"] = one["loss"] = None
    page = read(recover_page(found, None, NONE))
    assert "held-out agreement with the teacher, %" in page.told
    assert "held-out KL from the teacher, nats" in page.told
    assert "top-1, %" not in page.told and "held-out loss, nats" not in page.told
    assert [row[2] for row in page.cells[1:]] == ["–"] * 4


def test_labels_alone_are_not_told_by_the_teacher(recovered: Path) -> None:
    found = json.loads((recovered / "report.json").read_text())
    found["settings"]["loss"] = "ce"
    page = read(recover_page(found, None, NONE))
    assert "held-out loss, nats" in page.told and "held-out KL from the teacher, nats" not in page.told


def test_a_retraining_without_gradients_has_no_flow(recovered: Path) -> None:
    found = json.loads((recovered / "report.json").read_text())
    for key in ("recovery", "baseline_recovery"):
        found[key]["gradient_flow"]["steps"] = []
    assert "Gradient flow of retraining" not in read(recover_page(found, None, NONE)).sections


def test_a_cut_for_a_goal_has_the_costs_of_what_it_deleted() -> None:
    found = made(goal="1.5× faster")
    parts = [(Writer(EMBED), True, 0.0), (Writer("a0", 0, (0,)), True, 0.0), (Writer("a0", 1, (1,)), False, 0.02)]
    parts += [(Writer("m0", 0, (0, 2, 3)), True, 0.0), (Writer("m0", 1, (1,)), False, 0.2)]
    cut = tuple(Decision(Edge(writer), kept, score, None, ATTRIBUTED) for writer, kept, score in parts)
    page = drawn(found, circuit=Circuit(cut, 0.1, {"method": "goal"}))
    assert page.sections[:3] == ["Baseline and pruned", "What died, and where", "What the deleted cost, by layer"]
    assert "layer 0, head 1 (a0.h1): 0.02" in page.told
    assert any("m0.p1 has the greatest, 0.2" in label for label in page.labels)
    nothing = Circuit(cut[:2], 0.1, {"method": "goal"})
    assert not {"Sensitivity by layer", "What the deleted cost, by layer"} & set(drawn(found, circuit=nothing).sections)


@pytest.mark.parametrize(("kind", "scheme"), [("pruned", "dark"), ("recovered", "light"), ("recovered", "dark")])
def test_a_browser_shows_it_on_a_phone(kind: str, scheme: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    page = request.getfixturevalue(kind) / "report.html"
    shown = shown_in_a_browser(
        page.read_text(),
        "document.body.innerText = inner.body.outerHTML + ' wide: ' + inner.documentElement.scrollWidth + "
        "', background: ' + getComputedStyle(inner.body).backgroundColor",
        tmp_path,
        scheme,
    )
    assert all(f"<h2>{title}</h2>" in shown for title in read(page.read_text()).sections)
    found = re.search(r" wide: (\d+), background: rgb\((\d+), (\d+), (\d+)\)", shown)
    assert found is not None
    wide, *colours = map(int, found.groups())
    assert wide <= 390
    assert all(one < 64 if scheme == "dark" else one > 192 for one in colours)
