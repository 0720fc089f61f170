"""How the steps of `benchmarks.cuda` are run, timed and compared. Their figures: see test_cuda.py."""

import gc
import json
import signal
import sys
import time
import weakref
from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace
from unittest.mock import MagicMock

import onnxruntime
import pytest
import torch

from benchmarks.gpu import goal, onnx_runtime
from benchmarks.gpu import steps as running
from benchmarks.gpu.context import Context
from benchmarks.gpu.discovery import Watch, agreement
from benchmarks.gpu.models import SMALL, build_subject
from benchmarks.gpu.onnx_runtime import CPU, CUDA, NotHere, bind, missing_provider
from benchmarks.gpu.plans import ALIGNED, HEADS, KINDS, ODD, SUBLAYERS, plan_for
from benchmarks.gpu.sizes import TINY
from benchmarks.gpu.steps import Step, run_steps
from benchmarks.gpu.timing import TimeUp, capture, rotated_inputs, time_in_turns, time_limit
from vitfx.circuits.circuit import BOUND, EXACT, Decision, Edge, Writer

DEVICE = torch.device("cpu")


@pytest.fixture(scope="module")
def subject():
    return build_subject(SMALL, TINY, 0)


@dataclass(frozen=True)
class Fake(Step):
    """A step that is given what it does."""

    work: object = None

    def load(self):
        return SimpleNamespace(run=self.work, lines=lambda figures: [])


def run_fakes(monkeypatch, tmp_path, seconds=60.0, **works):
    """The last record of each, and whether the process can go on."""
    fakes = tuple(Fake(name, name, 1, 0, 4, work) for name, work in works.items())
    monkeypatch.setattr(running, "STEPS", fakes)
    records = {}
    context = Context(DEVICE, 0, tmp_path)
    goes_on = run_steps(list(works), context, seconds, lambda event: records.update({event["step"]: event["record"]}))
    return records, goes_on


def test_a_step_that_fails_is_a_record_with_what_it_found_and_the_next_goes_on(monkeypatch, tmp_path):
    def broken(context, figures):
        figures["found"] = 1
        raise RuntimeError("the kernel\nis not there")

    def rows(context, figures):
        figures["rows"] = []
        assert not context.attempt(figures["rows"], {"model": "a"}, lambda row: 1 / 0)
        assert context.attempt(figures["rows"], {"model": "b"}, lambda row: row.update(ms=1.0))

    def ends(context, figures):
        sys.exit(3)

    records, goes_on = run_fakes(
        monkeypatch, tmp_path, broken=broken, rows=rows, ends=ends, fine=lambda context, figures: None
    )
    assert goes_on
    assert [one["state"] for one in records.values()] == ["failed", "in part", "failed", "done"]
    assert records["broken"]["error"] == "RuntimeError: the kernel is not there"
    assert "in broken" in records["broken"]["traceback"] and records["broken"]["figures"] == {"found": 1}
    first, second = records["rows"]["figures"]["rows"]
    assert first["error"] == "ZeroDivisionError: division by zero" and "Traceback" in first["traceback"]
    assert second == {"model": "b", "ms": 1.0}
    assert json.dumps(records)


def test_a_module_that_cant_be_imported_is_a_failed_step(monkeypatch, tmp_path):
    monkeypatch.setattr(running, "STEPS", (Step("absent", "absent", 1, 0, 4),))
    records = []
    assert run_steps(["absent"], Context(DEVICE, 0, tmp_path), 60, lambda event: records.append(event["record"]))
    assert records[-1]["state"] == "failed" and "ModuleNotFoundError" in records[-1]["error"]


