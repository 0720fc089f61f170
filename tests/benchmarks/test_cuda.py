"""`python -m benchmarks.cuda`: a rehearsal of every step, as it is run by hand."""

import contextlib
import io
import json
import subprocess
import sys

import onnxruntime
import pytest

from benchmarks import cuda
from benchmarks.gpu import steps
from benchmarks.gpu.ledger import FORMAT, Ledger
from benchmarks.gpu.table import MOST_LINES, table
from vitfx.deploy.lowering import REWRITES
from vitfx.deploy.onnx_forms import FORMS
from vitfx.support.files import WriteError
from vitfx.support.json_files import read_json

STATES = {"done", "in part", "failed", "left out"}


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    """(exit code, the record, what was printed) of one `--dry`."""
    out, printed = tmp_path_factory.mktemp("rehearsal"), io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = cuda.main([str(out), "--dry"])
    return code, read_json(out / "cuda.json", FORMAT, "give one"), printed.getvalue()


def figures(rehearsal, name):
    return rehearsal[1]["steps"][name]["figures"]


def test_steps_of_a_rehearsal_are_done(tmp_path, capsys):
    """Two of them: all nine take a minute."""
    names = ["proof", "memory"]
    assert cuda.main([str(tmp_path), "--dry", "--steps", ",".join(names)]) == 0
    record = read_json(tmp_path / "cuda.json", FORMAT, "give one")
    assert {name: step["state"] for name, step in record["steps"].items()} == dict.fromkeys(names, "done")
    lines = capsys.readouterr().out.splitlines()
    assert any("proved on cpu" in line for line in lines)


@pytest.mark.slow
def test_every_step_of_a_rehearsal_is_done(rehearsal):
    code, record, _ = rehearsal
    assert list(record["steps"]) == list(steps.NAMES)
    errors = {name: (one["state"], one.get("traceback")) for name, one in record["steps"].items()}
    assert {state for state, _ in errors.values()} == {"done"} and code == 0, errors
    for one in record["steps"].values():
        assert one["seconds"] > 0 and one["seconds_given"] > 0 and one["peak_memory_mib"]["host"] > 0
        assert one["rows_left_out"] == 0


@pytest.mark.slow
def test_every_form_is_timed(rehearsal):
    times = [row["times"] for row in figures(rehearsal, "forms")["rows"] if "times" in row]
    assert len(times) == 2 and all({"plain", *FORMS} == set(row) for row in times)


@pytest.mark.slow
def test_figures_carry_what_they_depend_on(rehearsal):
    record = rehearsal[1]
    assert record["settings"]["seed"] == 0 and record["settings"]["device"] == "cpu"
    assert record["settings"]["sizes"]["batches"] == [2, 1]
    assert {"torch", "vitfx", "cpu", "gpus", "device", "float32_matmul_precision"} <= record["environment"].keys()
    assert record["environment"]["onnxruntime"] == onnxruntime.__version__
    assert record["unwritten"] is None and record["seconds"] > 0 and record["began"].endswith("Z")


@pytest.mark.slow
def test_the_table_is_short_and_says_it_all(rehearsal):
    lines = rehearsal[2].splitlines()
    assert len(lines) <= MOST_LINES and all(len(line) <= 118 for line in lines)
    for words in (
        *steps.NAMES,
        "proved on cpu",
        "as the CPU decides",
        "time/FLOPs",
        "a CUDA graph needs a GPU",
        "gloo",
    ):
        assert any(words in line for line in lines), words


@pytest.mark.slow
def test_proof(rehearsal):
    rows = figures(rehearsal, "proof")["rows"]
    assert [row["model"] for row in rows] == ["demo", "vit-s", "vit-b"]
    for row in rows:
        assert row["passed"] and row["notes"] == [] and row["float64"] < 1e-9 and row["logits_off_the_cpus"] == 0
        assert (
            row["measured"]["heads"] < row["before"]["heads"] and row["measured"]["neurons"] < row["before"]["neurons"]
        )


