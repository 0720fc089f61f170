"""The comparison of methods: shares that are met, models that are really smaller, tables, and going on."""

import json
import math

import pytest
import torch

from benchmarks import comparison, thresholds
from benchmarks.candidates import Candidate, Workshop, score
from benchmarks.comparison import Comparison
from benchmarks.methods import main
from benchmarks.methods_table import markdown
from benchmarks.subject import open_subject
from benchmarks.thresholds import OVERSHOOT, ThresholdRun, at_share, next_tau, runner
from passes.cost import unit_flops
from tests.support.benchmark_folder import CPU, write_checkpoint
from vitfx.circuits.circuit import BOUND, EMBED, EXACT, Decision, Edge
from vitfx.discovery.basis.settings import Settings
from vitfx.discovery.methods.rank import least
from vitfx.graph.verify import ablated_logits
from vitfx.support.errors import UserError
from vitfx.support.progress import Silent

SETTINGS = Settings(samples=20, paths=8)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small.pt"
    write_checkpoint(path, 2, data="digits")
    return str(path)


@pytest.fixture(scope="module")
def workshop(model):
    return Workshop(open_subject(model, None, SETTINGS, CPU, Silent()), SETTINGS)


@pytest.fixture(scope="module")
def unit(workshop):
    """The greatest share that one edge stands for."""
    modules = [stage.sublayer for stage in workshop.subject.graph.stages if stage.sublayer is not None]
    flops = [unit_flops(one, workshop.tokens) * (1 if one.kind == "head" else 4) for one in modules]
    return max(flops) / workshop.before.flops


def report(done, total):
    pass


@pytest.mark.parametrize("method", ["random", "magnitude", "taylor", "eap", "eap-ig"])
@pytest.mark.parametrize("share", [0.1, 0.4])
def test_ranking_meets_the_share_with_what_is_least(workshop, unit, method, share):
    scores = score(workshop.subject, SETTINGS, method, 0, report)
    found = workshop.ranked(scores, share)
    assert share <= found.deleted < share + unit
    expected = least(workshop.subject.graph, scores, share, workshop.tokens, workshop.before.flops)
    assert found.decisions == expected
    artifact, deleted = workshop.build(found.decisions)
    assert deleted == pytest.approx(found.deleted, abs=1e-12)
    pixels = workshop.subject.opened.images.pixels
    oracle = ablated_logits(workshop.whole, workshop.plan(found.decisions), pixels)
    with torch.no_grad():
        assert torch.allclose(artifact(pixels), oracle, atol=1e-4)


def test_ranking_by_reader_is_cut_where_enough_is_dead(model):
    settings = Settings(granularity="qkv", samples=20, paths=8)
    workshop = Workshop(open_subject(model, None, settings, CPU, Silent()), settings)
    scores = score(workshop.subject, settings, "eap", 0, report)
    found = workshop.ranked(scores, 0.2)
    assert found.deleted >= 0.2
    fewer = sum(not one.kept for one in found.decisions) - 1
    ranked = sorted(found.decisions, key=lambda one: one.score)
    less = [Decision(one.edge, at >= fewer, one.score, None) for at, one in enumerate(ranked)]
    assert workshop.deleted(less) < 0.2
    assert workshop.trim(found) is found


@pytest.mark.parametrize("method", ["acdc", "eap-acdc"])
def test_thresholds_are_searched_and_trimmed_to_the_share(workshop, unit, method):
    run, runs = runner(workshop, method, report), []
    candidate, added = at_share(workshop, runs, run, 0.3)
    assert added == len(runs) and all(one.seconds > 0 for one in runs)
    assert 0.3 <= candidate.deleted < 0.3 + unit
    (source,) = [one for one in runs if one.tau == candidate.tau]
    assert source.deleted >= candidate.deleted
    gone = [sum(not one.kept for one in each) for each in (source.decisions, candidate.decisions)]
    assert gone[0] - gone[1] == candidate.trimmed


def test_trimming_puts_the_highest_score_for_its_flops_back(workshop, unit):
    def decide(edge):
        if edge.writer.sublayer == EMBED:
            return Decision(edge, True, 1.0, None, EXACT)
        return Decision(edge, False, {"m0.p3": 0.5, "m1.p1": 0.4}.get(edge.writer.name, 1e-6), 0.1, EXACT)

    decisions = [decide(Edge(one)) for one in workshop.subject.graph.writers]
    everything = workshop.deleted(decisions)
    path = 4 * unit_flops(workshop.subject.graph.stages[workshop.subject.graph.last].sublayer, workshop.tokens)
    share = everything - 2.5 * path / workshop.before.flops
    trimmed = workshop.trim(Candidate(share, everything, decisions))
    back = [one.edge.writer.name for one in trimmed.decisions if one.kept and one.edge.writer.sublayer != EMBED]
    assert back == ["m0.p3", "m1.p1"] and trimmed.trimmed == 2
    assert share <= trimmed.deleted < share + unit


