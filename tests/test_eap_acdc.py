"""EAP + ACDC on a scripted engine, where costs are known, and on small models against ACDC itself."""

import math
from dataclasses import dataclass, field
from functools import partial

import pytest
import torch

from tests.test_acdc import Setting as HeadSetting
from tests.test_reader_engine import Setting as ReaderSetting
from vitfx.acdc import acdc
from vitfx.circuit import ATTRIBUTED, GROUP, PROBE, Decision, Edge, Reader, Writer
from vitfx.eap_acdc import calibration_of, eap_acdc
from vitfx.fisher import fisher
from vitfx.forecast import Forecast
from vitfx.head_engine import HeadEngine
from vitfx.journal import FileJournal, NoJournal
from vitfx.order import by_attribution
from vitfx.reader_engine import ReaderEngine
from vitfx.search import Limits, Trial


@dataclass
class Scripted:
    """One reader whose edges cost fixed amounts, and are predicted to cost others."""

    costs: list[float]
    predicted: list[float]
    idle: bool = False
    reader: Reader = Reader("logits")  # noqa: RUF009
    asked: list[int] = field(default_factory=list)
    gone: list[Writer] = field(default_factory=list)

    def __post_init__(self):
        self.writers = [Writer(f"{'am'[i % 2]}{i}", 0, (0,)) for i in range(len(self.costs))]

    def visits(self):
        yield self

    def kl_without(self, writers, allowed):
        self.asked.append(len(writers))
        return Trial(sum(self.costs[self.writers.index(one)] for one in [*self.gone, *writers]), exact=True)

    def forecast(self):
        slope = torch.tensor(self.predicted, dtype=torch.float64)
        return Forecast(slope, torch.zeros(len(slope), len(slope), dtype=torch.float64))

    def remove(self, writers, order=None):
        self.gone += writers


def run(scripted, tau, max_kl=math.inf):
    decisions = eap_acdc(scripted, Limits(tau, max_kl), NoJournal(), seed=0)
    assert sorted(one.edge.name for one in decisions) == sorted(
        Edge(writer, scripted.reader).name for writer in scripted.writers
    )
    assert {one.edge.writer for one in decisions if not one.kept} == set(scripted.gone)
    return {int(one.edge.writer.sublayer[1:]): one for one in decisions}


def test_right_predictions_settle_most_edges_in_few_trials():
    costs = [0.001] * 100 + [1.0] * 50
    scripted = Scripted(costs, costs)
    found = run(scripted, 0.01)
    assert all(found[index].kept == (index >= 100) for index in range(150))
    assert len(scripted.asked) <= 4
    assert sum(one.basis == ATTRIBUTED for one in found.values()) >= 49
    assert sum(one.basis == GROUP for one in found.values()) >= 99


def test_wrong_predictions_are_overruled_by_what_is_measured():
    """Everything is predicted to be free; a tenth is not, and none of that may go."""
    costs = [5.0 if index % 10 == 3 else 0.0 for index in range(60)]
    scripted = Scripted(costs, [1e-6] * 60)
    found = run(scripted, 0.01)
    assert all(found[index].kept for index in range(60) if costs[index] > 0)
    assert sum(not one.kept for one in found.values()) > 0


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


def test_a_reader_that_leads_nowhere_is_not_asked():
    scripted = Scripted([math.nan] * 5, [math.nan] * 5, idle=True)
    found = run(scripted, 0.01)
    assert not scripted.asked
    assert all(not one.kept and one.score == 0 for one in found.values())


def test_calibration_tells_heads_from_paths():
    def decision(sublayer, predicted, measured):
        return Decision(Edge(Writer(sublayer), Reader("logits")), measured >= 0.5, measured, measured, PROBE, predicted)

    heads = [decision(f"a{i}", i / 10, 2 * i / 10) for i in range(10)]
    paths = [decision(f"m{i}", i / 10, (9 - i) / 10) for i in range(10)]
    report = calibration_of([*heads, *paths], 0.5)
    assert report["heads"] == {"edges": 10, "rank_correlation": 1.0, "agreement": 1.0, "scale": pytest.approx(2.0)}
    assert report["paths"]["rank_correlation"] == -1.0
    assert report["paths"]["agreement"] < 0.5
    assert calibration_of(heads[:3], 0.5) == {}


@pytest.mark.parametrize(
    ("make", "tau"),
    [
        (lambda: HeadSetting("torchvision", "mean"), 1e-2),
        (lambda: ReaderSetting(), 1e-4),
        (lambda: ReaderSetting(granularity="edge"), 3e-4),
    ],
)
def test_most_decisions_are_acdcs(make, tau):
    setting = make()
    order = partial(by_attribution, fisher(setting.graph, setting.calibration, setting.reference))
    exact = {one.edge: one.kept for one in acdc(_engine(setting), order, Limits(tau), NoJournal())}
    found = eap_acdc(_engine(setting), Limits(tau), NoJournal(), seed=0)
    assert 0 < sum(exact.values()) < len(exact)
    assert sum(one.kept == exact[one.edge] for one in found) >= 0.85 * len(exact)
    kl = [one.kl for one in found if not one.kept][-1]
    removed = [one.edge for one in found if not one.kept]
    with torch.no_grad():
        clean = setting.calibration.clean
        logits = setting.graph.run(clean, removed, setting.reference).log_softmax(-1)
        expected = torch.nn.functional.kl_div(
            logits, setting.graph.run(clean).log_softmax(-1), log_target=True, reduction="batchmean"
        )
    assert kl == pytest.approx(float(expected), abs=1e-10)


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