@pytest.mark.slow
def test_discovery(rehearsal):
    demo_head, small_head, demo_qkv, small_qkv = figures(rehearsal, "discovery")["rows"]
    for row in (demo_head, small_head, demo_qkv, small_qkv):
        assert row["agreeing"] == row["compared"] > 0 and row["times_faster"] > 0
        assert 0 < row["removed"] < row["decided"] and row["settings"]["tau"] == row["tau"]
    for row in (demo_head, demo_qkv):
        assert row["compared"] == row["decided"] == row["same_units"]
    # The CPU decided a sample.
    assert small_head["compared"] == -(-small_head["decided"] // 3)
    assert small_qkv["compared"] < small_qkv["decided"]


@pytest.mark.slow
def test_deletion(rehearsal):
    found = figures(rehearsal, "deletion")
    runtimes = {row["runtime"] for row in found["rows"]}
    assert {"eager", "cuda graph", "torch.compile", "onnxruntime cuda", "onnxruntime tensorrt"} <= runtimes
    for row in found["rows"]:
        if row["runtime"] == "cuda graph" or row["runtime"] in ("onnxruntime cuda", "onnxruntime tensorrt"):
            assert "needs a GPU" in row["unavailable"]
            continue
        assert row["times"]["whole"]["time_ratio"] == 1 and row["inputs"] == 2
        for name, times in row["times"].items():
            assert times["rounds"] == 3 and times["median_ms"] > 0 and (times["flops_ratio"] < 1) == (name != "whole")
    cells = {(row["model"], row["precision"], row["batch"]) for row in found["rows"] if row["runtime"] == "eager"}
    assert len(cells) == 2 * 3 * 2
    names = set(found["flops_ratio"]["vit-s"])
    assert names == {"whole", "heads 50%", "neurons÷8 50%", "neurons 50%", "sublayers 50%"}


@pytest.mark.slow
def test_goal_rewrites_training_group_and_memory(rehearsal):
    target, instead = figures(rehearsal, "goal")["rows"]
    assert target["target"] == "cpu:batch=2" and "rehearsal" in target["unavailable"]
    assert instead["proof"]["passed"] and instead["times"]["pruned"]["flops_ratio"] <= 0.7 and instead["speedup"] > 0
    found = figures(rehearsal, "rewrites")
    assert all(proof["error"] < 1e-10 and proof["applied"] for proof in found["proofs"].values())
    for row in found["rows"]:
        alone = REWRITES if row["model"] == "vit-s" else ()
        assert set(row["times"]) == {"plain", "all", "unpacked", *alone}
    rows = figures(rehearsal, "training")["rows"]
    assert [(row["what"], row["precision"]) for row in rows[2:]] == [
        ("training", "fp32"),
        ("recovery", "bf16"),
        ("recovery", "fp16"),
    ]
    assert all(row["steps_a_second"] > 0 and len(row["losses"]) == 6 for row in rows)
    group = figures(rehearsal, "group")
    assert (group["backend"], group["world"], group["sum_error"]) == ("gloo", 1, 0) and group["broadcast"]
    assert group["agreeing"] == group["decisions"] > 0 and group["gradient_error"] < 1e-6
    assert all(row["weights_mib"] > 0 for row in figures(rehearsal, "memory")["rows"])


def test_what_the_user_has_to_change_is_one_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cuda, "gpu_names", list)
    (tmp_path / "file").write_text("")
    (tmp_path / "earlier").mkdir()
    (tmp_path / "earlier" / "cuda.json").write_text("{}")
    for arguments, words in (
        ([str(tmp_path)], "sees no GPU here"),
        ([str(tmp_path), "--dry", "--steps", "proof,prof"], "--steps prof is not a step: choose from proof,"),
        ([str(tmp_path), "--dry", "--minutes", "0"], "--minutes is 0"),
        ([str(tmp_path), "--dry", "--seed", "-1"], "--seed is -1"),
        ([str(tmp_path / "file"), "--dry"], "can't be written"),
        ([str(tmp_path / "earlier"), "--dry"], "--force"),
    ):
        assert cuda.main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and words in error and error.count("\n") == 1


def work(asked, ledger):
    """Stands in for the process: the first step is done and the second at work."""
    ledger.take({"environment": {"cpu": "a CPU", "gpus": []}})
    ledger.take({"step": "proof", "record": {"state": "running", "figures": {}}})
    ledger.take({"step": "proof", "record": {"state": "done", "seconds": 1.0, "figures": {"nan": float("nan")}}})
    ledger.take({"step": "discovery", "record": {"state": "running", "figures": {"rows": []}}})


