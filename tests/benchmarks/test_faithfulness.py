"""`benchmarks.faithfulness`: its rows, how they resume, and what is said and drawn of them."""

import json

import pytest

from benchmarks import faithfulness, rankings
from benchmarks.faithfulness import main
from benchmarks.faithfulness_table import draw, markdown
from benchmarks.planted import CIRCUIT, FORMAT, write_planted
from vitfx.support.json_files import write_json

SIZES = ("--paths", "2", "--samples", "16", "--eval-samples", "20", "--taus", "0.003,0.03", "--exact", "8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    write_planted(folder, 120)
    return folder


def run(folder, out, *more):
    return main([str(folder / "planted.pt"), "--out", str(out), *SIZES, *more])


def rows(out):
    return json.loads(out.read_text())["rows"]


@pytest.fixture(scope="module")
def record(folder):
    out, truth = folder / "out.json", str(folder / "circuit.json")
    asked = ("--methods", "random,eap:logit-difference,acdc", "--seeds", "2", "--truth", truth, "--granularity", "edge")
    assert run(folder, out, *asked, "--markdown", str(folder / "out.md"), "--plot", str(folder / "out.png")) == 0
    return json.loads(out.read_text())


def test_a_row_for_each_method_and_seed(record):
    assert list(record["rows"]) == [
        f"{method} {seed}" for seed in (0, 1) for method in ("random", "eap:logit-difference", "acdc")
    ]
    assert len({row["calibration"] for row in record["rows"].values()}) == 2
    assert record["asked"]["data"]["answered_rightly"] == 20
    assert record["asked"]["truth"] == sorted(CIRCUIT["edge"])


def test_the_planted_circuit_is_found_and_faithful(record):
    for name, row in record["rows"].items():
        areas = row["areas"]["logit-difference"]
        if name.startswith("random"):
            assert areas["CPR"] < 0.7
        else:
            assert row["auroc"] >= 0.95
            assert areas["CPR"] > 0.85 and areas["CMD"] < 0.15


def test_pages(folder, record):
    text = (folder / "out.md").read_text()
    assert text == markdown(record)
    first = next(line for line in text.splitlines() if line.startswith("| ") and "±" in line)
    best = max(record["rows"].values(), key=lambda row: row["areas"]["logit-difference"]["CPR"])["method"]
    assert first.startswith(f"| {best} |")
    assert "edge graph of 136 edges, mean ablation, 16 calibration and 20 evaluation images" in text
    assert (folder / "out.png").read_bytes().startswith(b"\x89PNG")
    panels = draw(record).axes
    assert len(panels) == 4
    lines = [line for line in panels[0].lines if not str(line.get_label()).startswith("_")]
    assert [line.get_label() for line in lines] == ["random", "eap:logit-difference", "acdc"]
    assert all(line.get_ydata()[-1] == pytest.approx(1) for line in lines)


def test_rows_of_an_earlier_run_are_not_made_again(folder, tmp_path, monkeypatch):
    out = tmp_path / "out.json"
    assert run(folder, out, "--methods", "random", "--seeds", "1") == 0
    first = rows(out)["random 0"]
    made = []
    real = faithfulness._Trial.row
    monkeypatch.setattr(
        faithfulness._Trial, "row", lambda self, method, *more: made.append(method) or real(self, method, *more)
    )
    assert run(folder, out, "--methods", "random,magnitude", "--seeds", "1") == 0
    assert made == ["magnitude"]
    assert rows(out)["random 0"] == first


def test_an_interrupted_ranking_goes_on_after_its_last_run(folder, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole.json", tmp_path / "out.json"
    asked = ("--methods", "acdc", "--seeds", "1")
    assert run(folder, whole, *asked) == 0
    real, thresholds = rankings.decide, []

    def decide(subject, order, tau, *more):
        if thresholds == [0.003]:
            raise KeyboardInterrupt
        thresholds.append(tau)
        return real(subject, order, tau, *more)

    monkeypatch.setattr(rankings, "decide", decide)
    assert run(folder, out, *asked) == 130
    assert list(json.loads(out.read_text())["runs"]["acdc 0"]) == ["0.003"]
    thresholds.append("resumed")
    assert run(folder, out, *asked) == 0
    assert thresholds == [0.003, "resumed", 0.03]
    for name in ("signed", "magnitude", "areas"):
        assert rows(out)["acdc 0"][name] == rows(whole)["acdc 0"][name]
    assert json.loads(out.read_text())["runs"] == {}


def test_another_question_does_not_mix_with_its_rows(folder, tmp_path, capsys):
    out = tmp_path / "out.json"
    assert run(folder, out, "--methods", "random", "--seeds", "1") == 0
    assert run(folder, out, "--methods", "random", "--seeds", "1", "--ablation", "zero") == 2
    assert "made with other settings" in capsys.readouterr().err


def test_resampling_takes_the_evaluation_images_own_counterparts(folder, tmp_path):
    out = tmp_path / "out.json"
    assert run(folder, out, "--methods", "eap", "--seeds", "1", "--ablation", "resample") == 0
    row = rows(out)["eap 0"]
    assert row["whole"]["logit-difference"] > 5
    # With everything resampled the answer is the counterfactual's, which is another class.
    assert row["empty"]["logit-difference"] < -5


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--methods", "goal"), "method goal can't be ranked"),
        (("--seeds", "0"), "--seeds is 0: give 1 or more"),
        (("--taus", "often"), "--taus is 'often': give thresholds such as 0.001,0.01,0.1"),
        (("--taus", "-1"), "--taus is -1: give finite thresholds of 0 or more"),
        (("--truth", "circuit.json", "--granularity", "block"), "has no circuit of the block graph"),
        (("--truth", "other.json"), "--truth names a9.h0→stream, which this graph does not have"),
    ],
)
def test_mistakes_are_told(folder, tmp_path, monkeypatch, capsys, more, message):
    monkeypatch.chdir(folder)
    write_json(folder / "other.json", FORMAT, {"edges": {"head": ["a9.h0→stream"]}})
    assert run(folder, tmp_path / "out.json", "--methods", "random", "--seeds", "1", *more) == 2
    assert message in " ".join(capsys.readouterr().err.split())
