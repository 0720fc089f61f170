"""python -m benchmarks.peers: rows that are made once, a page and a picture, one sentence for what is wrong."""

import json
import math
import re
from pathlib import Path

import pytest

from benchmarks import peer_package, subject
from benchmarks.command import read_finished
from benchmarks.coverage import FORMAT as COVERAGE
from benchmarks.match import Match
from benchmarks.peers import FORMAT, main
from benchmarks.peers_table import speeds_at_equal_accuracy
from tests.support.benchmark_folder import write_checkpoint
from vitfx.support.errors import UserError
from vitfx.support.json_files import write_json
from vitfx.support.pictures import has_matplotlib

OPTIONS = ["--samples", "24", "--eval-samples", "50", "--rounds", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small.pt"
    write_checkpoint(path, 2, data="digits")
    return str(path)


def test_command_makes_rows_and_goes_on(model, tmp_path, capsys, monkeypatch):
    out, page, picture = (tmp_path / name for name in ("peers.json", "peers.md", "peers.png"))
    command = [model, *OPTIONS, "--out", str(out)]
    assert main([*command, "--peers", "vbp", "--flops", "0.2,0.6"]) == 0
    first = json.loads(out.read_text())["rows"]
    assert list(first) == ["original", "vbp 0.2", "vbp 0.6"]
    assert first["original"]["agreement"] == 1 and abs(first["original"]["kl"]) < 1e-6
    assert first["original"]["deleted"] == 0 and first["original"]["accuracy"] == first["original"]["plain"]
    row = first["vbp 0.2"]
    assert 0.2 <= row["deleted"] < 0.21 and row["kl"] > 0 and 0 <= row["agreement"] <= 1 and row["images"] == 50
    assert row["standard_error"] == pytest.approx(math.sqrt(row["accuracy"] * (1 - row["accuracy"]) / 50))
    assert row["speedup"] > 0 and set(row["times"]) == {"plain", "this"} and row["seconds"] > 0
    assert "ask for less" in first["vbp 0.6"]["refused"]

    made = []
    monkeypatch.setattr(Match, "measure", lambda self, one: made.append(one) or {**first["vbp 0.2"], "kl": len(made)})
    more = ["--markdown", str(page)] + (["--plot", str(picture)] if has_matplotlib() else [])
    assert main([*command, "--peers", "vbp,corp", "--flops", "0.2", *more]) == 0
    second = json.loads(out.read_text())["rows"]
    assert len(made) == 1 and {name: second[name] for name in first} == first
    assert list(second) == [*first, "corp 0.2"] and second["corp 0.2"]["kl"] == 1
    assert "already has 1 of its rows" in capsys.readouterr().out
    lines = page.read_text().splitlines()
    assert sum(line.startswith("| ") for line in lines) == 2 + 4
    assert lines[-3].startswith("With 1 point of top-1 lost, along straight lines between the shares: ")
    assert lines[-1].startswith("vbp has no row at 60%: ")
    if has_matplotlib():
        assert picture.read_bytes().startswith(b"\x89PNG")

    assert main([*command, "--peers", "vbp", "--again", "vbp", "--flops", "0.2"]) == 0
    third = json.loads(out.read_text())["rows"]
    assert third["vbp 0.2"]["kl"] == 2 and {**third, "vbp 0.2": second["vbp 0.2"]} == second

    assert main([*command, "--peers", "vbp", "--flops", "0.2", "--seed", "1"]) == 2
    assert "was made with other settings" in capsys.readouterr().err
    assert json.loads(out.read_text())["rows"] == third


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--flops", "a"], "--flops is 'a': give shares such as"),
        (["--flops", "0.1,1"], "--flops is 0.1,1: give shares between 0 and 1"),
        (["--peers", "vbp,magic"], "--peers magic is not known: choose from random"),
        (["--again", "magic"], "--again magic is not known: choose from random"),
        (["--samples", "7"], "--samples is 7: give 8 or more"),
        (["--eval-samples", "0"], "--eval-samples is 0: give 1 or more"),
        (["--rounds", "0"], "--rounds is 0: give 1 or more"),
        (["--target", "cpu:batch=0"], "--target cpu:batch=0 is not a target"),
        (["--out", "nowhere/x.json"], "--out nowhere/x.json can't be written"),
        (["--plot", "nowhere/x.png"], "--plot nowhere/x.png can't be written"),
        (["--peers", "vbp", "--again", "corp"], "--again corp is not one of --peers"),
        (["--target", "cpu:fp16:batch=1"], "asks for fp16: all peers are timed in fp32"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(model, tmp_path, capsys, monkeypatch, options, sentence):
    monkeypatch.chdir(tmp_path)
    assert main([model, *options]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ") and sentence in printed.err and printed.err.count("\n") == 1


def test_a_missing_package_is_told_before_anything_is_made(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(peer_package.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(subject, "load_model", lambda name: pytest.fail("the model was loaded"))
    assert main([model, "--out", str(tmp_path / "peers.json"), "--peers", "vbp,torch-pruning-heads"]) == 2
    assert "torch-pruning is not installed: pip install 'vitfx[peers]'" in capsys.readouterr().err


def test_speeds_where_a_point_is_lost_are_on_straight_lines():
    def row(peer, share, accuracy, speedup):
        return {"peer": peer, "share": share, "accuracy": accuracy, "speedup": speedup}

    rows = [
        row("original", 0.0, 0.75, 1.2),
        row("slow", 0.1, 0.73, 1.4),
        row("far", 0.1, 0.745, 1.3),
        row("far", 0.2, 0.735, 1.5),
        row("all", 0.1, 0.76, 1.25),
        {"peer": "all", "share": 0.2, "refused": "too much"},
    ]
    record = {"rows": {f"{one['peer']} {one['share']}": one for one in rows}}
    found = speeds_at_equal_accuracy(record)
    assert list(found) == ["slow", "far", "all"]
    assert found["slow"] == (pytest.approx(1.3), False)
    assert found["far"] == (pytest.approx(1.4), False)
    assert found["all"] == (1.25, True)
    assert speeds_at_equal_accuracy({"rows": {"original": row("original", 0.0, None, 1.2)}}) == {}


def test_records_are_read_back_and_others_refused(tmp_path):
    out = tmp_path / "x.json"
    assert read_finished(out, FORMAT, {"a": 1}, "rows", "more") == {"rows": {}, "more": {}}
    write_json(out, FORMAT, {"asked": {"a": 1}, "rows": {"one": 2}})
    assert read_finished(out, FORMAT, {"a": 1}, "rows") == {"rows": {"one": 2}}
    for part in ("rows", "what a later version adds"):
        with pytest.raises(UserError, match="was made with other settings"):
            read_finished(out, FORMAT, {"a": 2}, part)
    for text, reason in (
        ("{}", "is of no format"),
        ("[", "is not JSON"),
        ('{"format": "vitfx-methods/1", "asked": {"a": 1}, "rows": {}}', "is a vitfx-methods/1, not a vitfx-peers/1"),
        ('{"format": "vitfx-peers/1", "asked": {"a": 1}}', "has no rows"),
        ('{"format": "vitfx-peers/1", "asked": {"a": 1}, "rows": 3}', "has no rows"),
    ):
        out.write_text(text)
        with pytest.raises(UserError, match=rf"x.json {reason}.*: give another name with --out"):
            read_finished(out, FORMAT, {"a": 1}, "rows")


def test_every_record_in_the_docs_names_a_format_that_the_code_writes():
    root = Path(__file__).resolve().parents[2]
    formats = {path.name: json.loads(path.read_text())["format"] for path in (root / "docs").glob("*.json")}
    assert (formats["peers.json"], formats["families.json"]) == (FORMAT, COVERAGE)
    code = "".join(path.read_text() for folder in ("vitfx", "benchmarks") for path in (root / folder).rglob("*.py"))
    assert set(formats.values()) <= set(re.findall(r'"(vitfx-[a-z0-9-]+/\d+)"', code))


def test_ctrl_c_says_that_it_goes_on(model, tmp_path, capsys, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmarks.peers.compare", stop)
    assert main([model, "--out", str(tmp_path / "peers.json")]) == 130
    assert capsys.readouterr().err == "\nstopped; the same command goes on where it stopped\n"