def run_of(tau, deleted):
    return ThresholdRun(tau, deleted, 1.0, [])


def test_the_next_threshold():
    assert next_tau([], 0.2) == pytest.approx(3e-3)
    assert next_tau([run_of(3e-3, 0.5)], 0.2) == pytest.approx(3e-4)
    assert next_tau([run_of(3e-3, 0.1)], 0.2) == pytest.approx(3e-2)
    between = [run_of(1e-4, 0.1), run_of(1e-2, 0.3), run_of(1e-6, 0.0), run_of(1e-1, 0.9)]
    assert next_tau(between, 0.2) == pytest.approx(1e-3)
    assert next_tau([run_of(1e-4, 0.1), run_of(1e-2, math.inf)], 0.2) == pytest.approx(1e-3)
    assert next_tau([run_of(1e-4, 0.1), run_of(1e-2, 0.9)], 0.1001) == pytest.approx(10**-3.5)


class Untrimmed:
    def trim(self, candidate):
        return candidate


def test_the_search_ends():
    def found(curve):
        runs = []
        return (*at_share(Untrimmed(), runs, lambda tau: run_of(tau, curve(tau)), 0.2), runs)

    candidate, added, runs = found(lambda tau: min(0.9, 0.1 * math.log10(tau / 1e-6)))
    assert 0.2 <= candidate.deleted <= 0.2 + OVERSHOOT and added == len(runs) < thresholds.RUNS
    assert at_share(Untrimmed(), runs, None, 0.2) == (candidate, 0)
    # A jump over the share: the circuit above it is taken once both sides are near each other, or runs are used up.
    candidate, added, runs = found(lambda tau: 0.5 if tau > 1.7e-3 else 0.05)
    assert candidate.deleted == 0.5 and added <= thresholds.RUNS
    candidate, added, _ = found(lambda tau: 0.05)
    assert (candidate.deleted, added) == (0.05, thresholds.RUNS)
    # More τ deletes less between two runs: what lies there is no nearer, and is not run again.
    candidate, added, _ = found(lambda tau: 0.1 if tau < 4e-4 else 0.9 if tau < 2e-3 else 0.5)
    assert (candidate.deleted, added) == (0.5, 3)
    with pytest.raises(UserError, match=r"every τ that was tried leaves nothing of the image: leave 0\.2 out"):
        found(lambda tau: math.inf)


OPTIONS = ["--samples", "20", "--flops", "0.1,0.3", "--eval-samples", "50", "--device", "cpu"]


def test_command_compares_writes_and_goes_on(model, tmp_path, capsys, monkeypatch):
    out, page = tmp_path / "methods.json", tmp_path / "table.md"
    command = [model, *OPTIONS, "--out", str(out)]
    assert main([*command, "--methods", "random,eap"]) == 0
    first = json.loads(out.read_text())
    assert list(first["methods"]) == ["random", "eap"]
    random, ranked = first["methods"]["random"], first["methods"]["eap"]
    assert [(one["share"], one["seed"]) for one in random["rows"]] == [(s, n) for n in range(3) for s in (0.1, 0.3)]
    assert random["runs"] == 3 and ranked["runs"] == 1 and ranked["searched"] == []
    for row in (*random["rows"], *ranked["rows"]):
        assert row["deleted"] >= row["share"] and row["images"] == 50 and row["units"]
        assert row["kl"] > 0 and row["calibration_kl"] > 0 and 0 <= row["agreement"] <= 1
        accuracy = row["accuracy"]
        assert row["standard_error"] == pytest.approx(math.sqrt(accuracy * (1 - accuracy) / 50))
    assert ranked["whole"]["agreement"] == 1 and ranked["whole"]["kl"] == 0

    measured = []
    measure = Comparison.measure
    monkeypatch.setattr(
        Comparison, "measure", lambda self, name, *rest: measured.append(name) or measure(self, name, *rest)
    )
    assert main([*command, "--methods", "eap-acdc,eap", "--markdown", str(page)]) == 0
    assert measured == ["eap-acdc"]
    second = json.loads(out.read_text())
    assert {name: second["methods"][name] for name in first["methods"]} == first["methods"]
    assert all(row["tau"] > 0 for row in second["methods"]["eap-acdc"]["rows"])
    lines = page.read_text().splitlines()
    assert sum(line.startswith("| ") for line in lines) == 2 + 6
    assert "eap-acdc" in capsys.readouterr().out

    assert main([*command, "--methods", "eap", "--seed", "1"]) == 2
    assert "was made with other settings" in capsys.readouterr().err
    assert json.loads(out.read_text()) == second


