"""The benchmark of discovery: the naive loop, what is sampled, what is said of it, and the command."""

import json
import random
from collections import Counter

import pytest
import torch

from benchmarks import discovery
from benchmarks.agreement import agreement, engine_agreement, extrapolate, times, wilson
from benchmarks.discovery import main
from benchmarks.naive import Naive
from benchmarks.sampling import Answer, LiveSampler, Sample, Walk, draw, stratum, walk
from benchmarks.subject import open_subject
from tests.support.benchmark_folder import CPU, write_checkpoint
from vitfx.circuits.circuit import ATTRIBUTED, EXACT, GROUP, Circuit, Decision, Edge, Reader, Writer
from vitfx.discovery.basis.journal import NoJournal
from vitfx.discovery.basis.protocol import Limits
from vitfx.discovery.basis.settings import Settings
from vitfx.discovery.methods.acdc import acdc
from vitfx.discovery.methods.eap_acdc import eap_acdc
from vitfx.graph.divergence import kl_divergence
from vitfx.support.errors import UserError
from vitfx.support.progress import Silent


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small.pt"
    write_checkpoint(path, 2, data="digits")
    return str(path)


def subject(model, granularity):
    settings = Settings(granularity=granularity, samples=40, paths=2)
    return open_subject(model, None, settings, CPU, Silent())


def naive_of(one):
    return Naive(one.graph_module, one.graph, one.setup.calibration, one.setup.reference)


def report(done, total):
    pass


def test_the_naive_loop_runs_the_whole_edge_graph(model):
    one = subject(model, "qkv")
    naive = naive_of(one)
    removed = random.Random(0).sample(one.graph.edges(), 20)
    clean = one.setup.calibration.clean
    with torch.no_grad():
        expected = kl_divergence(one.graph.run(clean), one.graph.run(clean, removed, one.setup.reference)).mean()
    assert naive.kl(removed) == pytest.approx(float(expected), rel=1e-4)
    assert naive.kl(removed) > 1e-4
    assert naive.kl([]) == pytest.approx(0, abs=1e-9)


def test_every_edge_is_as_likely_and_all_depths_are_covered():
    counts = [0] * 10
    for seed in range(3000):
        chosen = draw(10, 4, seed)
        assert len(chosen) == 4 and chosen <= set(range(10))
        assert all(any(2.5 * span - 1 < one < 2.5 * (span + 1) for one in chosen) for span in range(4))
        for one in chosen:
            counts[one] += 1
    assert all(abs(count - 1200) < 150 for count in counts)
    assert draw(3, 40, 0) == {0, 1, 2}


@pytest.mark.parametrize(("granularity", "tau"), [("head", 0.3), ("qkv", 1e-3)])
def test_acdc_while_it_runs_and_on_its_circuit(model, granularity, tau):
    one, limits = subject(model, granularity), Limits(tau)
    naive = naive_of(one)
    everything = set(range(len(one.graph.edges())))
    sampler = LiveSampler(naive, everything, limits, report, together=False)
    decisions = acdc(one.engine(), one.order(), limits, NoJournal(), sampler)
    assert decisions == acdc(one.engine(), one.order(), limits, NoJournal())
    walked = walk(one.engine(), naive, decisions, everything, limits, report)
    for samples in (sampler.samples, walked.samples):
        assert [sample.decision for sample in samples] == decisions
        assert agreement(samples)["all"]["share"] == 1
        found = engine_agreement(samples)
        assert found["all"]["share"] == 1
        assert found["max_kl_difference"] < 1e-6 and 0 < found["exact"] <= len(decisions)
        removed = [sample.removed for sample in samples]
        assert removed == [sum(not other.kept for other in decisions[:at]) for at in range(len(decisions))]
    assert {sample.decision.kept for sample in sampler.samples} == {True, False}
    trials = sum(sample.engine.seconds for sample in walked.samples)
    assert extrapolate(walked, sum(not one.kept for one in decisions)) > trials
    assert dict(walked.edges) == Counter(stratum(one.edge) for one in decisions)