def test_steps_are_stopped_when_their_time_is_over(monkeypatch, tmp_path):
    def long(context, figures):
        figures["begun"] = True
        context.attempt(figures.setdefault("rows", []), {}, lambda row: time.sleep(30))

    def unhurried(context, figures):
        while context.left() > 0:
            time.sleep(0.01)
        context.attempt(figures.setdefault("rows", []), {"batch": 8}, lambda row: row.update(ms=1.0))

    began = time.monotonic()
    records, _ = run_fakes(monkeypatch, tmp_path, seconds=0.5, long=long)
    assert time.monotonic() - began < 10
    assert records["long"]["state"] == "in part" and "longer than the" in records["long"]["error"]
    records, _ = run_fakes(monkeypatch, tmp_path, seconds=0.5, unhurried=unhurried)
    assert records["unhurried"]["figures"]["rows"] == [{"batch": 8, "left_out": "no time was left for it"}]
    assert records["unhurried"]["rows_left_out"] == 1


def test_a_step_without_time_is_left_out_on_a_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(running, "is_gpu", lambda device: True)
    monkeypatch.setattr(running, "STEPS", (Step("proof", "", 1, 1000, 4),))
    records = []
    assert run_steps(["proof"], Context(DEVICE, 0, tmp_path), 5, lambda event: records.append(event["record"]))
    assert records == [{"state": "left out", "error": "5 s were left, and it needs 1000"}]


def test_a_spoilt_device_is_left_to_another_process(monkeypatch, tmp_path):
    def spoil(context, figures):
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(running, "_usable", lambda device: False)
    records, goes_on = run_fakes(monkeypatch, tmp_path, spoil=spoil, after=lambda context, figures: None)
    assert not goes_on and list(records) == ["spoil"]


def test_time_limits_nest():
    with pytest.raises(TimeUp, match="the outer"), time_limit(0.2, "the outer"):
        with pytest.raises(TimeUp, match="the inner"), time_limit(0.05, "the inner"):
            time.sleep(5)
        with time_limit(5, "another"):
            pass
        time.sleep(5)
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_runs_take_turns_on_rotated_inputs():
    seen = []
    inputs = rotated_inputs((2, 3), torch.float16, DEVICE, 0)
    assert [tuple(one.shape) for one in inputs] == [(2, 3)] * 2 and not torch.equal(*inputs)
    runs = {name: lambda pixels, name=name: seen.append((name, pixels.data_ptr())) for name in "abc"}
    found = time_in_turns(runs, inputs, DEVICE, rounds=4, seconds=1)
    assert all(timing.rounds == 4 for timing in found.values())
    assert [name for name, _ in seen[9:]] == list("abc" + "bca" + "cab" + "abc")
    assert all(first[1] != second[1] for first, second in pairwise(seen))


def test_a_missing_provider_is_said(monkeypatch):
    assert missing_provider(CPU) is None
    with monkeypatch.context() as patch:
        patch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
        assert missing_provider(CUDA) == f"ONNX Runtime {onnxruntime.__version__} is installed without {CUDA}"
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert missing_provider(CUDA).startswith("ONNX Runtime is not installed")


def test_a_provider_that_gives_way_is_an_error(monkeypatch):
    asked = []

    def session(model, provider, example, device, *, half, alone):
        asked.append(alone)
        if alone:
            raise RuntimeError("nodes were assigned to the default CPU EP")
        return SimpleNamespace(get_providers=lambda: [CPU])

    monkeypatch.setattr(onnx_runtime, "_session", session)
    with pytest.raises(NotHere, match="asked for CUDAExecutionProvider and took CPUExecutionProvider"):
        bind(b"", CUDA, torch.zeros(2, 3, 8, 8), DEVICE, half=False)
    assert asked == [True, False]


def test_plans_delete_what_they_say(subject):
    graph_module = subject.graph_module
    units = {kind: [len(one.units) for one in plan_for(graph_module, kind, 0.3, 0).deletions] for kind in KINDS[:3]}
    assert units == {HEADS: [1, 1], ALIGNED: [16, 16], ODD: [17, 17]}
    (gone,) = plan_for(graph_module, SUBLAYERS, 0.3, 0).deletions
    assert gone.whole
    assert plan_for(graph_module, HEADS, 0.3, 0) == plan_for(graph_module, HEADS, 0.3, 0)
    assert all(one.constant is not None for one in plan_for(graph_module, HEADS, 0.3, 0, constants=True).deletions)


