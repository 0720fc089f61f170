import json

import pytest
import torch
from rich.console import Console
from torch import nn

from benchmarks import runtimes
from benchmarks.contenders import load_contenders
from benchmarks.evaluation import Evaluations, evaluate_contenders
from benchmarks.measure import LatencyRow, measure_latency, unsteady
from benchmarks.runtimes import main
from benchmarks.tables import evaluation_table, latency_table
from tests.support.benchmark_folder import CLASSES, COMPILED, CPU, DIGITS, EAGER, ONNX, linear, write_folder
from vitfx.deploy.evaluate import Scores
from vitfx.deploy.export import export_onnx
from vitfx.deploy.runtime import open_session
from vitfx.images.preprocess import Preprocess
from vitfx.images.splits import open_data
from vitfx.support.errors import UserError
from vitfx.support.progress import Silent
from vitfx.support.timing import Ratio, Timing


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("vit-pruned"))


def test_command_on_a_folder_measures_prints_and_writes(out, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(runtimes, "load_average", lambda: 500.0)
    target = tmp_path / "times.json"
    options = ["--samples", "30", "--batches", "1,4", "--rounds", "2", "--threads", "1", "--device", "cpu"]
    options += ["--runtimes", "torch,onnxruntime", "--out", str(target)]
    threads = torch.get_num_threads()
    assert main([str(out), *options]) == 0
    assert torch.get_num_threads() == threads
    printed = capsys.readouterr().out
    for words in (
        "test loss",
        "test accuracy",
        "inference time",
        "p10–p90",
        "30 images of digits",
        "500.0 threads were running",
    ):
        assert words in printed
    record = json.loads(target.read_text())
    assert record["settings"]["batches"] == [1, 4] and record["environment"]["threads"] == 1
    assert record["environment"]["load_average_before"] == 500
    assert list(record["evaluation"]["scores"]) == ["baseline", "pruned"]
    rows = [(row["runtime"], row["batch"], row["model"]) for row in record["latency"]]
    assert rows == [
        (runtime, batch, model)
        for batch in (1, 4)
        for runtime in ("torch cpu fp32", "onnxruntime cpu fp32")
        for model in ("baseline", "pruned")
    ]
    for row in record["latency"]:
        assert row["rounds"] == 2 and 0 < row["p10_ms"] <= row["median_ms"] <= row["p90_ms"]
        assert (row["ratio"]["paired"] == 1) == (row["model"] == "baseline")


def test_evaluation_is_the_models_own_loss_and_accuracy(out):
    contenders = load_contenders([str(out)])
    images = open_data("digits", DIGITS, CLASSES).evaluation.sample(30, seed=0)
    loaded = images.load()
    for way in (EAGER, ONNX):
        found = evaluate_contenders(contenders, [way], images, 8, 1)
        assert (found.runtime, found.batch) == (way.label, 8)
        assert list(found.scores) == ["baseline", "pruned"]
        for one, contender in zip(found.scores.values(), contenders, strict=True):
            with torch.no_grad():
                logits = contender.module(loaded.pixels)
            assert one.images == 30 and one.seconds > 0
            assert one.loss == pytest.approx(float(nn.functional.cross_entropy(logits, loaded.labels)), rel=1e-4)
            assert one.accuracy == pytest.approx(float((logits.argmax(1) == loaded.labels).float().mean()))


def test_evaluation_takes_a_runtime_that_all_models_have(out):
    contenders = load_contenders([str(out / "baseline.onnx"), str(out / "pruned.pt")])
    images = open_data("digits", DIGITS, CLASSES).evaluation.sample(4, seed=0)
    assert evaluate_contenders(contenders, [ONNX, EAGER], images, 4, 1).runtime == ONNX.label
    assert evaluate_contenders(contenders[1:], [COMPILED], images, 4, 1).runtime == EAGER.label
    with pytest.raises(UserError, match=r"no runtime takes all of the models \(an ONNX file has no torch form"):
        evaluate_contenders(contenders, [EAGER], images, 4, 1)


def test_files_of_both_kinds_are_contenders(out):
    names = [str(out / "baseline.onnx"), str(out / "pruned.pt"), str(out / "pruned.onnx")]
    contenders = load_contenders(names)
    assert [one.name for one in contenders] == ["baseline (1)", "pruned (2)", "pruned (3)"]
    assert [one.module is None for one in contenders] == [True, False, True]
    assert {one.preprocess for one in contenders} == {DIGITS}
    pixels = torch.randn(3, 3, 16, 16)
    _, exported, file = (open_session(one.onnx, CPU).run(pixels) for one in contenders)
    torch.testing.assert_close(exported, file)
    torch.testing.assert_close(exported, contenders[1].module(pixels), atol=1e-4, rtol=1e-4)


def test_the_baseline_of_a_recovered_model_is_its_teacher(out, tmp_path):
    for name in ("baseline.onnx", "pruned.onnx", "pruned.pt"):
        (tmp_path / name).write_bytes((out / name).read_bytes())
    teacher = json.loads((out / "report.json").read_text())["settings"]["model"]
    settings = {"model": str(out / "pruned.pt"), "teacher": teacher, "data": "digits"}
    (tmp_path / "report.json").write_text(json.dumps({"settings": settings}))

    def sizes(folder):
        contenders = load_contenders([str(folder)])
        return [sum(weight.numel() for weight in one.module.parameters()) for one in contenders]

    baseline, pruned = sizes(out)
    assert sizes(tmp_path) == [baseline, pruned] and baseline > pruned


def test_original_that_is_gone_costs_only_its_torch_rows(out, tmp_path):
    for name in ("baseline.onnx", "pruned.onnx", "pruned.pt"):
        (tmp_path / name).write_bytes((out / name).read_bytes())
    (tmp_path / "report.json").write_text(json.dumps({"settings": {"model": "moved.pt", "data": "digits"}}))
    contenders = load_contenders([str(tmp_path)])
    images = open_data("digits", DIGITS, CLASSES).evaluation
    rows = measure_latency(contenders, [EAGER, ONNX], images, [2], 1, 1, Silent())
    assert [row.timing is None for row in rows] == [True, False, False, False]
    assert "moved.pt does not exist" in rows[0].unavailable
    # Without the first model there is nothing to take the ratio to.
    assert [row.ratio is None for row in rows] == [True, True, False, False]


def show(table):
    console = Console(width=140, record=True, file=None, quiet=False)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def test_tables_say_what_was_measured_and_what_was_not():
    first, second = linear("first"), linear("second")
    rows = [
        LatencyRow("first", "torch", 8, Timing((2.0, 2.0)), Ratio(1.0, 1.0)),
        LatencyRow("second", "torch", 8, Timing((1.0, 1.0)), Ratio(0.5, 0.5)),
        LatencyRow("first", "torch-compile", 8, unavailable="no compiler"),
    ]
    text = show(latency_table(rows, (first, second)))
    assert "time by first's" in text and "0.500" in text and "1.00–1.00" in text and "– no compiler" in text
    scores = {
        "first": Scores(100, 2, 1.25, 0.755, 0.0, 1.0, 4.0),
        "second": Scores(100, 2, None, None, 0.5, 0.875, 1.0),
    }
    text = show(evaluation_table(Evaluations("torch", 8, scores), "digits"))
    for words in ("1.2500", "75.50%", "87.50%", "0.250", "2 corrupt ones left out", "–"):
        assert words in text


def test_unsteady_rows_are_counted():
    steady, wild = Timing((1.0,) * 10), Timing((1.0,) * 8 + (9.0,) * 2)
    rows = [LatencyRow("a", "torch", 1, timing) for timing in (steady, wild, None)]
    assert unsteady(rows) == 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["{out}", "--batches", "1,x"], "--batches is '1,x'"),
        (["{out}", "--batches", "0,8"], "--batches is [0, 8]"),
        (["{out}", "--rounds", "0"], "--rounds is 0"),
        (["{out}", "--samples", "-3"], "--samples is -3"),
        (["{out}", "--samples", "100000"], "100000"),
        (["{out}", "--threads", "0"], "--threads is 0"),
        (["{out}", "--runtimes", "tensorrt"], "'tensorrt' is not one of"),
        (["{out}", "--device", "tpu"], "device 'tpu' is not one of"),
        (["{out}", "--data", "nowhere"], "nowhere"),
        (["{out}/pruned.pt"], "is not a folder"),
        (["{out}/missing.pt", "{out}/pruned.pt"], "missing.pt"),
        (["{out}/missing.onnx", "{out}/pruned.pt"], "missing.onnx can't be read"),
        (["{out}/pruned.pt", "{out}/pruned.onnx"], "--data"),
        (["{out}/..", "--out", "{here}/times.json"], "holds no report.json"),
    ],
)
def test_mistakes_are_one_sentence_and_write_nothing(out, tmp_path, monkeypatch, capsys, options, sentence):
    monkeypatch.chdir(tmp_path)
    before = sorted(out.iterdir())
    assert main([option.format(out=out, here=tmp_path) for option in options]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ") and sentence in printed.err and printed.err.count("\n") == 1
    assert not printed.out and not list(tmp_path.iterdir()) and sorted(out.iterdir()) == before


def test_unwritable_output_is_refused_before_anything_runs(out, tmp_path, capsys):
    for target in (tmp_path, tmp_path / "missing" / "times.json"):
        assert main([str(out), "--out", str(target)]) == 2
        assert "can't be written" in capsys.readouterr().err


def test_models_that_cannot_be_compared_are_refused(out, tmp_path):
    module, example = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.zeros(2, 3, 2, 2)
    recorded = {"preprocess": json.dumps(Preprocess(size=(2, 2)).to_json())}
    export_onnx(module, tmp_path / "tiny.onnx", example, recorded)
    with pytest.raises(UserError, match="tiny and baseline prepare images differently"):
        load_contenders([str(tmp_path / "tiny.onnx"), str(out / "baseline.onnx")])
    export_onnx(module, tmp_path / "silent.onnx", example, {})
    with pytest.raises(UserError, match="none of the models says how its images are prepared"):
        load_contenders([str(tmp_path / "silent.onnx"), str(tmp_path / "silent.onnx")])
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(UserError, match="does not say which model was pruned"):
        load_contenders([str(tmp_path)])


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert "python -m benchmarks.runtimes vit-pruned/" in capsys.readouterr().out