def test_eap_acdc_is_held_against_the_state_of_each_edge(model):
    """While it runs, at the states of the run; a walk afterwards goes reader by reader."""
    one, limits = subject(model, "qkv"), Limits(1e-3)
    naive = naive_of(one)
    everything = set(range(len(one.graph.edges())))
    sampler = LiveSampler(naive, everything, limits, report, together=True)
    decisions = eap_acdc(one.engine(), limits, NoJournal(), 0, sampler)
    assert any(sample.decision.basis == GROUP for sample in sampler.samples)
    removed = []
    for sample in sampler.samples:
        kl, new = naive.kl(removed), naive.kl([*removed, sample.decision.edge])
        assert sample.engine is None
        assert sample.kl == pytest.approx(kl, abs=1e-6) and sample.naive.kl == pytest.approx(new, abs=1e-6)
        assert sample.naive.kept == (not limits.allow(sample.naive.kl, sample.kl))
        if not sample.decision.kept:
            removed.append(sample.decision.edge)
    walked = walk(one.engine(), naive, decisions, everything, limits, report)
    assert {sample.decision.edge for sample in walked.samples} == {one.edge for one in decisions}
    assert all(sample.engine.kept == sample.naive.kept for sample in walked.samples)


def test_a_ranked_circuit_is_walked_reader_by_reader(model):
    one = subject(model, "qkv")
    decisions = [Decision(edge, index % 3 > 0, 0.0, None, ATTRIBUTED) for index, edge in enumerate(one.graph.edges())]
    random.Random(0).shuffle(decisions)
    everything = set(range(len(decisions)))
    walked = walk(one.engine(), naive_of(one), decisions, everything, Limits(1e-3), report)
    assert [sample.position for sample in walked.samples] == sorted(everything)
    assert {sample.decision for sample in walked.samples} == set(decisions)
    assert list(walked.edges) == list(dict.fromkeys(visit.reader.sublayer for visit in one.engine().visits()))
    assert all(sample.engine.kept == sample.naive.kept for sample in walked.samples)


def test_a_circuit_of_other_edges_is_refused(model):
    one = subject(model, "qkv")
    decisions = [Decision(edge, True, 0.0, None, ATTRIBUTED) for edge in one.graph.edges()]
    with pytest.raises(UserError, match="does not decide all edges of logits"):
        walk(one.engine(), naive_of(one), decisions[:-1], {0}, Limits(1e-3), report)


def sample(sublayer, kept, naive_kept, seconds, basis=EXACT, idle=False, removing=None):
    edge = Edge(Writer("embed"), Reader(sublayer))
    engine = None if seconds is None else Answer(seconds, 0.5, kept)
    naive = Answer(4.0, 0.25, naive_kept)
    return Sample(0, Decision(edge, kept, 0.1, 0.5, basis), 3, 0.1, idle, engine, naive, 2.0, removing)


def test_what_is_said_of_a_sample():
    samples = [
        sample("logits", True, True, 1.0),
        sample("logits", False, True, 3.0, GROUP),
        sample("m0", False, False, 0.0, idle=True),
    ]
    found = agreement(samples)
    numbers = {name: (one["agreeing"], one["edges"]) for name, one in found.items()}
    assert numbers == {
        "all": (2, 3),
        "idle": (1, 1),
        "asked": (1, 2),
        "exact": (1, 1),
        "group": (0, 1),
        "kept": (1, 1),
        "removed": (1, 2),
    }
    assert engine_agreement(samples)["max_kl_difference"] == 0.25
    seconds = times(samples)
    assert seconds["forward_pass_equivalents"] == {"naive": 2.0, "engine": 0.5}
    assert seconds["ratio_of_medians"]["value"] == 4.0
    assert seconds["paired_ratio"]["samples"] == 2
    unasked = [sample("logits", True, True, None)]
    assert engine_agreement(unasked) is None and times(unasked)["engine"] is None