def test_subjects_are_the_seeds(subject):
    again, other = build_subject(SMALL, TINY, 0), build_subject(SMALL, TINY, 1)
    with torch.no_grad():
        logits = [one.graph_module(subject.pixels) for one in (subject, again, other)]
    assert torch.equal(logits[0], logits[1]) and not torch.equal(logits[0], logits[2])
    assert float(logits[0].std(0).mean()) == pytest.approx(2, rel=0.3)


def decision(name, kept, kl, basis=EXACT):
    return Decision(Edge(Writer(name)), kept, kl, kl, basis)


def test_decisions_that_differ_are_counted_and_named():
    device, cpu = Watch(time.monotonic() + 60), Watch(time.monotonic() + 60)
    device.record([decision("a", True, 0.5), decision("b", False, 0.25), decision("c", True, 9.0, BOUND)])
    cpu.record([decision("a", True, 0.75), decision("b", True, 0.25), decision("c", True, 5.0, BOUND)])
    found = agreement(device, cpu)
    assert (found["compared"], found["agreeing"], found["kl_difference"]) == (3, 2, 0.25)
    assert found["first_other"] == [[Edge(Writer("b")).name, False, 0.25, 0.25]]


def test_a_watch_takes_over_all_but_a_sample_and_ends_where_nothing_is_known():
    edges = [Edge(Writer(name)) for name in "abcd"]
    known = {edge.name: Decision(edge, True, 0.0, 0.0) for edge in edges[:3]}
    watch = Watch(time.monotonic() + 60, known, sampled=2)
    assert [watch.recall([edge]) is None for edge in edges[:3]] == [True, False, True]
    with pytest.raises(TimeUp, match="no further"):
        watch.recall(edges[3:])
    with pytest.raises(TimeUp, match="over"):
        Watch(time.monotonic() - 1).bar("importance")(1, 2)


def test_a_target_is_asked_for_as_the_command_asks(monkeypatch, tmp_path):
    """The search itself is tested in tests/pruning; here, that it is asked for what it takes, and its answer read."""
    price = {"speed-up": 1.31, "predicted": 1.28, "met": True}
    asked = []

    def compiled(module, images, goal, *, device, watcher):
        asked.append(goal)
        proof = SimpleNamespace(to_json=lambda: {"passed": True})
        circuit = SimpleNamespace(details={"price": price})
        return SimpleNamespace(circuit=circuit, missed=None, verification=proof, artifact_kl=0.1)

    monkeypatch.setattr("vitfx.pruning.prune_for_goal.compile_for_goal", compiled)
    row = {"target": "cuda:0:fp16:batch=64", "goal": "1.3× faster"}
    goal._speedup(Context(DEVICE, 5, tmp_path), row)
    assert str(asked[0].target) == "cuda:0:fp16:batch=64" and asked[0].fresh and asked[0].seed == 5
    assert asked[0].goal.value == 1.3 and asked[0].deployment.rewrites
    assert row["speedup"] == 1.31 and row["met"] and json.dumps(row)
    assert "measured 1.31×, predicted 1.28×" in goal.lines({"rows": [row]})[0]


def test_a_captured_run_keeps_its_weights(monkeypatch):
    """A CUDA graph reads them where they lie: one whose module was freed read memory of others."""
    stream = MagicMock()
    for name in ("Stream", "current_stream", "stream", "CUDAGraph", "graph"):
        monkeypatch.setattr(torch.cuda, name, MagicMock(return_value=stream))
    module = torch.nn.Linear(2, 2)
    alive = weakref.ref(module)
    replay = capture(module, torch.zeros(1, 2))
    del module
    gc.collect()
    assert alive() is not None and replay(torch.ones(1, 2)).shape == (1, 2)
    stream.replay.assert_called_once_with()