def test_a_search_that_was_stopped_goes_on(model, tmp_path, capsys, monkeypatch):
    def search(out, stop_after=math.inf):
        """The status and the thresholds that were run."""
        tried = []

        def stopping(*arguments):
            find = runner(*arguments)

            def run(tau):
                if len(tried) >= stop_after:
                    raise KeyboardInterrupt
                tried.append(tau)
                return find(tau)

            return run

        monkeypatch.setattr(comparison, "runner", stopping)
        return main([model, *OPTIONS, "--methods", "eap-acdc", "--out", str(out)]), tried

    whole, parts = tmp_path / "whole.json", tmp_path / "parts.json"
    status, taus = search(whole)
    assert status == 0 and len(taus) > 2
    assert search(parts, stop_after=2) == (130, taus[:2])
    stopped = json.loads(parts.read_text())
    assert stopped["methods"] == {} and [one["tau"] for one in stopped["searches"]["eap-acdc"]] == taus[:2]
    capsys.readouterr()
    assert search(parts) == (0, taus[2:])
    assert "eap-acdc resumes after 2 runs" in capsys.readouterr().out

    def timeless(path):
        record = json.loads(path.read_text())
        assert record["searches"] == {}
        found = record["methods"]["eap-acdc"]
        assert found["runs"] == len(found["searched"]) == len(taus)
        rows = [{name: one[name] for name in one if name != "evaluation_seconds"} for one in found["rows"]]
        return rows, [(one["tau"], one["deleted"]) for one in found["searched"]]

    assert timeless(parts) == timeless(whole)


def test_a_run_is_read_back_as_it_was(workshop):
    graph = workshop.subject.graph
    one, two = graph.edges()[:2]
    decisions = [Decision(one, True, 0.5, None, BOUND), Decision(two, False, 1e-6, 0.25, EXACT, 2e-6)]
    for deleted in (0.25, math.inf):
        run = ThresholdRun(1e-3, deleted, 1.5, decisions)
        assert ThresholdRun.from_json(json.loads(json.dumps(run.to_json(), allow_nan=False)), graph) == run


def test_spread_is_told_of_seeds_and_the_standard_error_of_one():
    def row(share, kl, accuracy):
        numbers = {"deleted": share, "agreement": 0.9, "calibration_kl": kl, "standard_error": 0.01}
        return {"share": share, "kl": kl, "accuracy": accuracy, **numbers}

    common = {"preparation_seconds": 3.0, "whole": {"accuracy": 0.75}}
    record = {
        "asked": {
            "settings": {"granularity": "head", "ablation": "mean", "samples": 8},
            "evaluation_images": 100,
            "flops": [0.1],
            "environment": {"device": "cpu", "cpu": "a processor", "threads": 2},
        },
        "methods": {
            "random": {**common, "seconds": 1.0, "rows": [row(0.1, 1.0, 0.5), row(0.1, 3.0, 0.7)]},
            "eap": {**common, "seconds": 2.0, "rows": [row(0.1, 0.5, 0.7)]},
        },
    }
    lines = markdown(record).splitlines()
    assert lines[0].endswith("the whole model's top-1: 75.0%")
    random, one = lines[4:6]
    assert "| 2.0000 ± 1.4 |" in random and "| 60.0% ± 14.1 |" in random
    assert "| 0.5000 |" in one and "| 70.0% ± 1.0 |" in one and one.endswith("| 2.0 s |")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--flops", "a"], "--flops is 'a': give shares such as"),
        (["--flops", "0.1,1"], "--flops is 0.1,1: give shares between 0 and 1"),
        (["--methods", "acdc,magic"], "--methods magic is not known: choose from acdc"),
        (["--eval-samples", "0"], "--eval-samples is 0: give 1 or more"),
        (["--out", "nowhere/x.json"], "--out nowhere/x.json can't be written"),
        (["--markdown", "nowhere/x.md"], "--markdown nowhere/x.md can't be written"),
        (
            ["--samples", "20", "--out", "OTHER"],
            "OTHER is of no format, not a vitfx-methods/1: give another name",
        ),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(model, tmp_path, capsys, monkeypatch, options, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "OTHER").write_text("{}")
    assert main([model, *options]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ") and sentence in printed.err and printed.err.count("\n") == 1
    assert (tmp_path / "OTHER").read_text() == "{}"