def test_a_share_of_few_is_no_certainty():
    assert wilson(57, 60) == pytest.approx((0.8630, 0.9829), abs=1e-4)
    low, high = wilson(20, 20)
    assert low == pytest.approx(0.8389, abs=1e-4) and high == pytest.approx(1)


def test_extrapolation_goes_by_sublayer():
    samples = [
        sample("logits", True, True, 1.0),
        sample("logits", True, True, 2.0),
        sample("a1", False, False, 7.0, removing=0.5),
    ]
    # m1 has no sample, and the next that was visited is a1.
    walked = Walk(samples, 100.0, {"logits": 10, "m1": 5, "a1": 4, "m0": 3})
    # Nor has m0, behind which none comes.
    assert extrapolate(walked, removed=6) == 100 + 1.5 * 10 + 7 * (5 + 4 + 3) + 0.5 * 6


def test_command_runs_a_method_and_then_its_circuit(model, tmp_path, capsys):
    first, second, circuit = tmp_path / "run.json", tmp_path / "walk.json", tmp_path / "circuit.json"
    options = ["--samples", "20", "--paths", "2", "--granularity", "qkv", "--tau", "0.001", "--device", "cpu"]
    run = ["--method", "eap-acdc", "--write-circuit", str(circuit), "--out", str(first), "--edges", "9"]
    assert main([model, *options, *run]) == 0
    printed = capsys.readouterr().out
    assert "extrapolated" in printed and "eap-acdc: all" in printed
    assert main([model, *options, "--circuit", str(circuit), "--out", str(second), "--edges", "9"]) == 0
    printed = capsys.readouterr().out
    assert "circuit: all" in printed and "acdc's trials" in printed and "eap-acdc" not in printed
    ours, exact = json.loads(first.read_text()), json.loads(second.read_text())
    assert ours["whole_run"]["how"] == "measured" and exact["whole_run"]["how"] == "extrapolated"
    assert ours["agreement"]["all"]["edges"] == exact["agreement"]["all"]["edges"] == 9
    assert len(ours["samples"]) == len(exact["samples"]) == 9
    assert ours["edges"] == exact["edges"] == len(Circuit.from_json(circuit.read_text()).decisions)
    assert ours["whole_ratio"] == ours["naive_whole_run"]["seconds"] / ours["whole_run"]["seconds"]
    assert exact["engine_agreement"]["all"]["share"] == 1
    assert ours["data"] == exact["data"] and ours["environment"]["cores"] >= 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--edges", "0"], "--edges is 0: give 1 or more"),
        (["--out", "nowhere/x.json"], "--out nowhere/x.json can't be written"),
        (["--samples", "1"], "--samples 1 is too small"),
        (["--circuit", "nowhere.json"], "--circuit nowhere.json can't be read"),
        (["--circuit", "CIRCUIT", "--tau", "0.5"], "--tau 0.5 is not what --circuit was found with, 0.001: leave"),
        (["--circuit", "CIRCUIT", "--method", "acdc"], "--method is for a run"),
        (["--circuit", "RANKED"], "was found by eap: give --tau, the threshold to ask ACDC at"),
        (["--circuit", "CIRCUIT"], "--circuit was found on another model or other images"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(model, tmp_path, capsys, monkeypatch, options, sentence):
    monkeypatch.chdir(tmp_path)
    for name, method in (("CIRCUIT", "acdc"), ("RANKED", "eap")):
        settings = Settings(method=method, tau=0.001, samples=20).to_json()
        (tmp_path / name).write_text(Circuit((), 0.0, settings, {"model": "x", "images": "y"}).to_json())
    assert main([model, *options]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ") and sentence in printed.err and printed.err.count("\n") == 1
    assert not (tmp_path / "discovery.json").exists()


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert discovery.EXAMPLE.splitlines()[1] in capsys.readouterr().out
