"""EAP + ACDC on a scripted engine, where costs are known, and on small models against ACDC itself."""

import math
from dataclasses import dataclass, field, replace

import pytest
import torch

from tests.discovery.engines.test_reader_engine import Setting as ReaderSetting
from tests.discovery.methods.test_acdc import Setting as HeadSetting
from vitfx.circuits.circuit import ATTRIBUTED, GROUP, Edge, Reader, Writer
from vitfx.discovery.basis.forecast import Forecast
from vitfx.discovery.basis.journal import FileJournal, NoJournal
from vitfx.discovery.basis.protocol import Limits, Trial
from vitfx.discovery.engines.head_engine import HeadEngine
from vitfx.discovery.engines.reader_engine import ReaderEngine
from vitfx.discovery.methods.eap_acdc import eap_acdc
from vitfx.discovery.methods.sublayer_decision import LEAST, PROBES
from vitfx.graph.divergence import kl_divergence


@dataclass
class Scripted:
    """A sublayer whose edges cost fixed amounts, and are predicted to cost others; slopes never tell the difference."""

    costs: list[float]
    predicted: list[float]
    dead: bool = False
    asked: list[int] = field(default_factory=list)
    looked: list[int] = field(default_factory=list)
    gone: list[Edge] = field(default_factory=list)

    def __post_init__(self):
        own = [Edge(Writer(f"{'am'[i % 2]}{i}", 0, (0,)), Reader("logits")) for i in range(len(self.costs))]
        self.edges, self.idle = ([], own) if self.dead else (own, [])

    def wide_visits(self):
        yield self

    def kl_without(self, edges, allowed):
        self.asked.append(len(edges))
        return Trial(self.kl(edges), exact=True)

    def kl(self, more):
        return sum(self.costs[self.edges.index(one)] for one in [*self.gone, *more])

    def forecast(self, gone=()):
        self.looked.append(len(gone))
        slope = torch.tensor(self.predicted, dtype=torch.float64)
        return Forecast(slope, torch.zeros(len(slope), len(slope), dtype=torch.float64), self.kl(gone))

    def remove(self, edges, order=None):
        self.gone += edges


def run(scripted, tau, max_kl=math.inf):
    decisions = eap_acdc(scripted, Limits(tau, max_kl), NoJournal(), seed=0)
    assert sorted(one.edge.name for one in decisions) == sorted(one.name for one in [*scripted.edges, *scripted.idle])
    assert {one.edge for one in decisions if not one.kept} == set(scripted.gone)
    return {int(one.edge.writer.sublayer[1:]): one for one in decisions}


def test_right_predictions_settle_most_edges_in_few_trials():
    costs = [0.001] * 100 + [1.0] * 50
    scripted = Scripted(costs, costs)
    found = run(scripted, 0.01)
    assert all(found[index].kept == (index >= 100) for index in range(150))
    assert scripted.asked == [1, 1]
    assert len(scripted.looked) == 2
    assert sum(one.basis == ATTRIBUTED for one in found.values()) >= 48
    assert sum(one.basis == GROUP for one in found.values()) >= 98


def test_what_is_left_over_goes_in_groups_too():
    """Too few edges for another pair of slopes are measured together."""
    costs = [0.001] * 5 + [1.0] * 5
    scripted = Scripted(costs, costs)
    found = run(scripted, 0.01)
    assert all(found[index].kept == (index >= 5) for index in range(10))
    assert not any(scripted.looked)
    assert sorted(scripted.asked)[:2] == [1, 1] and max(scripted.asked) > 1 and len(scripted.asked) <= 6


def test_a_reader_whose_edges_become_dear_keeps_none_of_anothers():
    """Slopes never tell that every other reader's edges cost the square of how many of them are gone."""

    @dataclass
    class TwoReaders(Scripted):
        def __post_init__(self):
            readers = Reader("a9", 0, "q"), Reader("a9", 0, "k")
            self.edges = [Edge(Writer(f"m{i}", 0, (0,)), readers[i % 2]) for i in range(len(self.costs))]
            self.idle = []

        def kl(self, more):
            grows = sum(one.reader.part == "k" for one in [*self.gone, *more])
            cheap = sum(one.reader.part == "q" for one in [*self.gone, *more])
            return 1e-6 * cheap + 1e-3 * grows**2

    scripted = TwoReaders([0.0] * 80, [1e-6] * 80)
    found = run(scripted, 0.01)
    assert sum(found[index].kept for index in range(0, 80, 2)) < 2 * LEAST
    # The sixth alone costs more than τ, (6² − 5²) · 1e-3; as the last of three it is charged a third of what they cost.
    assert sum(not found[index].kept for index in range(1, 80, 2)) in (5, 6)
    assert len(scripted.asked) + len(scripted.looked) < 40


def test_a_dear_edge_is_found_by_the_slopes_behind_the_group():
    """All are predicted to be free, and the slopes behind tell which is not: the others go without it at once."""

    class Told(Scripted):
        def forecast(self, gone=()):
            found = super().forecast(gone)
            return replace(found, slope=2 * torch.tensor(self.costs, dtype=torch.float64)) if gone else found

    costs = [0.0001] * 79 + [0.05]
    scripted = Told(costs, [0.0] * 80)
    found = run(scripted, 0.01)
    assert found[79].kept
    assert sum(not one.kept for one in found.values()) == 79
    assert len(scripted.asked) + len(scripted.looked) <= 8