def test_ctrl_c_leaves_the_record_so_far(tmp_path, capsys, monkeypatch):
    def interrupted(asked, ledger):
        work(asked, ledger)
        raise KeyboardInterrupt

    monkeypatch.setattr(cuda, "supervise", interrupted)
    assert cuda.main([str(tmp_path / "new" / "out"), "--dry"]) == 130
    record = json.loads((tmp_path / "new" / "out" / "cuda.json").read_text())
    assert record["format"] == FORMAT and record["steps"]["proof"]["figures"] == {"nan": "nan"}
    assert record["steps"]["discovery"]["error"] == "stopped by the user"
    assert "stopped by the user" in capsys.readouterr().out


def test_a_full_folder_is_a_sentence_and_the_record_is_printed(tmp_path, capsys, monkeypatch):
    def full(path, format, record):
        raise WriteError("full") from OSError(28, "No space left on device")

    monkeypatch.setattr("benchmarks.gpu.ledger.write_json", full)
    monkeypatch.setattr(cuda, "supervise", work)
    assert cuda.main([str(tmp_path), "--dry", "--steps", "proof"]) == 1
    printed = capsys.readouterr()
    assert printed.err.count("No space left on device") == 1 and "Traceback" not in printed.err
    record, end = json.JSONDecoder().raw_decode(printed.out)
    assert "No space left" in record["unwritten"] and record["steps"]["proof"]["state"] == "done"
    assert "No space left" in printed.out[end:] and not list(tmp_path.iterdir())


def test_a_folder_that_has_room_again_is_written(tmp_path, monkeypatch):
    ledger = Ledger(tmp_path, {})
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.write_bytes", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        ledger.write()
    assert "No space left" in ledger.record["unwritten"]
    ledger.write()
    assert json.loads(ledger.path.read_text())["unwritten"] is None


def test_the_table_is_short_whatever_happens():
    """Every step full of lines and failures, and figures that can't be shown."""
    row = {
        "model": "vit-s",
        "error": "x" * 500,
        "precision": "bf16",
        "batch": 1,
        "runtime": "eager",
        "what": "training",
    }
    records = {
        step.name: {
            "state": "in part",
            "error": "RuntimeError: " + "y" * 500,
            "rows_left_out": 3,
            "figures": {"rows": [{**row, "variant": str(n), "model": f"m{n}"} for n in range(40)]},
        }
        for step in steps.STEPS
    }
    record = {"environment": None, "steps": records, "unwritten": "z" * 300, "seconds": 480.0}
    lines = table(record)
    assert len(lines) < 60 and all(len(line) <= 118 for line in lines[:-2])
    assert lines[-1] == "480 s in all" and any("more in the JSON file" in line for line in lines)
    assert any("can't be shown" in line for line in lines), "goal's rows have no goal here"


def test_the_table_shows_what_was_made_beside_rows_that_were_left_out():
    row = {"what": "training", "precision": "bf16", "left_out": "no time was left for it"}
    steps_left_out = {
        step.name: {"state": "in part", "rows_left_out": 1, "figures": {"rows": [row]}} for step in steps.STEPS
    }
    record = {"environment": None, "steps": steps_left_out, "unwritten": None, "seconds": 1.0}
    lines = table(record)
    assert not any("can't be shown" in line for line in lines)
    assert sum("1 rows were left out" in line for line in lines) == len(steps.STEPS)


def test_nothing_is_imported_that_a_machine_without_onnx_lacks():
    code = """
import importlib, sys
for name in ("onnx", "onnx_ir", "onnxruntime", "onnxscript"):
    sys.modules[name] = None
import benchmarks.cuda
from benchmarks.gpu.steps import STEPS
from benchmarks.gpu.onnx_runtime import CUDA, missing_provider
from benchmarks.gpu.worker import facts
import torch
for step in STEPS:
    step.load()
importlib.import_module("benchmarks.gpu.group_worker")
print(missing_provider(CUDA), facts(torch.device("cpu"))["onnxruntime"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ONNX Runtime is not installed") and done.stdout.endswith("None\n")
