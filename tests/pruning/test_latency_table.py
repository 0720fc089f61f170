from itertools import pairwise

import pytest
import torch

from passes.stream import read_sites
from tests.support.checks import assert_equal, canonical
from tests.support.families import images
from vitfx.deploy.deployment import NAMES, default_deployment
from vitfx.deploy.export import to_onnx
from vitfx.deploy.lowering import lower
from vitfx.deploy.runtime import open_session
from vitfx.pruning import latency_table
from vitfx.pruning.cost_model import Price
from vitfx.pruning.latency_table import LatencyTable, measure_table
from vitfx.support.errors import UserError
from vitfx.support.progress import Silent

CPU = torch.device("cpu")


def test_a_price_is_linear_between_what_was_timed_and_never_falls_with_more_units():
    table = LatencyTable(12.0, 10.0, {"a0": ((1, 2.0), (2, 3.0)), "m0": ((2, 1.0), (4, 0.5), (6, 4.0))})
    price = table.price()
    assert price.unit == "ms"
    assert price.sublayers["a0"].tolist() == [0, 2, 3]
    assert price.sublayers["m0"].tolist() == [0, 0.5, 1, 1, 1, 2.5, 4]
    assert price.whole == 10
    assert price.total({"a0": 0, "m0": 2}) == pytest.approx(10 - 3 - 3)


def test_times_of_a_machine_that_other_programs_keep_busy_are_doubted() -> None:
    """Sublayers have 90 of 100 FLOPs here."""
    flops = Price("FLOPs", 10.0, {"a0": torch.tensor([0.0, 90.0])})
    sublayers = {"a0": ((1, 1.0), (2, 2.0)), "m0": ((4, 1.0),)}
    assert LatencyTable(12.0, 11.0, sublayers).doubt(flops) is None
    doubt = LatencyTable(12.0, 11.2, sublayers).doubt(flops)
    assert doubt is not None and "the whole model takes 11.2 ms, all of its attentions and MLPs 3 ms" in doubt
    assert LatencyTable(120.0, 110.0, sublayers).doubt(Price("FLOPs", 99.0, {"a0": torch.tensor([0.0, 1.0])})) is None


def test_a_table_read_back_is_the_table(tmp_path):
    table = LatencyTable(12.0, 10.0, {"a0": ((1, 2.0), (2, 3.0))})
    table.write(tmp_path / "table.json")
    assert LatencyTable.read(tmp_path / "table.json") == table


FORMAT = '{"format": "vitfx-latency/1", '


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not JSON"),
        ("[]", "is of no format"),
        ('{"plain": 1}', "is of no format"),
        (FORMAT + '"plain": 1}', "is damaged"),
        (FORMAT + f'"plain": 1{"0" * 400}, "whole": 1, "sublayers": {{}}}}', "is damaged"),
        (f'{{"format": "{"x" * 5000}"}}', "is a x{300}, not a"),
        ('{"a":' * 500 + "1" + "}" * 500, "is not JSON .it is nested more than 100 deep"),
        (FORMAT + '"plain": 1, "whole": 1, "sublayers": {"a0": [[1]]}}', "is damaged"),
    ],
)
def test_anything_else_is_refused(tmp_path, text, reason):
    (tmp_path / "table.json").write_text(text)
    with pytest.raises(UserError, match=rf"table.json {reason}.*: times are measured anew"):
        LatencyTable.read(tmp_path / "table.json")


@pytest.fixture(scope="module")
def lowered():
    graph_module, pixels = canonical().float(), images(3).float()
    deployment = default_deployment(NAMES, CPU, portable=False)
    return lower(graph_module, deployment.graph_rewrites, pixels).graph_module, pixels


def test_sublayers_cut_out_of_the_deployed_graph_make_of_a_stream_what_they_made_there(lowered):
    graph_module, pixels = lowered
    names = tuple(site.name for site in read_sites(canonical()))
    parts = list(latency_table._cut_out(graph_module, pixels, names))
    assert [name for name, _, _ in parts] == list(names)
    with torch.no_grad():
        for (_, part, stream), (_, _, following) in pairwise(parts):
            assert_equal(part(stream), following, 1e-5)
    # What only the class token needs is cut out as narrow as it is deployed.
    assert parts[-1][2].shape[1] == 1
    assert parts[0][2].shape[1] > 1


class InTorch:
    def __init__(self, part):
        self.part = part

    def bind(self, pixels):
        return lambda: self.part(pixels)


def in_onnx_runtime(part, example):
    return open_session(to_onnx(part, example, {}).SerializeToString(), CPU)


def test_every_sublayer_is_timed_at_rising_sizes_and_each_shape_once(lowered, monkeypatch):
    monkeypatch.setattr(latency_table, "STEPS", 2)
    graph_module, pixels = canonical().float(), images(3).float()
    deployment = default_deployment(NAMES, CPU, portable=False)
    opened = []

    def open_it(part, example):
        opened.append(part)
        # One by ONNX Runtime; the others by torch, for exports take seconds each.
        return in_onnx_runtime(part, example) if len(opened) == 2 else InTorch(part)

    table = measure_table(
        graph_module,
        pixels[:2],
        lambda one: lower(one, deployment.graph_rewrites, pixels).graph_module,
        InTorch(graph_module),
        open_it,
        CPU,
        Silent(),
    )
    sites = read_sites(graph_module)
    assert set(table.sublayers) == {site.name for site in sites}
    for site in sites:
        counts = [count for count, _ in table.sublayers[site.name]]
        assert counts == sorted(set(counts))
        assert counts[-1] == site.module.units
        assert len(counts) == 2
        assert all(time > 0 for _, time in table.sublayers[site.name])
    # Equal layers share their times, and the last, which is narrowed, has its own.
    assert table.sublayers["m0"] is not table.sublayers["m1"]
    assert len(opened) < 1 + sum(len(points) for points in table.sublayers.values())