def test_wrong_predictions_are_overruled_by_what_is_measured():
    """Everything is predicted to be free; a tenth is not, and none of that may go."""
    costs = [5.0 if index % 10 == 3 else 0.0 for index in range(60)]
    scripted = Scripted(costs, [1e-6] * 60)
    found = run(scripted, 0.01)
    assert all(found[index].kept for index in range(60) if costs[index] > 0)
    assert sum(not one.kept for one in found.values()) > 0


def test_what_nobody_reads_goes_first():
    """Half of the edges may go: not the cheapest, but those of writers without which the reader behind did."""

    class Before(Scripted):
        def __post_init__(self):
            super().__post_init__()
            self.edges = [Edge(one.writer, Reader("m9")) for one in self.edges]

    @dataclass
    class Two:
        visits: list[Scripted]

        def wide_visits(self):
            yield from self.visits

    behind = Scripted([1.0] * 40 + [0.0] * 40, [1.0] * 40 + [0.0] * 40)
    before = Before([0.0009] * 40 + [0.001] * 40, [0.0009] * 40 + [0.001] * 40)
    eap_acdc(Two([behind, before]), Limits(0.01, max_kl=0.0405), NoJournal(), seed=0)
    gone = [before.edges.index(one) for one in before.gone]
    assert len(gone) >= 38
    assert sum(one >= 40 for one in gone) >= len(gone) - PROBES


@pytest.mark.parametrize("tau", [0.0, 0.01])
def test_what_bends_more_than_forecast_is_learned(tau):
    """Every fifth edge is worth removing; of the others the slope says so, and four times the curvature forecast."""

    class Bends(Scripted):
        def forecast(self, gone=()):
            found = super().forecast(gone)
            there = torch.tensor([one in self.gone or one in gone for one in self.edges])
            slope = torch.where(there, 0.06, torch.tensor(self.predicted, dtype=torch.float64))
            return replace(found, slope=slope, fisher=torch.eye(len(slope), dtype=torch.float64) * 0.02)

    falls = [index % 5 == 0 for index in range(100)]
    scripted = Bends([-0.06 if one else 0.02 for one in falls], [-0.1 if one else -0.02 for one in falls])
    found = run(scripted, tau)
    assert [found[index].kept for index in range(100)] == [not one for one in falls]
    assert len(scripted.asked) <= 6 and scripted.looked == [0, 20]


def test_the_rise_of_a_group_is_what_its_edges_score():
    scripted = Scripted([0.001, 0.003] * 20, [0.001, 0.003] * 20)
    found = run(scripted, 0.01)
    grouped = [one for one in found.values() if one.basis == GROUP]
    assert sum(one.score for one in grouped) == pytest.approx(
        sum(scripted.costs[int(one.edge.writer.sublayer[1:])] for one in grouped)
    )


def test_max_kl_bounds_groups_too():
    scripted = Scripted([0.005] * 40, [0.005] * 40)
    found = run(scripted, 0.01, max_kl=0.1)
    gone = sum(not one.kept for one in found.values())
    assert 0 < gone * 0.005 <= 0.1 + 1e-12


def test_a_limit_that_is_used_up_ends_the_groups():
    scripted = Scripted([0.005] * 200, [0.005] * 200)
    found = run(scripted, 0.01, max_kl=0.012)
    assert sum(not one.kept for one in found.values()) == 2
    assert len(scripted.looked) < 10


def test_a_reader_that_leads_nowhere_is_not_asked():
    scripted = Scripted([math.nan] * 5, [math.nan] * 5, dead=True)
    found = run(scripted, 0.01)
    assert not scripted.asked
    assert all(not one.kept and one.score == 0 for one in found.values())


@pytest.mark.parametrize(
    ("make", "tau"),
    [
        (lambda: HeadSetting("torchvision", "mean"), 1e-2),
        (lambda: ReaderSetting(), 1e-4),
        (lambda: ReaderSetting(granularity="edge"), 3e-4),
    ],
)
def test_most_decisions_are_acdcs(make, tau):
    """Each at the very state in which it was made, by a run of the whole edge graph."""
    setting = make()
    graph, clean = setting.graph, setting.calibration.clean

    def direct(removed):
        with torch.no_grad():
            return float(kl_divergence(graph.run(clean), graph.run(clean, removed, setting.reference)).mean())

    found = eap_acdc(_engine(setting), Limits(tau), NoJournal(), seed=0)
    removed, kl, equal = [], 0.0, 0
    for one in found:
        new = direct([*removed, one.edge])
        equal += one.kept == (new - kl >= tau)
        if not one.kept:
            removed, kl = [*removed, one.edge], new
    assert 0 < len(removed) < len(found)
    assert equal >= 0.9 * len(found)
    assert [one.kl for one in found if not one.kept][-1] == pytest.approx(kl, abs=1e-10)


def test_a_journal_continues_to_the_same_decisions(tmp_path):
    setting = ReaderSetting()
    whole = FileJournal(tmp_path / "whole", "key")
    expected = eap_acdc(_engine(setting), Limits(1e-4), whole, seed=0)
    lines = (tmp_path / "whole").read_text().splitlines(keepends=True)
    (tmp_path / "part").write_text("".join(lines[: len(lines) // 2]))
    again = eap_acdc(_engine(setting), Limits(1e-4), FileJournal(tmp_path / "part", "key"), seed=0)
    assert again == expected


def _engine(setting):
    kind = HeadEngine if setting.graph.reads_stream else ReaderEngine
    return kind(setting.graph, setting.calibration, setting.reference)
